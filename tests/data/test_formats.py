"""CIFAR-10, folders of images and tables: what they hold, and what damage becomes of."""

import io
import os
import pickle
import struct
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from perturbkernel import data as D
from perturbkernel.data import image_files
from perturbkernel.data.image_files import FASHION_MNIST, MNIST, standard_folder
from perturbkernel.data.pickles import read_pickle
from perturbkernel.data.tables import read_table

RNG = np.random.default_rng(0)


def batch(count: int, seed: int = 0) -> tuple[np.ndarray, list[int]]:
    """Images (n, 32, 32, 3) and labels; every label is there."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, 32, 32, 3)).astype(np.uint8)
    return pixels, [k % 10 for k in range(count)]


def planes(pixels: np.ndarray) -> np.ndarray:
    """As the files have them: all reds, all greens, all blues."""
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).reshape(len(pixels), -1)


def binary(pixels: np.ndarray, labels: list[int]) -> bytes:
    column = np.array(labels, np.uint8)[:, None]
    return np.concatenate([column, planes(pixels)], axis=1).tobytes()


def pickled(pixels: np.ndarray, labels: list[int], protocol: int = 2) -> bytes:
    names: Any = {b"batch_label": b"testing", b"filenames": [b"x.png"] * len(labels)}
    return pickle.dumps(names | {b"data": planes(pixels), b"labels": labels}, protocol)


def written(folder: Path, kind: str) -> list[tuple[np.ndarray, list[int]]]:
    """Five batches and a test batch, of 10 images each."""
    batches = [batch(10, seed) for seed in range(6)]
    names = [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]
    for name, content in zip(names, batches, strict=True):
        if kind == "binary":
            (folder / f"{name}.bin").write_bytes(binary(*content))
        else:
            (folder / name).write_bytes(pickled(*content))
    return batches


@pytest.mark.parametrize("kind", ["binary", "pickled"])
def test_both_formats_of_cifar10_are_the_same_images(tmp_path, kind):
    batches = written(tmp_path, kind)
    train = D.cifar10(tmp_path, classes=(3, 5))
    assert train.classes == ("cat", "dog") and train.n == 10 and train.image_shape == (32, 32, 3)
    whole = np.concatenate([pixels for pixels, _ in batches[:5]])
    labels = np.concatenate([labels for _, labels in batches[:5]])
    wanted = whole[np.isin(labels, (3, 5))] / 255
    np.testing.assert_allclose(train.images + train.pixel_offset, wanted, atol=1e-6)
    test = D.cifar10(tmp_path, classes=range(10), split="test")
    np.testing.assert_array_equal(test.labels, batches[5][1])
    np.testing.assert_allclose(test.images + 0.4734, batches[5][0] / 255, atol=1e-6)
    standard = D.cifar10(tmp_path, classes=range(10), split="test", standardise=True)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    np.testing.assert_allclose(standard.images, (batches[5][0] / 255 - mean) / std, atol=3e-6)
    assert standard.pixel_offset == 0


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_every_protocol_are_read(tmp_path, protocol):
    file = tmp_path / "batch"
    arrays = {
        "c": RNG.normal(size=(2, 3)),
        "f": np.asfortranarray(RNG.normal(size=(2, 3))),
        "big": np.arange(5, dtype=">i4"),
        "flags": np.array([True, False]),
        "empty": np.zeros((0, 3), np.float32),
    }
    others = {"words": ["a", "é"], "numbers": [1, 2.5, -(10**20), None, True], "in": {"a": (1, 2)}}
    file.write_bytes(pickle.dumps(arrays | others, protocol))
    found = read_pickle(file)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    assert found["numbers"] == others["numbers"]


class Calls:
    """What a hostile file is: whoever loads it calls a function."""

    def __init__(self, function: Any, *arguments: Any):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("hostile", "name"),
    [
        (lambda file: Calls(os.system, f"touch {file}"), "system"),
        (lambda file: Calls(open, str(file), "w"), "open"),
        (lambda file: Calls(exec, f"open({str(file)!r}, 'w')"), "exec"),
        (lambda file: Calls(getattr, "a", "upper"), "getattr"),
        (lambda file: Calls(np.load, str(file)), "load"),
        (lambda file: np.array([{}], object), "array"),
        (lambda file: np.array(["2020-01-01"], "M8[D]"), "dtype"),
        (lambda file: Path("x"), "Path|reconstructor"),
        (lambda file: {1, 2}, "set"),
    ],
)
def test_nothing_in_a_pickle_is_executed(tmp_path, protocol, hostile, name):
    file, mark = tmp_path / "test_batch", tmp_path / "executed"
    file.write_bytes(pickle.dumps({"data": hostile(mark), "labels": [1]}, protocol))
    with pytest.raises(ValueError, match=f"test_batch: it (asks for|holds).*({name})"):
        read_pickle(file)
    assert not mark.exists()


def test_a_pickle_cannot_declare_more_than_it_holds(tmp_path):
    file = tmp_path / "test_batch"
    stub = pickle.dumps({"data": np.zeros((2, 3))}, 2)
    file.write_bytes(stub.replace(b"K\x02K\x03", b"J\xff\xff\xff\x7fK\x03"))
    with pytest.raises(ValueError, match=r"declares an array of shape \(2147483647, 3\)"):
        read_pickle(file)
    file.write_bytes(b"\x80\x04\x8e" + struct.pack("<Q", 2**40))  # a string of 2^40 bytes
    with pytest.raises(ValueError, match="test_batch: cannot be read"):
        read_pickle(file)
    tracemalloc.start()
    file.write_bytes(b"\x80\x02}r\xff\xff\xff\x7f.")  # what is kept under the number 2^31
    assert read_pickle(file) == {} and tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()
    file.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(ValueError, match="it holds list; wanted a pickled dict"):
        read_pickle(file)


def image_bytes(kind: str, shape: tuple[int, ...] = (6, 5, 3)) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(1).integers(0, 256, shape).astype(np.uint8)
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


TABLE = b"a,b,kind\n1,2.5,cat\n-3,4e-1,dog\n0,7,cat\n"
WHOLE = {
    "test_batch.bin": binary(*batch(3)),
    "test_batch": pickled(*batch(2)),
    "table.csv": TABLE,
    "image.png": image_bytes("PNG"),
    "image.jpg": image_bytes("JPEG"),
    "image.bmp": image_bytes("BMP"),
    "image.gif": image_bytes("GIF"),
    "image.tif": image_bytes("TIFF"),
    "image.ppm": image_bytes("PPM"),
    "image.webp": image_bytes("WEBP"),
}


def read(folder: Path, name: str) -> Any:
    if name.startswith("test_batch"):
        return D.cifar10(folder, classes=(0, 1), split="test")
    if name == "table.csv":
        return D.csv(folder / name, "kind")
    return D.folder(folder)


def place(folder: Path, name: str, content: bytes) -> Path:
    file = folder / name
    if name.startswith("image"):
        (folder / "first").mkdir(exist_ok=True)
        (folder / "second").mkdir(exist_ok=True)
        (folder / "second" / "other.png").write_bytes(WHOLE["image.png"])
        file = folder / "first" / name
    file.write_bytes(content)
    return file


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.filterwarnings("ignore")
def test_damage_is_told_in_words(tmp_path_factory, name):
    """Any file cut short, or with bytes changed, gives data or a ValueError that names it."""
    folder = tmp_path_factory.mktemp("damaged")
    whole = WHOLE[name]
    place(folder, name, whole)
    assert read(folder, name).n == 2 + (name == "table.csv")
    few = min(len(whole), 300)
    spot = st.tuples(st.integers(0, few - 1), st.integers(0, 255))

    @given(st.integers(0, len(whole)) | st.just(len(whole)), st.lists(spot, max_size=3))
    @example(0, [])
    @example(len(whole) - 1, [])
    def damage(length, changes):
        content = bytearray(whole)
        for index, byte in changes:
            content[index] = byte
        file = place(folder, name, bytes(content[:length]))
        try:
            data = read(folder, name)
        except ValueError as error:
            assert str(folder) in str(error) or file.name in str(error)
        else:
            assert np.isfinite(np.asarray(data.inputs)).all()

    damage()


def test_a_folder_of_images(tmp_path):
    grey = RNG.integers(0, 256, (2, 4, 3)).astype(np.uint8)
    for name, pixels in zip(("cat", "dog"), grey, strict=True):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "1.png")
        (tmp_path / name / "notes.txt").write_text("not an image")
        (tmp_path / name / ".hidden.png").write_text("nor this")
    data = D.folder(tmp_path)
    assert data.classes == ("cat", "dog") and data.image_shape == (4, 3)
    np.testing.assert_allclose(data.inputs.reshape(2, 4, 3), grey / 255, atol=1e-7)
    np.testing.assert_array_equal(D.folder(tmp_path, ("dog", "cat")).labels, [0, 1])
    colour = RNG.integers(0, 256, (4, 3, 3)).astype(np.uint8)
    Image.fromarray(colour).save(tmp_path / "dog" / "2.png")
    (tmp_path / "bird").mkdir()
    opaque = np.concatenate([colour, np.full((4, 3, 1), 255, np.uint8)], axis=-1)
    Image.fromarray(opaque).save(tmp_path / "bird" / "3.png")
    data = D.folder(tmp_path)
    assert data.classes == ("bird", "cat", "dog") and data.image_shape == (4, 3, 3)
    np.testing.assert_array_equal(data.labels, [0, 1, 2, 2])
    np.testing.assert_allclose(data.images[0], colour / 255, atol=1e-7)
    np.testing.assert_allclose(data.images[1], np.repeat(grey[0][..., None], 3, 2) / 255, atol=1e-7)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: Image.new("L", (9, 9)).save(p / "cat" / "2.png"), "2.png: it is 9 x 9 pixels"),
        (lambda p: Image.new("RGBA", (3, 4)).save(p / "cat" / "1.png"), "transparent"),
        (lambda p: Image.new("I;16", (3, 4)).save(p / "cat" / "1.png"), "mode I;16"),
        (lambda p: (p / "cat" / "1.png").write_text("%!PS"), "1.png: cannot be read as an image"),
        (lambda p: (p / "cat" / "1.png").unlink(), "cat: found 0 files and no image"),
        (lambda p: (p / "fish").mkdir(), "fish: found 0 files and no image"),
    ],
)
def test_images_that_do_not_belong_are_told_in_words(tmp_path, change, words):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("L", (3, 4)).save(tmp_path / name / "1.png")
    change(tmp_path)
    with pytest.raises(ValueError, match=words):
        D.folder(tmp_path)


def test_folders_and_families_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("PERTURBKERNEL_DATA", "off")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        D.folder(tmp_path / "none")
    with pytest.raises(ValueError, match="found the folders none; wanted two or more"):
        D.folder(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"found no .*test_batch.bin"):
        D.cifar10(tmp_path, split="test")
    (tmp_path / "data_batch_2.bin").write_bytes(binary(*batch(1)))
    with pytest.raises(FileNotFoundError, match=r"found no data_batch_1.bin, data_batch_3.bin"):
        D.cifar10(tmp_path)
    with pytest.raises(ValueError, match="split='valid'"):
        D.cifar10(tmp_path, split="valid")
    with pytest.raises(FileNotFoundError, match="set PERTURBKERNEL_DATA to a folder with a folder"):
        D.cifar10()


def test_the_standard_folder(tmp_path, monkeypatch):
    """The variable's, or Debian's; "off" is none."""
    monkeypatch.delenv("PERTURBKERNEL_DATA", raising=False)
    monkeypatch.setattr(image_files, "_SHARED", tmp_path)
    assert standard_folder(FASHION_MNIST) is None
    (tmp_path / "fashion-mnist").mkdir()
    assert standard_folder(FASHION_MNIST) == tmp_path / "fashion-mnist"
    assert standard_folder(MNIST) is None
    other = tmp_path / "other"
    (other / "mnist").mkdir(parents=True)
    monkeypatch.setenv("PERTURBKERNEL_DATA", str(other))
    assert standard_folder(MNIST) == other / "mnist" and standard_folder(FASHION_MNIST) is None
    monkeypatch.setenv("PERTURBKERNEL_DATA", "off")
    assert standard_folder(MNIST) is None
    monkeypatch.setenv("PERTURBKERNEL_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"fashion-mnist: found none of train-images"):
        D.fashion_mnist()


def test_a_table(tmp_path):
    file = tmp_path / "mine.csv"
    file.write_bytes(TABLE)
    data = D.csv(file, "kind")
    assert data.classes == ("cat", "dog") and data.name == "mine"
    np.testing.assert_allclose(data.inputs, [[1, 2.5], [-3, 0.4], [0, 7]])
    np.testing.assert_array_equal(data.targets, [1, -1, 1])
    assert D.csv(file, -1, classes=("dog", "cat")).classes == ("dog", "cat")
    assert read_table(file, 2).names == ["a", "b"]
    # Without names, other separators, quoted, a mark of UTF-8, labels first, empty lines.
    file.write_bytes(b'\xef\xbb\xbf1;"2.0"\r\n\r\n-1;3\r\n-1;4\r\n')
    data = D.csv(file, 0, delimiter=";")
    assert data.classes == ("+1", "-1")
    np.testing.assert_array_equal(data.targets, [1, -1, -1])
    file.write_text("x,class\n1,2\n2,0\n3,1\n4,1\n")
    assert D.csv(file, "class").classes == ("0", "1", "2")
    assert D.csv(file, "class", classes=(1, 2)).n == 3
    file.write_text("x,class\n1,0.5\n2,1.5\n3,0.5\n")
    assert D.csv(file, "class").classes == ("0.5", "1.5")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "found no line"),
        ("a\n1\n", "found one column"),
        ("a,kind\n", "found no row"),
        ("a,b\n1,2\n", "0 columns are called 'kind'; the first line is a, b"),
        ("a,kind,kind\n1,2,3\n", "2 columns are called 'kind'"),
        ("a,kind\n1,x\n,y\n", r"line 3, column a: a value is missing \(''\)"),
        ("a,kind\n1,x\nNaN,y\n", r"line 3, column a: a value is missing \('NaN'\)"),
        ("a,kind\n1,x\n2,\n", r"line 3, column kind: a value is missing"),
        ("a,kind\n1,x\ntwo,y\n", r"line 3, column a: 'two' is no finite number"),
        ("a,kind\n1,x\n1_0,y\n", r"'1_0' is no finite number"),
        ("a,kind\n1,x\ninf,y\n", r"'inf' is no finite number"),
        ("a,kind\n1,x\n2\n", r"line 3 has 1 fields; wanted 2"),
        ("a,kind\n1,x\n2,x\n", r"column 'kind' has 1 different labels in 2 rows"),
        ("a,kind\n1,x\n2,y\n3,z\n", r"column 'kind' has 3 different labels in 3 rows"),
        ('a,kind\n1,"x\n', r"unexpected end of data"),
        ("a,kind\n1,\udcff\n", r"not text in UTF-8"),
    ],
)
def test_tables_that_are_wrong_are_told_in_words(tmp_path, text, words):
    file = tmp_path / "mine.csv"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=rf"mine.csv: .*{words}"):
        D.csv(file, "kind")


def test_a_column_that_is_not_there(tmp_path):
    (tmp_path / "mine.csv").write_text("1,2\n")
    with pytest.raises(ValueError, match=r"label=2: there are 2 columns, from 0 to 1"):
        D.csv(tmp_path / "mine.csv", 2)
    with pytest.raises(FileNotFoundError, match="wanted a CSV file"):
        D.csv(tmp_path / "other.csv", 0)


def test_digits_of_scikit_learn(monkeypatch):
    data = D.digits(range(10))
    assert (data.n, data.d, data.image_shape) == (1797, 64, (8, 8))
    pixels = np.asarray(data.inputs) + data.pixel_offset
    assert abs(float(data.inputs.mean())) < 1e-4 and pixels.min() > -1e-6 and pixels.max() < 1.00001
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match="pip install scikit-learn, or take mnist5k"):
        D.digits()
