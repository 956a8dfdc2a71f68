"""The paper's two-layer network at finite width, with an exact input gradient and tangent kernel.

    f(x) = sum_i a_i phi(<w_i, x> + b_i),
    phi(u) = u for u > 0, slope u otherwise,   phi'(0) = slope,

with w_i ~ N(0, I/d), b_i ~ N(0, 1), a_i ~ N(0, 1/width). The readout a is never trained. As width
grows the network becomes the Gaussian process and the tangent kernel of `TwoLayerNTK`; here it is
what it is. A network of K outputs has K independent readouts of the same neurons; in the limit its
outputs are independent and have that kernel each.
"""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from perturbkernel.checks import as_float, as_inputs, check_count, check_key, common_dtype
from perturbkernel.engine.tiles import EXACT
from perturbkernel.kernels.two_layer import TwoLayerNTK


def check_width(width, doubled) -> None:
    """A number of neurons, even if they come in pairs."""
    check_count(width, "width")
    if doubled and width % 2:
        raise ValueError(
            f"width must be even for a doubled network, whose neurons come in pairs; got {width}"
        )


@partial(jax.jit, static_argnums=(2, 3))
def _drawn(
    key: PRNGKeyArray,
    roots: tuple[float, float],
    sizes: tuple[int, int, int | None],
    doubled: bool,
) -> tuple[Array, Array, Array]:
    """Weights, biases and readout: a row of normal numbers for each neuron, of all that it has."""
    neurons, d, outputs = sizes
    root_d, root_width = roots
    numbers = jax.random.normal(key, (neurons, d + 1 + (outputs or 1)))
    weight = numbers[:, :d] / root_d
    bias = numbers[:, d]
    readout = numbers[:, d + 1 :] / root_width
    if outputs is None:
        readout = readout[:, 0]
    if doubled:
        weight = jnp.concatenate([weight, weight])
        bias = jnp.concatenate([bias, bias])
        readout = jnp.concatenate([readout, -readout])
    return weight, bias, readout


class TwoLayerNetwork(eqx.Module):
    """f(x) = sum_i readout_i phi(<weight_i, x> + bias_i), a pytree; `init` draws one.

    An `ensemble` is one such pytree whose arrays have a leading axis more, and so have its outputs
    and gradients.

    Example:
        >>> net = TwoLayerNetwork(jnp.eye(2), jnp.zeros(2), jnp.asarray([3.0, 4.0]), slope=0.0)
        >>> z = jnp.asarray([[1.0, -1.0]])
        >>> net(z).tolist(), net.active(z).tolist(), net.input_gradient(z).tolist()
        ([3.0], [[True, False]], [[3.0, 0.0]])
        >>> net.empirical_phi(z).tolist(), net.empirical_ntk(z).tolist()
        ([[9.0]], [[18.0]])
        >>> random = TwoLayerNetwork.init(d=2, width=8, key=jax.random.key(0))
        >>> random.weight.shape, random.kernel == TwoLayerNTK(slope=0.0)
        ((8, 2), True)

    Attributes:
        weight: (width, d).
        bias: (width,).
        readout: (width,), never trained; of K outputs (width, K).
        slope: of the leaky ReLU for u <= 0, so the gate phi'(0) is `slope`.
        train_bias: whether `train` moves the bias too (True: the paper's published code; False: its
            theory).
    """

    weight: Float[Array, "... width d"]
    bias: Float[Array, "... width"]
    readout: Float[Array, "..."]
    slope: float = eqx.field(static=True, default=0.0)
    train_bias: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        TwoLayerNTK(self.slope, self.train_bias)  # checks both
        if np.ndim(self.weight) < 2:
            raise ValueError(f"weight must have shape (width, d); got {np.shape(self.weight)}")
        *wanted, _ = np.shape(self.weight)
        of_bias = list(np.shape(self.bias))
        of_readout = list(np.shape(self.readout))
        if np.ndim(self.readout) == np.ndim(self.weight):
            *of_readout, _ = of_readout  # the axis of outputs
        for name, neurons in (("bias", of_bias), ("readout", of_readout)):
            if neurons != wanted:
                raise ValueError(
                    f"{name} must have shape {tuple(wanted)}, one number a neuron; "
                    f"got {tuple(neurons)}"
                )

    @classmethod
    def init(
        cls,
        d: int,
        width: int,
        slope: float = 0.0,
        train_bias: bool = False,
        *,
        outputs: int | None = None,
        doubled=False,
        key: PRNGKeyArray,
    ) -> "TwoLayerNetwork":
        """Draws weight ~ N(0, 1/d), bias ~ N(0, 1), readout ~ N(0, 1/width), independent.

        `outputs`: K, for a network with K outputs (m, K); left out, one output (m,).

        `doubled`: antisymmetric doubling, neurons (w, b, a) and (w, b, -a) for width/2 draws of
        each, so that f0 = 0 and grad f0 = 0 (theory: 4.4). `width` counts all neurons and has to be
        even. The readout keeps the variance 1/width: then E sum a_i^2 = 1 and the kernel's limit is
        the same; its variance is that of width/2 neurons.

        Raises ValueError or TypeError for sizes below 1, a slope outside [0, 1], an odd width when
        doubled.
        """
        check_count(d, "d")
        check_width(width, doubled)
        if outputs is not None:
            check_count(outputs, "outputs", low=2)
        kernel = TwoLayerNTK(slope, train_bias)
        check_key(key)
        # Given as arguments, the roots are divided by as they are outside of a program.
        roots = d**0.5, width**0.5
        neurons = width // 2 if doubled else width
        weight, bias, readout = _drawn(key, roots, (neurons, d, outputs), bool(doubled))
        return cls(weight, bias, readout, kernel.slope, kernel.train_bias)

    @property
    def num_outputs(self) -> int | None:
        """K, the number of outputs; None for a single one, of shape (m,)."""
        several = self.readout.ndim == self.weight.ndim
        return self.readout.shape[-1] if several else None

    @property
    def kernel(self) -> TwoLayerNTK:
        """The tangent kernel of this network in the limit of infinite width."""
        return TwoLayerNTK(self.slope, self.train_bias)

    def _inputs(self, value, name: str) -> Array:
        return as_inputs(value, name, like=(self.weight.shape[-1],), flat=True)

    def _preactivations(self, z: Array, scale: Array | None = None) -> Array:
        """(width, m), at the rows of z multiplied by `scale` (m,).

        In this layout the forward and the backward product of training need no transposed copy.
        """
        dtype = common_dtype(self.weight, z)
        weight = self.weight.astype(dtype)
        bias = self.bias.astype(dtype)
        u = jnp.matmul(weight, z.T.astype(dtype), precision=EXACT)
        if scale is not None:
            u = scale.astype(dtype)[..., None, :] * u
        return u + bias[..., None]

    @jax.jit
    def _outputs(self, z: Array, scale: Array | None = None) -> Array:
        u = self._preactivations(z, scale)
        return self._readout(u)

    def _readout(self, u: Array) -> Array:
        activated = jnp.where(u > 0, u, self.slope * u)
        readout = self.readout.astype(u.dtype)
        sums = "...i,...im->...m" if self.num_outputs is None else "...ik,...im->...mk"
        return jnp.einsum(sums, readout, activated, precision=EXACT)

    @jax.jit
    def _gradients(self, z: Array, weights: Array | None = None) -> Array:
        a = self.readout[..., None]
        if weights is not None:
            readout = self.readout.astype(common_dtype(self.readout, weights))
            weights = weights.astype(readout.dtype)
            a = jnp.einsum("...ik,mk->...im", readout, weights, precision=EXACT)
        u = self._preactivations(z)
        gated = jnp.where(u > 0, a, self.slope * a)
        return jnp.einsum("...im,...id->...md", gated, self.weight, precision=EXACT)

    @jax.jit
    def _phi(self, x: Array, z: Array) -> Array:
        gates_x = self._gates(x)
        gates_z = self._gates(z)
        squares = self.readout**2
        if self.num_outputs is not None:
            squares = squares.mean(-1)
        weighted = gates_x * squares[..., None]
        return jnp.einsum("...in,...im->...nm", weighted, gates_z, precision=EXACT)

    def _gates(self, z: Array) -> Array:
        u = self._preactivations(z)
        return jnp.where(u > 0, 1.0, self.slope)

    def __call__(self, z: Float[Array, "m d"]) -> Float[Array, "..."]:
        """Outputs (m,), or (m, K), at queries z (m, d). Holds (width, m) numbers."""
        return self._outputs(self._inputs(z, "z"))

    def active(self, z: Float[Array, "m d"]) -> Bool[Array, "... m width"]:
        """Which neurons have u_i(z) > 0, (m, width).

        The gate phi'(u_i(z)) is 1 there and `slope` elsewhere.
        """
        u = self._preactivations(self._inputs(z, "z"))
        return jnp.swapaxes(u > 0, -1, -2)

    def input_gradient(
        self, z: Float[Array, "m d"], weights: Float[Array, "m k"] | None = None
    ) -> Float[Array, "... m d"]:
        """Grad f(z) = sum_i a_i phi'(u_i(z)) w_i at every row of z, (m, d); of K outputs that of
        <weights_j, f(z_j)>, with weights (m, K).
        """
        z = self._inputs(z, "z")
        found = None if weights is None else np.shape(weights)
        wanted = None if self.num_outputs is None else (len(z), self.num_outputs)
        if found != wanted:
            said = "left out for a single output" if wanted is None else f"of shape {wanted}"
            raise ValueError(f"weights must be {said}; got {found}")
        if weights is None:
            return self._gradients(z)
        return self._gradients(z, as_float(weights, "weights"))

    def empirical_phi(
        self, x: Float[Array, "n d"], z: Float[Array, "m d"] | None = None
    ) -> Float[Array, "... n m"]:
        """Phi_m(x, z), (n, m); z omitted: between the rows of x.

            Phi_m(x, z) = sum_i a_i^2 phi'(u_i(x)) phi'(u_i(z))

        Of K outputs the mean over them. Over initialisations its mean is Phi and its variance
        ((1 + 2/K) Q - Phi^2) / width, Q = Phi for slope^2 (theory: 2), twice that for a doubled
        network.
        """
        x = self._inputs(x, "x")
        z = x if z is None else self._inputs(z, "z")
        return self._phi(x, z)

    def empirical_ntk(
        self, x: Float[Array, "n d"], z: Float[Array, "m d"] | None = None
    ) -> Float[Array, "... n m"]:
        """K_m(x, z), the tangent kernel of this very network, (n, m).

            K_m(x, z) = Phi_m(x, z) (<x, z> + c),   c = train_bias

        Source: theory 0.1; its mean over initialisations is `kernel.ntk`.
        """
        x = self._inputs(x, "x")
        z = x if z is None else self._inputs(z, "z")
        product = jnp.matmul(x, z.T, precision=EXACT) + float(self.train_bias)
        phi = self.empirical_phi(x, z)
        dtype = common_dtype(phi, product)
        factor = jnp.broadcast_to(product.astype(dtype), phi.shape)
        return phi.astype(dtype) * factor

    def centred(self, initial: "TwoLayerNetwork") -> "Centred":
        """f - f0, with f0 the network `initial` that training began from."""
        return Centred(self, initial)


class Centred(eqx.Module):
    """f - f0: what training added to a network.

    Its gradient, hence its perturbations, are grad f - grad f0. Centring both, outputs and
    gradients, is the setting of the theorems without initial function (theory: 4.4, 13.8).

    Example:
        >>> bias, readout = jnp.zeros(2), jnp.asarray([3.0, 4.0])
        >>> start = TwoLayerNetwork(jnp.eye(2), bias, readout, slope=0.0)
        >>> trained = TwoLayerNetwork(2 * jnp.eye(2), bias, readout, slope=0.0)
        >>> change, z = trained.centred(start), jnp.asarray([[1.0, -1.0]])
        >>> change(z).tolist(), change.input_gradient(z).tolist()
        ([3.0], [[3.0, 0.0]])
    """

    network: TwoLayerNetwork
    initial: TwoLayerNetwork

    @property
    def num_outputs(self) -> int | None:
        """K, or None for a single output."""
        return self.network.num_outputs

    def __call__(self, z: Float[Array, "m d"]) -> Float[Array, "..."]:
        """Outputs of f less those of f0 at z (m, d): (m,), or (m, K)."""
        return self.network(z) - self.initial(z)

    def input_gradient(
        self, z: Float[Array, "m d"], weights: Float[Array, "m k"] | None = None
    ) -> Float[Array, "... m d"]:
        """grad f - grad f0 at z, (m, d), as `TwoLayerNetwork.input_gradient`."""
        before = self.initial.input_gradient(z, weights)
        return self.network.input_gradient(z, weights) - before


class Mean(eqx.Module):
    """The mean of the functions of an ensemble, and of their gradients.

    Example:
        >>> nets = jax.vmap(lambda key: TwoLayerNetwork.init(2, 8, key=key))(
        ...     jax.random.split(jax.random.key(0), 3)
        ... )
        >>> mean, z = Mean(nets), jnp.asarray([[1.0, -1.0]])
        >>> bool(jnp.allclose(mean(z), nets(z).mean(0))), mean.input_gradient(z).shape
        (True, (1, 2))

    Attributes:
        networks: k networks as one pytree, or `Centred` ones; networks(z) is (k, m).
    """

    networks: TwoLayerNetwork | Centred

    @property
    def num_outputs(self) -> int | None:
        """K, or None for a single output."""
        return self.networks.num_outputs

    def __call__(self, z: Float[Array, "m d"]) -> Float[Array, "m ..."]:
        """The mean output of the networks at z (m, d): (m,), or (m, K)."""
        return self.networks(z).mean(0)

    def input_gradient(
        self, z: Float[Array, "m d"], weights: Float[Array, "m k"] | None = None
    ) -> Float[Array, "m d"]:
        """The mean input gradient, (m, d); arguments as of `TwoLayerNetwork.input_gradient`."""
        return self.networks.input_gradient(z, weights).mean(0)
