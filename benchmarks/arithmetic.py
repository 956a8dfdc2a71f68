"""The arithmetic of a device, an accelerator's above all: how fast its products are in each
precision, what each precision costs the kernel sums, and how near they come to its bounds.

Accelerators can round the inputs of a float32 product to TF32 (10 bits of fraction) or bfloat16
(7), which is faster. This package never does. On a CPU the roundings are imitated: errors are those
of an accelerator, times are not, and rows of times are skipped.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from perturbkernel import TwoLayerNTK

from . import precision
from .harness import Case, Group, NotHere, Row, Settings, compare
from .products import described, points, product

# Points and queries of the products, and the dimension of MNIST.
SHAPE, QUICK_SHAPE = (8192, 8192, 784), (1024, 1024, 784)
_ACCELERATOR_SHAPE = (32768, 32768, 784)


class Mode(NamedTuple):
    """How inputs are rounded: bits of the exponent and of the fraction; XLA's name."""

    exponent: int
    fraction: int
    preset: str


MODES = {
    "float32 at highest": None,
    "TF32": Mode(8, 10, "TF32_TF32_F32"),
    "bfloat16": Mode(8, 7, "BF16_BF16_F32"),
}


def imitated() -> bool:
    """Whether products in these precisions are imitated here: XLA's CPU has none."""
    return jax.default_backend() == "cpu"


def matmul(a: Array, b: Array, mode: Mode | None) -> Array:
    """a @ b with inputs rounded as `mode` says, sums in float32; None rounds nothing."""
    if mode is None:
        return jnp.matmul(a, b, precision="highest")
    if imitated():
        # The product of two rounded fractions, 22 bits at most, is exact in float32.
        a = lax.reduce_precision(a, mode.exponent, mode.fraction)
        b = lax.reduce_precision(b, mode.exponent, mode.fraction)
        return jnp.matmul(a, b, precision="highest")
    preset = lax.DotAlgorithmPreset[mode.preset]
    return jnp.matmul(a, b, precision=preset)


@contextlib.contextmanager
def skipped_where_missing(name: str) -> Iterator[None]:
    """What JAX raises for products that the device does not have becomes `NotHere`."""
    try:
        yield
    except (ValueError, jax.errors.JaxRuntimeError) as error:
        if "not supported" in str(error) or "UNIMPLEMENTED" in str(error):
            raise NotHere(f"no products in {name} on {jax.default_backend()}") from error
        raise


# --- errors ---


def _errors(kind: str, settings: Settings) -> Iterator[Row]:
    """Of kernel sums and gradients against float64, the formula with products in each precision."""
    rounds = settings.rounds(9, 3)
    draws = [precision.draw(kind, settings.seed + i) for i in range(rounds)]
    wanted = [precision.reference(*drawn) for drawn in draws]
    note = "inputs rounded as an accelerator does" if imitated() else ""
    methods: dict[str, tuple[Callable[[], precision.Method], str]] = {
        "perturbkernel": (precision.perturbkernel, "")
    }
    for name, mode in MODES.items():
        rounded = partial(matmul, mode=mode)
        said = note if mode else ""
        methods[f"formula, {name}"] = (partial(precision.textbook, rounded), said)
    for subject, (build, said) in methods.items():
        row = Row("errors", kind, subject, "NumPy float64", note=said)
        try:
            method = build()
            found = []
            for drawn, true in zip(draws, wanted, strict=True):
                with skipped_where_missing(subject):
                    got = method(*map(jnp.asarray, drawn))
                errors = precision.errors(got, true)
                found.append(errors)
            for name in ("outputs", "gradients"):
                samples = tuple(one[name] for one in found)
                yield replace(row, what=f"error of {name}", samples=samples)
        except Exception as error:
            yield row.but(error)


# --- times ---


def _shape(settings: Settings) -> tuple[int, int, int]:
    if settings.quick:
        return QUICK_SHAPE
    return SHAPE if imitated() else _ACCELERATOR_SHAPE


def _roofline(settings: Settings) -> Iterator[Row]:
    """Products in each precision, a pass over their result, and the kernel sums, against a product
    in float32.
    """
    shape = _shape(settings)
    drawn = points(shape, settings.seed)
    x, z, coef = map(jnp.asarray, drawn)
    n, m, d = shape
    one_product = 2.0 * n * m * d
    kernel = TwoLayerNTK(0.0, train_bias=True)
    base = partial(product, x, z)
    stored = base()
    calls: dict[str, Callable] = {}
    for name, mode in MODES.items():
        calls[name] = partial(_product, name, mode, x, z)
    calls["read and write the result"] = partial(_pass, stored)
    calls["perturbkernel matvec"] = partial(kernel.matvec, z, x, coef)
    calls["perturbkernel input_gradient"] = partial(kernel.input_gradient, z, x, coef)
    work = {
        "read and write the result": (2 * stored.nbytes, "GB/s"),
        "perturbkernel input_gradient": (2 * one_product, "GFLOP/s"),
    }
    rounds = settings.rounds(9, 3)
    for name, call in calls.items():
        amount, unit = work.get(name, (one_product, "GFLOP/s"))
        compared = compare(
            "roofline",
            described(shape),
            ("float32 product", lambda: base),
            {name: lambda call=call: call},
            rounds,
        )
        for row in compared:
            yield _with_rate(row, amount, unit)


def _product(name: str, mode: Mode | None, x: Array, z: Array) -> Array:
    if mode is not None and imitated():
        raise NotHere(f"a CPU has no products in {name}")
    with skipped_where_missing(name):
        return _rounded(x, z, mode)


_rounded = jax.jit(lambda x, z, mode: matmul(x, z.T, mode), static_argnums=2)
_pass = jax.jit(lambda stored: stored + 1)


def _with_rate(row: Row, amount: float, unit: str) -> Row:
    """The row with what it reached in words."""
    if row.seconds is None:
        return row
    rate = amount / row.seconds / 1e9
    return replace(row, note=f"{rate:,.3g} {unit}")


def _cases(settings: Settings) -> list[Case]:
    sizes = described(_shape(settings))
    cost = 3 if settings.quick else 60
    cases = [Case("roofline", sizes, partial(_roofline, settings), cost)]
    for kind in ("new points", "near training points, 1e-4"):
        cases.append(Case("errors", kind, partial(_errors, kind, settings), cost=3))
    return cases


GROUP = Group(
    "arithmetic",
    "Arithmetic of the device",
    "roofline: time / time of one float32 product; errors: the largest, relative, against float64",
    _cases,
)
