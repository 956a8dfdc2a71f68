"""Sizes within which provably no perturbation changes the decision of a trained network."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from perturbkernel.arrays import as_jax
from perturbkernel.attacks.certificates.radius import Network, Numbers, rounding_of, sizes_of
from perturbkernel.attacks.certificates.width import wide_of
from perturbkernel.attacks.problem import check_memory
from perturbkernel.checks import (
    as_float,
    as_inputs,
    as_targets,
    check_choice,
    check_count,
    check_number,
    is_traced,
)
from perturbkernel.data.labels import class_indices
from perturbkernel.display import Displayed
from perturbkernel.engine.memory import default_memory
from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.training.initial_function import InitialFunction
from perturbkernel.training.predictors import KernelPredictor

#: Norms in which there is a bound: l0 leaves entries unlimited.
CERTIFIED_NORMS = ("l2", "linf", "l1")


@dataclass(frozen=True, repr=False)
class CertifiedSize(Displayed):
    """Sizes up to which no perturbation changes a decision. `certified_size` returns it.

    Attributes:
        size: (n,), at inputs + delta the decision is the same for every |delta| <= size; 0 where
            the decision is not the target's, or rests on rounding.
        decision: (n,), the sign or the class that stands within it.
        norm: in which sizes are measured.
        status: "ok", or in words at how many inputs the decision rests on rounding.
        against_targets: whether targets were given.
        width: of the networks that the sizes are of; None: of their limit, f itself.
        failure: the probability that they may be wrong at one input, over networks of that width.
    """

    size: Float[np.ndarray, " n"]
    decision: Int[np.ndarray, " n"]
    norm: str
    status: str
    against_targets: bool
    width: int | None = None
    failure: float = 0.0

    def _numbers(self) -> dict[str, Any]:
        networks = {}
        if self.width is not None:
            networks = {"width": f"{self.width:,}", "failure": self.failure}
        return {
            "norm": self.norm,
            **networks,
            "points": len(self.size),
            "above 0": int((self.size > 0).sum()),
            "size": self.size,
            "status": self.status,
        }

    def accuracy(self, sizes: Sequence[float] | Float[ArrayLike, " s"]) -> Float[np.ndarray, " s"]:
        """The certified accuracy, (s,): the share of inputs that stay right under every
        perturbation of each of these sizes. Without targets, the share whose decision stays the
        same.

        Never above the accuracy under an attack of that size.

        Example:
            >>> import perturbkernel as pk
            >>> x, y = jnp.asarray([[3.0, 1.0], [-2.0, 1.0]]), jnp.asarray([1.0, -1.0])
            >>> certified = pk.certified_size(pk.fit(pk.TwoLayerNTK(), x, y), x, y)
            >>> certified.accuracy([0.0, 100.0]).tolist()
            [1.0, 0.0]
        """
        wanted = np.asarray(as_float(sizes, "sizes"), float)
        if wanted.ndim != 1 or wanted.size == 0 or wanted.min() < 0:
            raise ValueError(f"sizes must be a list of numbers >= 0; got {sizes!r}")
        size = self.size[None]
        stands = (size >= wanted[:, None]) & (size > 0)
        return stands.mean(1)


@partial(jax.jit, static_argnames=("norm", "memory"))
def _sizes(network, numbers, z, extra, extra_rounding, lipschitz, *, norm, memory):
    return sizes_of(network, numbers, z, extra, extra_rounding, lipschitz, norm=norm, memory=memory)


def certified_size(
    f: KernelPredictor,
    z: Float[ArrayLike, "n d"],
    targets: Float[ArrayLike, " n"] | Int[ArrayLike, " n"] | None = None,
    *,
    norm: str = "l2",
    lipschitz: float | None = None,
    width: int | None = None,
    failure: float = 0.1,
    memory: float | None = None,
) -> CertifiedSize:
    """Sizes within which no perturbation of an input changes the decision, (n,): the sign of one
    output, the largest of K.

    For every rival the margin h = f_y - f_k is expanded about the input, and the largest r is found
    with

        |grad h|_dual r + q r^2 / 2 + remainder(r) < h(z),    <delta, H delta> <= q |delta|^2,

    H the Hessian of h, in which the coefficients of the training points cancel as they do in f. The
    remainder bounds each point's third derivative along every line through the input; points that
    the ball comes near are expanded to order 1 or 0. The statement is about the function of the
    stored coefficients in exact arithmetic: all sums are computed in float64, and their rounding is
    taken off the margin. `minimum_norm` finds a size from above.

    With `width` the sizes hold for networks of that width in place of their limit f. At each input,
    with probability at least 1 - `failure` over a network's initialisation, it has f's decision at
    every perturbation of that size, after training to the time of f by gradient flow or descent.
    What such a network may have less than f is then taken off the margin as well.

    Args:
        f: a predictor with a TwoLayerNTK, of one output or K.
        z: inputs, (n, d).
        targets: true labels, in {-1, +1} or class indices: sizes are 0 where f is wrong. Left out:
            f's own decisions.
        norm: "l2", "linf" or "l1".
        lipschitz: where f started from a function of which nothing is known, a number L with |f0(z
            + delta) - f0(z)| <= L |delta| in this norm; for K outputs, of every difference of two.
            Zero starts and `sample_initial` need none.
        width: of networks that start antisymmetrically doubled (neurons (w, b, a) and (w, b, -a)
            with a ~ N(0, 1/width), so that f0 = 0), even. f must have one output and be trained
            with the identity loss, without a ridge, from zero. Left out: the limit itself.
        failure: in (0, 1]. At all inputs at once the sizes hold with probability 1 - n `failure`.
        memory: bytes for temporaries, about; the kernel's or the device's default if left out. Two
            or three (d, d) matrices are held in any case.

    Raises:
        TypeError: f is no KernelPredictor, or has another kernel, for which there is no bound.
        ValueError: l0; bad inputs or targets; an initial function without `lipschitz`; a `width`
            with a predictor of which nothing is known at finite width; a call inside `jit`.

    Cost: n_train d^2 + 2 d^3 operations for every input and rival, and n_train^2 d once with
    `width`. Theory: 17.1, 17.4.

    Example:
        >>> import perturbkernel as pk
        >>> x, y = jnp.asarray([[3.0, 1.0], [-2.0, 1.0]]), jnp.asarray([1.0, -1.0])
        >>> f = pk.fit(pk.TwoLayerNTK(), x, y)
        >>> attacked = pk.minimum_norm(f, x).size
        >>> certified = pk.certified_size(f, x, y)
        >>> bool((certified.size <= attacked).all()), bool((certified.size > attacked / 3).all())
        (True, True)
    """
    kernel = _checked_kernel(f)
    check_choice(norm, "norm", CERTIFIED_NORMS)
    check_memory(memory)
    if lipschitz is not None:
        check_number(lipschitz, "lipschitz")
    check_number(failure, "failure", high=1, open_low=True)
    if width is not None:
        _check_wide(f, width)
    if is_traced(f.dual_coef, f.inputs, z):
        raise ValueError("certified_size is computed outside jit; its arguments must have values")
    with jax.enable_x64(True):
        points = as_inputs(z, "z", like=f.inputs.shape[1:], flat=True)
    extra = _Extra.of(f, points, kernel, lipschitz)
    limit = memory or kernel.memory or default_memory()
    with jax.enable_x64(True):
        network, numbers = _as_network(f, kernel, norm, extra.initial)
        if width is not None:
            coef = network.coef[:, 0]
            wide = _wide(network.x, coef, numbers, width, failure, kernel.slope, int(limit))
            network = network._replace(wide=wide)
        queries = as_jax(np.asarray(points, np.float64))
        found = _sizes(
            network,
            numbers,
            queries,
            jnp.asarray(extra.values),
            jnp.asarray(extra.rounding),
            jnp.full(len(queries), extra.lipschitz),
            norm=norm,
            memory=int(limit),
        )
        size, decision, decided = map(np.asarray, found)
    if targets is not None:
        size = np.where(decision == _as_decisions(targets, len(size), f.num_outputs), size, 0.0)
    found = size, decision, norm, _status(decided), targets is not None
    return CertifiedSize(*found, width, failure if width else 0.0)


_wide = jax.jit(wide_of, static_argnames=("memory",))


def _check_wide(f: KernelPredictor, width: int) -> None:
    """Raises unless networks of this width are known to train as f does."""
    check_count(width, "width", low=2)
    if width % 2:
        raise ValueError(f"width of a doubled network must be even; got {width}")
    trained = "f must be trained with the identity loss, without a ridge, where width is given: "
    if f.loss != "identity" or np.any(np.asarray(f.ridge) != 0):
        raise ValueError(
            f"{trained}networks of finite width have coefficients of their own under another; "
            f"got {f.loss} loss and ridge {f.ridge}"
        )
    if f.num_outputs not in (None, 1):
        raise ValueError(f"width is for a predictor of one output; f has {f.num_outputs}")
    if f.initial is not None:
        raise ValueError(
            "width is for networks that start doubled, at zero; f has an initial function"
        )


def _checked_kernel(f: Any) -> TwoLayerNTK:
    if not isinstance(f, KernelPredictor):
        raise TypeError(
            f"f must be a KernelPredictor, whose kernel bounds what a perturbation can do; "
            f"got {type(f).__name__}"
        )
    if not isinstance(f.kernel, TwoLayerNTK):
        raise TypeError(
            f"certified sizes are known for TwoLayerNTK; this predictor's kernel is {f.kernel!r}"
        )
    return f.kernel


@dataclass(frozen=True)
class _Extra:
    """What f0 adds: a kernel sum that is expanded, or values (m, K) with a Lipschitz number."""

    initial: InitialFunction | None
    values: np.ndarray
    rounding: np.ndarray
    lipschitz: float

    @classmethod
    def of(cls, f: KernelPredictor, z: Array, kernel: TwoLayerNTK, lipschitz: float | None):
        nothing = np.zeros((len(z), f.num_outputs or 1))
        exact = np.zeros(len(z))
        initial = f.initial
        if initial is None:
            return cls(None, nothing, exact, 0.0)
        if isinstance(initial, InitialFunction) and _is_same(initial.kernel, kernel):
            return cls(initial, nothing, exact, 0.0)
        if lipschitz is None:
            raise ValueError(
                "f started from a function of which nothing is known: lipschitz=, a number L with "
                "|f0(z + delta) - f0(z)| <= L |delta|, is needed for a bound; one of "
                "pk.sample_initial, or none, needs no number"
            )
        given = np.asarray(_values(initial, z))
        values = given.reshape(nothing.shape).astype(float)
        rounding = 64 * float(np.finfo(given.dtype).eps) * np.abs(values).max(axis=1)
        return cls(None, values, rounding, float(lipschitz))


def _values(initial: Callable[..., Any], z: Array) -> Any:
    """Of a function that may expect the ambient precision."""
    return initial(jnp.asarray(np.asarray(z)))


def _is_same(one: Any, other: TwoLayerNTK) -> bool:
    """Sigma has the slope in it, and nothing else of the kernel."""
    return isinstance(one, TwoLayerNTK) and one.slope == other.slope


def _as_network(
    f: KernelPredictor, kernel: TwoLayerNTK, norm: str, initial: InitialFunction | None
) -> tuple[Network, Numbers]:
    """Everything in float64; call it where x64 is enabled."""
    x = _double(f.inputs)
    coef = _double(f.dual_coef).reshape(len(x), -1)
    points = initial_coef = None
    count = len(x)
    if initial is not None:
        points = _double(initial.points)
        initial_coef = _double(initial.coef).reshape(len(points), -1)
        count += len(points)
    d = x.shape[1]
    numbers = Numbers(
        cone=jnp.asarray((1 - kernel.slope) ** 2 / (2 * np.pi)),
        gate=jnp.asarray((1 + kernel.slope**2) / 2),
        bias=jnp.asarray(float(kernel.train_bias)),
        reach=jnp.asarray(np.sqrt(d) if norm == "linf" else 1.0),
        rounding=jnp.asarray(rounding_of(count, d)),
    )
    return Network(x, coef, points, initial_coef), numbers


def _double(array: Any) -> Array:
    return jnp.asarray(np.asarray(array), jnp.float64)


def _as_decisions(targets: Any, n: int, outputs: int | None) -> np.ndarray:
    if outputs in (None, 1):
        return np.asarray(as_targets(targets, "targets", n))
    return np.asarray(class_indices(targets, "targets", n, outputs))


def _status(decided: np.ndarray) -> str:
    undecided = int((~decided).sum())
    if undecided == 0:
        return "ok"
    return f"the decision rests on rounding at {undecided} of {len(decided)} inputs"
