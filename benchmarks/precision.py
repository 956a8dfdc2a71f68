"""How right float32 is: largest errors of angles, outputs and input gradients against NumPy in
float64.

The reference takes the angle of each pair from its sine and cosine, the sine from the difference of
the points, so that nothing cancels (theory: 0.2 to 0.5). Inputs are float32 numbers, taken as
exact.
"""

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perturbkernel import TwoLayerNTK
from perturbkernel.engine.tiles import exact_matmul
from perturbkernel.kernels.angles import products_and_angles

from . import alternatives as other
from .harness import Case, Group, Row, Settings

N, M, D = 256, 64, 100
_NEAR, _TINY = 1e-4, 1e-3


def _normal(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((M, D))


def _near(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    direction = _normal(rng) / np.sqrt(D)
    return x[:M] + _NEAR * direction


def _tiny(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _TINY * _normal(rng) / np.sqrt(D)


# Kind -> queries from the points and a generator.
POINTS = {
    "new points": lambda x, rng: _normal(rng),
    "training points": lambda x, rng: x[:M],
    "near training points, 1e-4": _near,
    "tiny inputs, norm 1e-3": _tiny,
}


#: "angles", "outputs" and "gradients", or some of them.
Arrays = dict[str, np.ndarray]
#: (z, x, coef) -> such values.
Method = Callable[..., dict[str, Any]]


class Draw(NamedTuple):
    """z (M, D), x (N, D), coef (N,), float32."""

    z: np.ndarray
    x: np.ndarray
    coef: np.ndarray


def draw(kind: str, seed: int) -> Draw:
    """Returns queries, points and coefficients.

    Tiny: both are, as when a network trains on perturbations alone.
    """
    rng = np.random.default_rng(seed)
    scale = 1
    if kind.startswith("tiny"):
        scale = _TINY / np.sqrt(D)
    normal = rng.standard_normal((N, D))
    x = normal * scale
    single = x.astype(np.float32)
    x = single.astype(float)
    heads = rng.random(N) < 0.5
    coef = np.where(heads, 1, -1) / N
    z = POINTS[kind](x, rng)
    return Draw(z.astype(np.float32), single, coef.astype(np.float32))


def reference(z: np.ndarray, x: np.ndarray, coef: np.ndarray) -> Arrays:
    """The "angles" (M, N), "outputs" (M,) and "gradients" (M, D) of the kernel with trained biases,
    in float64.
    """
    x = x.astype(float)
    coef = coef.astype(float)
    rows: dict[str, list] = {"angles": [], "outputs": [], "gradients": []}
    for q in z.astype(float):
        of_query = _reference_at(q, x, coef)
        for name, value in of_query.items():
            rows[name].append(value)
    return {name: np.stack(values) for name, values in rows.items()}


def _reference_at(q: np.ndarray, x: np.ndarray, coef: np.ndarray) -> Arrays:
    """A row of each, for a query q (D,)."""
    d = len(q)
    square = q @ q
    product = x @ q
    e = x - q
    ratio = e @ q / square
    side = e - ratio[:, None] * q
    s_squared = 1 + square / d
    # S_x s_q sin(theta)
    across = np.sum(side**2, axis=1)
    along = ratio**2 * square
    sine = np.sqrt((along + s_squared * across) / d)
    cosine = 1 + product / d
    theta = np.arctan2(sine, cosine)
    phi = 0.5 - theta / (2 * np.pi)
    linear = product + 1
    stretched = ratio / s_squared
    tangent = side + stretched[:, None] * q
    turns = sine > 0
    positive = np.where(turns, sine, 1)
    divisor = 2 * np.pi * d * positive
    weight = coef * linear / divisor
    turn = np.where(turns, weight, 0)
    values = phi * linear
    with_fixed_gates = (coef * phi) @ x
    return {
        "angles": theta,
        "outputs": coef @ values,
        "gradients": with_fixed_gates + turn @ tangent,
    }


def errors(got: dict[str, Any], wanted: Arrays) -> dict[str, float]:
    """Largest error: of an angle, relative to it (an angle 0: absolute); of outputs, to the
    largest; of gradients, to the longest. NaN stays NaN.
    """
    out = {}
    for name, value in got.items():
        true = wanted[name]
        found = np.asarray(value, float)
        off = np.abs(found - true)
        if name == "angles":
            relative = off / np.where(true > 0, true, 1)
            error = relative.max()
        elif name == "outputs":
            largest = np.abs(true).max()
            error = off.max() / largest
        else:
            longest = np.linalg.norm(true, axis=1).max()
            furthest = np.linalg.norm(off, axis=1).max()
            error = furthest / longest
        out[name] = float(error)
    return out


@cache
def perturbkernel() -> Method:
    """The package itself."""
    kernel = TwoLayerNTK(0.0, train_bias=True)

    @jax.jit
    def angles(z, x):
        _, theta = products_and_angles(z, x)
        return theta

    return lambda z, x, coef: {
        "angles": angles(z, x),
        "outputs": kernel.matvec(z, x, coef),
        "gradients": kernel.input_gradient(z, x, coef),
    }


def textbook(matmul: Callable[..., Any] = exact_matmul) -> Method:
    """The formula as it is written, arccos of a clipped cosine, and autodiff; with the given
    product of matrices.
    """

    def length(x):
        square = jnp.sum(x * x, axis=1)
        return jnp.sqrt(1 + square / D)

    def angle(z, x):
        s_z = length(z)
        s_x = length(x)
        product = matmul(z, x.T)
        covariance = 1 + product / D
        rho = covariance / (s_z[:, None] * s_x)
        cosine = jnp.clip(rho, -1, 1)
        return product, jnp.arccos(cosine)

    @jax.jit
    def angles(z, x):
        _, theta = angle(z, x)
        return theta

    def outputs(z, x, coef):
        product, theta = angle(z, x)
        phi = 0.5 - theta / (2 * np.pi)
        values = phi * (product + 1)
        return values @ coef

    def total(z, x, coef):
        return jnp.sum(outputs(z, x, coef))

    evaluate = jax.jit(outputs)
    gradients = jax.jit(jax.grad(total))
    return lambda z, x, coef: {
        "angles": angles(z, x),
        "outputs": evaluate(z, x, coef),
        "gradients": gradients(z, x, coef),
    }


@cache
def _arccos_and_autodiff() -> Method:
    return textbook()


@cache
def _neural_tangents() -> Method:
    outputs = other.tangents_matvec()
    gradients = other.tangents_input_gradient()
    return lambda z, x, coef: {
        "outputs": outputs(z, x, coef),
        "gradients": gradients(z, x, coef),
    }


# Cached, so that all kinds of points share one compilation.
METHODS = {
    "perturbkernel": perturbkernel,
    "arccos and autodiff": _arccos_and_autodiff,
    "neural-tangents": _neural_tangents,
}


def _measure(kind: str, settings: Settings) -> Iterator[Row]:
    first = settings.seed
    rounds = settings.rounds(9, 5)
    seeds = range(first, first + rounds)
    for subject, build in METHODS.items():
        try:
            method = build()
            found = []
            for seed in seeds:
                drawn = draw(kind, seed)
                got = method(*map(jnp.asarray, drawn))
                wanted = reference(*drawn)
                found.append(errors(got, wanted))
            for name in found[0]:
                samples = tuple(one[name] for one in found)
                wrong = ~np.isfinite(samples)
                bad = int(wrong.sum())
                note = f"NaN in {bad} of {len(samples)} draws" if bad else ""
                yield Row(name, kind, subject, "NumPy float64", samples, note=note)
        except Exception as error:
            row = Row("all", kind, subject, "NumPy float64")
            yield row.but(error)


def _cases(settings: Settings) -> list[Case]:
    cases = []
    for kind in POINTS:
        words, *_ = kind.split(",")
        name = words.replace(" ", "-")
        measure = partial(_measure, kind, settings)
        cases.append(Case(name, kind, measure, cost=1))
    return cases


GROUP = Group(
    "precision",
    "Precision of float32",
    f"largest relative error in a draw of n = {N}, m = {M}, d = {D}, against float64",
    _cases,
)
