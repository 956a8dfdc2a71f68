"""What may be given as inputs and targets: every entry point takes and refuses the same."""

from typing import Any

import jax
import jax.experimental.sparse
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pandas as pd
import pytest
import scipy.sparse

import perturbkernel as pk
from perturbkernel.data.labels import class_indices
from perturbkernel.networks.two_layer import TwoLayerNetwork

KERNEL = pk.TwoLayerNTK()
RNG = np.random.default_rng(0)
X = np.round(RNG.normal(size=(6, 3)), 2).astype(np.float16).astype(np.float32)
Y = np.where(np.arange(6) % 2 == 0, 1.0, -1.0).astype(np.float32)
NET = TwoLayerNetwork.init(3, 4, key=jax.random.key(0))

# Each returns what became of the inputs, or something computed from them.
ENTRIES = {
    "fit": lambda x: pk.fit(KERNEL, x, Y)(X),
    "predict": lambda x: pk.fit(KERNEL, X, Y)(x),
    "ntk": lambda x: KERNEL.ntk(x),
    "matvec": lambda x: KERNEL.matvec(X, x, Y),
    "network": lambda x: NET(x),
    "Dataset": lambda x: pk.Dataset(x, Y).inputs,
    "from_arrays": lambda x: pk.data.from_arrays(x, Y).inputs,
}
TARGETS = {
    "fit": lambda y: pk.fit(KERNEL, X, y)(X),
    "squared": lambda y: pk.fit(KERNEL, X, y, loss="squared")(X),
    "matvec": lambda y: KERNEL.matvec(X, X, y),
    "Dataset": lambda y: pk.Dataset(X, y).targets,
}


def masked(array: np.ndarray, *entries: Any) -> np.ma.MaskedArray:
    result = np.ma.array(array, mask=np.zeros(array.shape, bool))
    for entry in entries:
        result[entry] = np.ma.masked
    return result


class Tensor:
    """Converts as PyTorch's tensors do, or not."""

    def __init__(self, array=None):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        if self.array is None:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad.")
        return self.array


def same_numbers(a: np.ndarray) -> list[Any]:
    """The numbers of `a` in other clothes."""
    return [
        a.astype(">f4"),
        a.astype(">f8"),
        a.astype(np.longdouble),
        a.astype(np.float16),
        a.astype(">f2"),
        jnp.asarray(a, jnp.float16),
        a.tolist(),
        tuple(a),
        masked(a),
        pd.DataFrame(a) if a.ndim == 2 else pd.Series(a),
        Tensor(a),
    ]


@pytest.mark.parametrize("entry", ENTRIES)
def test_inputs_in_other_clothes_are_the_same_numbers(entry):
    wanted = ENTRIES[entry](X)
    assert wanted.dtype == jnp.float32
    for given in same_numbers(X):
        found = ENTRIES[entry](given)
        assert found.dtype == jnp.float32
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("entry", TARGETS)
def test_targets_in_other_clothes_are_the_same_numbers(entry):
    wanted = TARGETS[entry](Y)
    integers = [Y.astype(kind) for kind in (int, ">i4", ">i8", np.int8)]
    for given in [*same_numbers(Y), *integers, pd.Series(Y.astype(int), dtype="Int64")]:
        found = TARGETS[entry](given)
        assert found.dtype == jnp.float32
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, ml_dtypes.float8_e4m3fn])
def test_what_is_narrower_than_float32_computes_in_float32(dtype):
    narrow, wide = X.astype(dtype), X.astype(dtype).astype(np.float32)
    for entry in ENTRIES.values():
        for given in (narrow, jnp.asarray(narrow)):
            assert entry(given).dtype == jnp.float32
            np.testing.assert_array_equal(entry(given), entry(wide))


def test_longdouble_is_float64_under_x64(x64):
    third = np.full((2, 1), np.longdouble(1) / 3)
    assert pk.Dataset(third, [1, -1]).inputs.dtype == jnp.float64
    np.testing.assert_array_equal(pk.Dataset(third, [1, -1]).inputs, third.astype(np.float64))


REFUSED: dict[str, tuple[Any, str]] = {
    "masked": (masked(X, (0, 1)), "masked entries; use .*filled"),
    "masked rows": ([masked(X[0], 1), *X[1:]], "masked entries; use .*filled"),
    "nested": ([[np.ma.masked, 1.0, 2.0], *X[1:].tolist()], "masked entries; use .*filled"),
    "timedelta": (X.astype("m8[s]"), r"real numbers; got dtype timedelta64\[s\]"),
    "datetime": (X.astype("M8[s]"), r"real numbers; got dtype datetime64\[s\]"),
    "csr matrix": (scipy.sparse.csr_matrix(X), r"dense array; got csr_matrix: use .*\.toarray\(\)"),
    "coo array": (scipy.sparse.coo_array(X), r"dense array; got coo_array: use .*\.toarray\(\)"),
    "BCOO": (jax.experimental.sparse.BCOO.fromdense(jnp.asarray(X)), r"use .*\.todense\(\)"),
    "object": (X.astype(object), "real numbers; got dtype object"),
    "structured": (np.zeros((6, 3), [("a", "f4")]), "real numbers; got dtype"),
    "complex": (X + 1j, "real numbers; got dtype complex"),
    "keys": (jax.random.split(jax.random.key(0), (6, 3)), "real numbers; got dtype key"),
    "missing": (
        pd.DataFrame(X).assign(a=pd.array([None] * 6, "Int64")),
        r"use .*\.to_numpy\(float",
    ),
    "text": ([["1", "2", "3"]] * 6, "real numbers; got list"),
    "tensor": (Tensor(), "real numbers; got Tensor: Can't call"),
    "1e30": (X * 1e30, "below .* in float32, or squares overflow"),
    "1e39": (X.astype(float) * 1e39, r"finite; .* \(float32 holds numbers up to 3.4e\+38\)"),
    "longdouble": (X * np.longdouble("1e4000"), "must be finite"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("entry", ENTRIES)
def test_inputs_that_are_refused(entry, case):
    given, match = REFUSED[case]
    with pytest.raises((TypeError, ValueError), match=match):
        ENTRIES[entry](given)


@pytest.mark.parametrize("entry", TARGETS)
def test_targets_that_are_refused(entry):
    for given, match in (
        (masked(Y, 2), "masked entries"),
        (Y.astype("m8[D]"), "real numbers; got dtype timedelta64"),
        (scipy.sparse.csr_array(Y[None]), "dense array"),
        (Y.astype(object), "real numbers; got dtype object"),
    ):
        with pytest.raises((TypeError, ValueError), match=match):
            TARGETS[entry](given)


def test_class_labels_are_checked_alike():
    labels = np.array([0, 1, 2, 0, 1, 2])
    for kind in (">i4", ">i8", np.uint8):
        np.testing.assert_array_equal(class_indices(labels.astype(kind), "y", 6, 3), labels)
    with pytest.raises(ValueError, match="y must not have masked entries"):
        class_indices(masked(labels, 1), "y", 6, 3)
    with pytest.raises(ValueError, match="got dtype timedelta64"):
        class_indices(labels.astype("m8[s]"), "y", 6, 3)
    with pytest.raises(ValueError, match="targets must not have masked entries"):
        pk.data.from_arrays(X, masked(labels, 1), classes=(0, 1))
