"""The protocol of infinite-width tangent kernels: what they have in common, from one method."""

from typing import Any, ClassVar

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, ArrayLike, Float

from perturbkernel.arrays import as_jax
from perturbkernel.checks import (
    as_float,
    as_inputs,
    check_finite,
    check_mesh,
    check_progress,
    common_dtype,
)
from perturbkernel.engine.tiles import ARRAYS, COPIES
from perturbkernel.kernels import products
from perturbkernel.kernels.forecast import Plan, make_plan


class Kernel:
    """The base class of all kernels. A subclass defines `tile`; everything else follows from it.

    Kernels are immutable pytrees. Without leaves, which `jax.tree_util.register_static` says, they
    compare by value and are constants of compiled programs; leaves, such as the parameters of a
    network, are arguments of them, so that a kernel of other values compiles nothing.

    A class that defines `tile` may define `quick_tile` beside it, with the same arguments: faster,
    but NaN at the few pairs of points that take more care, and with NaN in their gradients
    (`perturbkernel.kernels.products` says what becomes of them). What it uses of each point may be
    computed once a sum, by `prepare(z, x)`, which returns arrays with a row for each of z, the same
    for x, and what all share; ``quick_tile(name, z, x, of_z, of_x, shared)`` gets a tile's rows of
    them, or nothing. A subclass with a `tile` of its
    own uses neither that it inherits, since they belong to another tile.

    A kernel of features, K(z, x) = <phi(z), phi(x)>, may define beside its `tile` the two halves of
    a product: ``to_weights(name, x, coef)`` returns w = sum_n coef_n phi(x_n), any pytree of
    arrays, of coef (n,) or (n, k), and ``from_weights(name, z, w)`` returns <phi(z), w>, (m,) or
    (m, k), both in the dtype of x and z. Sums and their gradients then take n + m evaluations in
    place of tiles, where `prefers_weights` says so. One whose features can be held for some rows
    may define ``to_features(name, x)``, any pytree of arrays with a row for each of x, and
    ``from_features(name, of_z, of_x)``, the tile that they make: whole matrices are made of blocks
    whose features are evaluated once.

    Example:
        >>> import jax, jax.numpy as jnp, perturbkernel as pk
        >>> @jax.tree_util.register_static
        ... class Quadratic(pk.Kernel):
        ...     def tile(self, name, z, x):
        ...         return (1 + z @ x.T) ** 2
        >>> Quadratic().matvec(jnp.ones((2, 3)), jnp.ones((4, 3)), jnp.ones(4)).tolist()
        [64.0, 64.0]
    """

    #: bytes for the temporaries of a sum; None: a default for the device
    memory: ClassVar[int | None] = None
    #: largest tile, (rows of queries, rows of points), where it does not follow from `memory`
    block: ClassVar[tuple[int, int] | None] = None
    #: the names that `tile` knows
    kernel_names: ClassVar[tuple[str, ...]] = ("ntk", "nngp")

    #: NumPy's numbers leave products with a kernel to the kernel
    __array_ufunc__: ClassVar[None] = None

    # Imported here, since the module of combinations imports this one.
    def __add__(self, other: "Kernel") -> "Kernel":
        from perturbkernel.kernels.algebra import added

        return added(self, other)

    def __mul__(self, other: Any) -> "Kernel":
        from perturbkernel.kernels.algebra import multiplied

        return multiplied(self, other)

    __rmul__ = __mul__

    def tile(self, name: str, z: Array, x: Array) -> Array:
        """The dense kernel called `name`, (rows of z, rows of x), in their dtype; traced and
        differentiated.
        """
        raise TypeError(
            f"{type(self).__name__} does not define tiles; a kernel needs a method "
            "tile(self, name, z, x) that returns an array (rows of z, rows of x)"
        )

    def prefers_weights(
        self,
        name: str,
        m: int,
        n: int,
        columns: int,
        row: tuple[int, ...],
    ) -> bool:
        """Whether sums of n points at m queries, of so many columns and inputs of shape `row`, go
        by `to_weights` and `from_weights`, where a kernel has them.
        """
        return True

    def footprint(self, row: tuple[int, ...]) -> tuple[float, float]:
        """(numbers a pair, numbers a row) that a tile of the widest sum takes, for inputs of shape
        `row`.

        With (a, b) what is returned, a tile of r queries and c points takes at most

            a r c + b (r + c)

        numbers.
        """
        return ARRAYS, COPIES * int(np.prod(row))

    def check_inputs(
        self,
        value,
        name: str,
        like: tuple[int, ...] | None = None,
    ) -> Array:
        """`value` as an array of inputs of this kernel; raises ValueError or TypeError in terms of
        `name`.
        """
        return as_inputs(value, name, like=like)

    def plan(
        self,
        n: int,
        m: int | None,
        d: int | tuple[int, ...],
        *,
        what: str = "matvec",
        columns: int | None = None,
        devices: int = 1,
        memory: int | None = None,
        rate: float | None = None,
    ) -> Plan:
        """Forecasts the memory and time of a product with n training points and m queries in
        dimension d: a `Plan`, to print before the run.

        Example:
            >>> import perturbkernel as pk
            >>> pk.TwoLayerNTK().plan(60_000, 10_000, 784, rate=1e11).seconds < 600
            True

        Args:
            n, m: how many; m None: the queries are the training points, the very same array.
            d: the dimension, or the shape of one input.
            what: "matvec", "input_gradient", "phi_matmul", "ntk", "nngp" or "phi".
            columns: k, for coefficients (n, k); left out: 1, for `phi_matmul` d.
            devices: of the mesh.
            memory: bytes for temporaries on each device, instead of this kernel's own.
            rate: floating-point operations a second of one device; measured on a few thousand
                points if left out.
        """
        return make_plan(self, n, m, d, what, columns, devices, memory, rate)

    def _check_has(self, name: str, asked: str) -> None:
        if name not in self.kernel_names:
            known = ", ".join(self.kernel_names)
            raise TypeError(
                f"{asked} is not known of this kernel, which has {known}; it is {self!r}"
            )

    def _points(self, z, x) -> tuple[Array, Array]:
        """Queries and points, checked; the very same array where they were, since sums may then use
        the symmetry.
        """
        same = z is x
        x = self.check_inputs(x, "x")
        z = x if same else self.check_inputs(z, "z", like=x.shape[1:])
        return z, x

    def _matrix(self, name: str, x, z) -> Array:
        z, x = self._points(x if z is None else z, x)
        return products.matrix(self, name, *_common_dtype(x, z))

    def _sum_arguments(
        self,
        z,
        x,
        coef,
        coef_name: str,
        dimensions: tuple[int, ...],
        mesh,
        progress,
    ) -> tuple[Array, ...]:
        check_mesh(mesh)
        check_progress(progress)
        z, x = self._points(z, x)
        coef = as_float(coef, coef_name)
        n = len(x)
        if coef.ndim not in dimensions or len(coef) != n:
            shapes = {1: f"({n},)", 2: f"({n}, k)"}
            wanted = " or ".join(shapes[k] for k in dimensions)
            raise ValueError(
                f"{coef_name} must have shape {wanted}, one row a row of x; got {coef.shape}"
            )
        check_finite(coef, coef_name)
        return _common_dtype(z, x, coef)

    def ntk(
        self,
        x: Float[ArrayLike, "n ..."],
        z: Float[ArrayLike, "m ..."] | None = None,
    ) -> Float[Array, "n m"]:
        """The tangent kernel K(x_n, z_m), (n, m); `z` omitted: K(x, x), with an exact diagonal.

        Differentiable in both arguments; at coincident points the derivative is the symmetric
        (central) one. Raises ValueError for inputs that are empty, not finite, or of different
        dimensions.

        Example:
            >>> import perturbkernel as pk
            >>> pk.TwoLayerNTK(slope=1.0).ntk([[1.0, 2.0]], [[3.0, 1.0], [0.0, 1.0]]).tolist()
            [[5.0, 2.0]]
        """
        return self._matrix("ntk", x, z)

    def nngp(
        self,
        x: Float[ArrayLike, "n ..."],
        z: Float[ArrayLike, "m ..."] | None = None,
    ) -> Float[Array, "n m"]:
        """The covariance E[f0(x_n) f0(z_m)] of the initial outputs, (n, m); `z` omitted: K(x, x),
        exact diagonal.

        Example:
            >>> import perturbkernel as pk
            >>> matrix = pk.TwoLayerNTK(slope=1.0).nngp([[1.0, 2.0]])
            >>> round(float(matrix[0, 0]), 3)  # 1 + |x|^2 / d
            3.5
        """
        return self._matrix("nngp", x, z)

    def phi(
        self,
        x: Float[ArrayLike, "n d"],
        z: Float[ArrayLike, "m d"] | None = None,
    ) -> Float[Array, "n m"]:
        """The gate moment Phi(x_n, z_m) = E[phi'(u(x_n)) phi'(u(z_m))], (n, m), between slope and
        (1 + slope^2)/2.

        `z` omitted: between the rows of x; the diagonal is exactly (1 + slope^2)/2. Raises
        TypeError for kernels other than TwoLayerNTK, which have no one gate. Theory: 0.1.

        Example:
            >>> import perturbkernel as pk
            >>> pk.TwoLayerNTK().phi([[1.0, 2.0]]).tolist()
            [[0.5]]
        """
        self._check_has("phi", "phi")
        return self._matrix("phi", x, z)

    def phi_matmul(
        self,
        z: Float[ArrayLike, "m d"],
        x: Float[ArrayLike, "n d"],
        b: Float[ArrayLike, "n k"],
        *,
        mesh: Mesh | None = None,
        progress: Any = None,
    ) -> Float[Array, "m k"]:
        """sum_n Phi(x_n, z_j) b_n, (m, k) for b (n, k), in tiles; b_n = y_n x_n / n gives the
        paper's direction v.

        `mesh` and `progress` as in `matvec`; raises TypeError where `phi` does.

        Example:
            >>> import perturbkernel as pk
            >>> pk.TwoLayerNTK().phi_matmul([[1.0, 2.0]], [[1.0, 2.0]], [[3.0, 4.0]]).tolist()
            [[1.5, 2.0]]
        """
        self._check_has("phi", "phi_matmul")
        arguments = self._sum_arguments(z, x, b, "b", (1, 2), mesh, progress)
        return products.matvec(self, "phi", *arguments, mesh=mesh, progress=progress)

    def matvec(
        self,
        z: Float[ArrayLike, "m ..."],
        x: Float[ArrayLike, "n ..."],
        coef: Float[ArrayLike, "n ..."],
        *,
        mesh: Mesh | None = None,
        progress: Any = None,
    ) -> Float[Array, "m ..."]:
        """sum_n coef_n K(x_n, z_j), (m,) for coef (n,) and (m, k) for coef (n, k), in tiles.

        No n x m matrix is held.

        Differentiable in z, x and coef, in forward and in reverse mode and any number of times, by
        tiled sums again. Where z and x are the very same array, each pair of points is evaluated
        once, in as little as half the time.

        Example:
            >>> import perturbkernel as pk
            >>> z, x, coef = [[1.0, 2.0]], [[3.0, 1.0], [0.0, 1.0]], [1.0, 10.0]
            >>> pk.TwoLayerNTK(slope=1.0).matvec(z, x, coef).tolist()
            [25.0]

        Args:
            z, x, coef: (m, ...), (n, ...), (n,) or (n, k).
            mesh: devices that share the work. Every process holds the arguments and gets the whole
                result.
            progress: `progress.update(k)` is called after every k queries: `tqdm.tqdm(total=m)`,
                say. Outside `jit`.
        """
        arguments = self._sum_arguments(z, x, coef, "coef", (1, 2), mesh, progress)
        return products.matvec(self, "ntk", *arguments, mesh=mesh, progress=progress)

    def input_gradient(
        self,
        z: Float[ArrayLike, "m ..."],
        x: Float[ArrayLike, "n ..."],
        coef: Float[ArrayLike, "n ..."],
        weights: Float[ArrayLike, "m k"] | None = None,
        *,
        mesh: Mesh | None = None,
        progress: Any = None,
    ) -> Float[Array, "m ..."]:
        """grad_z sum_n coef_n K(x_n, z) at every row of z, shaped like z, in tiles.

        For coef (n, k), k outputs, `weights` (m, k) says which combination of them: the gradient of
        sum_nk weights_jk coef_nk K(x_n, z) at z_j.

        Finite and right at training points, duplicates and zero: where z coincides with x_n, K(x_n,
        .) has a cone whose symmetric derivative is taken, the limit of finite networks' gradients
        (theory: 0.4, 5.3). Differentiable as `matvec` is; `mesh` and `progress` as there.

        Example:
            >>> import perturbkernel as pk
            >>> z, x, coef = [[1.0, 2.0]], [[3.0, 1.0], [0.0, 1.0]], [1.0, 10.0]
            >>> pk.TwoLayerNTK(slope=1.0).input_gradient(z, x, coef).tolist()
            [[3.0, 11.0]]
        """
        dimensions = (1,) if weights is None else (2,)
        z, x, coef = self._sum_arguments(z, x, coef, "coef", dimensions, mesh, progress)
        cotangent = _as_weights(weights, z, coef)
        return products.query_gradient(
            self,
            "ntk",
            z,
            x,
            coef,
            cotangent,
            mesh=mesh,
            progress=progress,
        )

    def gradient_bound(
        self, z: Array | np.ndarray, x: Array | np.ndarray, coef: Array | np.ndarray
    ) -> Array | np.ndarray:
        """(m,), at least sum_n coef_n |grad_z K(x_n, z)| for coef >= 0, where one is known;
        otherwise 0.

        Example:
            >>> import numpy as np, perturbkernel as pk
            >>> x, z = np.asarray([[3.0, 4.0]]), np.asarray([[1.0, 0.0]])
            >>> pk.TwoLayerNTK(slope=1.0).gradient_bound(z, x, np.ones(1)).tolist()
            [5.0]
        """
        return as_jax(np.zeros(z.shape[0], common_dtype(z, x, coef)))


def _as_weights(weights: Any, z: Array, coef: Array) -> Array:
    """(m,) ones for one output, or the weights (m, k) of k outputs, checked."""
    if weights is None:
        return as_jax(np.ones(z.shape[0], z.dtype))
    cotangent = as_float(weights, "weights").astype(z.dtype)
    wanted = len(z), coef.shape[1]
    if cotangent.shape != wanted:
        raise ValueError(
            f"weights must have shape {wanted}, a row for each row of z and a column for each of "
            f"coef; got {cotangent.shape}"
        )
    return cotangent


def _common_dtype(*arrays: Array) -> tuple[Array, ...]:
    """Arrays of one dtype; what was one array remains one."""
    dtype = common_dtype(*arrays)
    cast = {id(array): array.astype(dtype) for array in arrays}
    return tuple(cast[id(array)] for array in arrays)
