"""Files from outside: what they declare is compared with what they hold before anything is read."""

import gzip
import io
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from perturbkernel import data as D
from perturbkernel.data import array_files
from perturbkernel.data.array_files import read_labelled, read_npy

NAME = "train-images-idx3-ubyte"


def idx_header(count: int) -> bytes:
    return struct.pack(">4I", 0x803, count, 28, 28)


def peak_memory(call) -> int:
    """Bytes that a call took at most; it must raise ValueError."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"found|declares|takes"):
            call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("count", [10**6, 2**32 - 1])
@pytest.mark.parametrize("packed", [False, True])
def test_an_idx_file_cannot_declare_more_than_it_holds(tmp_path, count, packed):
    content = idx_header(count) + bytes(100)
    (tmp_path / NAME).write_bytes(gzip.compress(content) if packed else content)
    assert peak_memory(lambda: D.mnist(tmp_path)) < 10**6
    match = "more than .* compressed bytes can hold" if packed else "found length in bytes 116"
    with pytest.raises(ValueError, match=match):
        D.mnist(tmp_path)


def test_a_gzip_file_that_expands_beyond_its_header_is_not_expanded(tmp_path):
    (tmp_path / NAME).write_bytes(gzip.compress(idx_header(2) + bytes(3 * 10**7)))
    assert peak_memory(lambda: D.mnist(tmp_path)) < 10**6


def test_a_file_beyond_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(array_files, "machine_memory", lambda: 10**6)
    (tmp_path / NAME).write_bytes(gzip.compress(idx_header(10**4) + bytes(784 * 10**4)))
    assert peak_memory(lambda: D.mnist(tmp_path)) < 10**6
    np.savez_compressed(tmp_path / "big.npz", inputs=np.zeros((1000, 1000)), targets=np.zeros(1000))
    with pytest.raises(ValueError, match=r"big.npz: inputs takes 0.0 GB; this machine has"):
        D.from_npz(tmp_path / "big.npz")
    np.save(tmp_path / "big.npy", np.zeros((1000, 1000)))
    with pytest.raises(ValueError, match=r"big.npy: the array takes"):
        read_npy(tmp_path / "big.npy")


def npy(shape: tuple[int, ...], content: bytes) -> bytes:
    stream = io.BytesIO()
    header = {"descr": "<f8", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue() + content


@pytest.mark.parametrize("shape", [(10**12,), (2, 10**9), (3, 2), (10**200,)])
def test_an_array_cannot_declare_more_than_it_holds(tmp_path, shape):
    content = npy(shape, bytes(8 * 2))
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inputs.npy", content)
        archive.writestr("targets.npy", npy((2,), bytes(16)))
    (tmp_path / "bomb.npy").write_bytes(content)
    for call in (
        lambda: D.from_npz(tmp_path / "bomb.npz"),
        lambda: read_npy(tmp_path / "bomb.npy"),
    ):
        with pytest.raises(ValueError, match=r"bomb.np.: .* declares shape .* it holds 16"):
            call()


def test_arrays_that_nobody_asked_for_are_not_read(tmp_path):
    file = tmp_path / "mine.npz"
    np.savez_compressed(file, inputs=np.ones((2, 3)), targets=np.ones(2), other=np.zeros(2 * 10**6))
    tracemalloc.start()
    inputs, _ = read_labelled(file)
    assert inputs.shape == (2, 3) and tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()


@pytest.mark.parametrize("kind", ["npz", "npy", "idx"])
def test_any_damage_is_a_value_error_that_names_the_file(tmp_path, kind):
    rng = np.random.default_rng(0)
    file, read = {
        "npz": (tmp_path / "mine.npz", read_labelled),
        "npy": (tmp_path / "mine.npy", read_npy),
        "idx": (tmp_path / NAME, lambda _: D.mnist(tmp_path)),
    }[kind]
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(struct.pack(">2I6B", 0x801, 6, *range(6)))
    np.savez_compressed(tmp_path / "mine.npz", inputs=rng.normal(size=(9, 3)), targets=np.ones(9))
    np.save(tmp_path / "mine.npy", rng.normal(size=(9, 3)))
    images = rng.integers(0, 256, 6 * 784).astype(np.uint8).tobytes()
    (tmp_path / NAME).write_bytes(gzip.compress(idx_header(6) + images))
    whole, refused = file.read_bytes(), 0
    for _ in range(150):
        damaged = bytearray(whole[: rng.integers(1, len(whole) + 1)])
        damaged[rng.integers(min(200, len(damaged)))] ^= int(rng.integers(1, 256))
        file.write_bytes(damaged)
        try:
            read(file)
        except ValueError as error:
            assert file.name in str(error)
            refused += 1
    assert refused > 100


@pytest.mark.parametrize("shape", [(6, 3, 8, 8), (6, 1, 28, 28), (6, 4, 9, 5)])
def test_channels_come_last(shape):
    inputs, targets = np.ones(shape), np.resize([1, -1], 6)
    with pytest.raises(ValueError, match=r"looks like \(n, c, h, w\); wanted \(n, h, w, c\)"):
        D.from_arrays(inputs, targets)
    assert D.from_arrays(np.moveaxis(inputs, 1, -1), targets).images.shape[-1] == shape[1]


def test_names_of_classes_can_be_printed():
    labels = np.array([b"caf\xc3\xa9", b"\xff"])
    assert D.from_arrays(np.eye(2), labels, classes=tuple(labels.tolist())).classes == (
        "café",
        "\\xff",
    )
    odd = np.array(["a\nb", "\ud800"], object)
    data = D.from_arrays(np.eye(2), odd, classes=("a\nb", "\ud800"))
    assert data.classes == ("a\\nb", "\\ud800")
