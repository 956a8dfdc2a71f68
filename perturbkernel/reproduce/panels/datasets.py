"""The data of an experiment, drawn from a description that JSON holds, so that any process draws
the same.
"""

import functools
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from perturbkernel import data as datasets
from perturbkernel.arrays import as_jax
from perturbkernel.reproduce.panels.setting import Setting
from perturbkernel.reproduce.records import Config

FRESH = 1000  # new synthetic points on which agreement is counted


class Drawn(NamedTuple):
    """Training data, fresh inputs for the agreement, and a key for all else that is random."""

    x: Float[Array, "n d"]
    y: Float[Array, " n"]
    fresh: Float[Array, "k d"]
    key: PRNGKeyArray


def data_config(setting: Setting, seed: int, sources: dict[str, str | None]) -> Config:
    """Returns what `draw` needs.

    `sources` maps "mnist" and "fashion_mnist" to a folder with IDX files, or None: mnist5k. Of
    images, "content" is a hash of those that the folder holds now: it says what the data are,
    "path" only where.
    """
    if not setting.is_image:
        return {
            "name": setting.data,
            "n": setting.n,
            "d": setting.d,
            "seed": seed,
        }
    folder = sources.get(setting.data)
    if folder is None:
        # 1 against 2 whatever the panel: only digits come with the installation.
        name = "mnist5k"
        classes = (1, 2)
    else:
        name = setting.data
        classes = tuple(setting.classes or ())
    states = file_states(folder)
    config = {
        "name": name,
        "classes": list(classes),
        "n": setting.n,
        "seed": seed,
        "content": _content(name, folder, classes, states),
    }
    if folder is not None:
        config["path"] = folder
    return config


def file_states(folder: str | None) -> tuple[tuple[str, int, int, int], ...]:
    """What tells whether a file of the folder was replaced, without reading it."""
    if folder is None:
        return ()
    place = Path(folder)
    if not place.is_dir():
        return ()
    states = []
    for path in sorted(place.iterdir()):
        if not path.is_file():
            continue
        state = path.stat()
        described = (path.name, state.st_ino, state.st_size, state.st_mtime_ns)
        states.append(described)
    return tuple(states)


@functools.lru_cache(maxsize=64)
def _content(name: str, folder: str | None, classes: tuple[int, ...], states: Any) -> str:
    images = _images(name, folder, classes)
    return _content_hash(images)


def _images(name: str, folder: str | None, classes: tuple[int, ...]) -> list[datasets.Dataset]:
    """All images of the classes: the training and test files, or mnist5k."""
    read = getattr(datasets, name)
    if folder is None:
        return [read(classes=classes)]
    train = read(folder, classes=classes, split="train")
    test = read(folder, classes=classes, split="test")
    return [train, test]


def _content_hash(images: list[datasets.Dataset]) -> str:
    """A hash of pixels and labels, rounded to what the files hold: devices may differ in the last
    bit.
    """
    digest = hashlib.sha256()
    for part in images:
        grey = np.asarray(part.inputs) * 255
        pixels = np.round(grey).astype("<i2")
        labels = np.asarray(part.targets).astype("<i2")
        shape = f"{pixels.shape}"
        digest.update(shape.encode())
        digest.update(pixels.tobytes())
        digest.update(labels.tobytes())
    return digest.hexdigest()[:16]


def draw(config: Config) -> Drawn:
    """Returns the data set that the description names.

    Of images: `n` of the training images at most, and the test images as fresh ones.

        draw({"name": "gaussian", "n": 100, "d": 20, "seed": 0}).x.shape  # (100, 20)

    Raises ValueError if the images are not those of the description any more.
    """
    if config["name"] in ("gaussian", "shifted_gaussian"):
        return _draw_synthetic(config)
    return _draw_images(config)


def _keys(config: Config) -> PRNGKeyArray:
    """Of the split, of the choice of training images, and of all else that is random."""
    key = jax.random.key(config["seed"])
    return jax.random.split(key, 3)


def _draw_synthetic(config: Config) -> Drawn:
    name = config["name"]
    n = config["n"]
    d = config["d"]
    seed = [config["seed"], n, d]
    rng = np.random.default_rng(seed)
    x, y = _synthetic(name, n, d, rng)
    fresh, _ = _synthetic(name, FRESH, d, rng)
    _, _, key = _keys(config)
    return Drawn(as_jax(x), as_jax(y), as_jax(fresh), key)


def _draw_images(config: Config) -> Drawn:
    name = config["name"]
    n = config["n"]
    folder = config.get("path")
    classes = tuple(config["classes"])
    images = _images(name, folder, classes)
    if _content_hash(images) != config["content"]:
        raise ValueError(
            f"{folder or name} holds other images here, or now, than where and when the "
            f"computation was planned: give the command again, with the same files everywhere"
        )
    key_data, key_fresh, key = _keys(config)
    if folder is None:
        (whole,) = images
        images = whole.split(test=0.2, key=key_data)
    train, test = images
    if n < train.n:
        train = train.subset(n, key=key_fresh)
    return Drawn(train.inputs, train.targets, test.inputs, key)


def _synthetic(
    name: str, n: int, d: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """What `data.gaussian` and `data.shifted_gaussian` draw, in NumPy: for every size JAX would
    compile anew.
    """
    x = rng.standard_normal((n, d), np.float32)
    plus = np.float32(1)
    minus = np.float32(-1)
    if name == "gaussian":
        return x, rng.choice([plus, minus], n)
    half = (n + 1) // 2
    first_half = np.arange(n) < half
    ordered = np.where(first_half, plus, minus)
    y = rng.permutation(ordered)
    shift = np.float32(0.3)
    x += shift * y[:, None]
    return x, y


def accuracy(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """`learning.accuracy` along the last axis, in NumPy for the same reason."""
    right = np.sign(outputs) * labels
    return (1 + right).mean(-1) / 2


def count(config: Config) -> int:
    """How many training points `draw` gives."""
    if "d" in config:
        return config["n"]
    description = json.dumps(config)
    return _image_count(description)


@functools.cache
def _image_count(config: str) -> int:
    drawn = draw(json.loads(config))
    return len(drawn.y)


def size_factor(setting: Setting, config: Config, published_n: int) -> float:
    """sqrt(published n / n) for images with fewer points than published: the factor that keeps
    signal against offset of scenario (b) as published; 1 otherwise.
    """
    if not setting.is_image:
        return 1.0
    n = count(config)
    if n >= published_n:
        return 1.0
    factor = np.sqrt(published_n / n)
    return float(np.round(factor, 4))


def targets(config: Config, n: int, draws: dict[str, int]) -> dict[str, Float[np.ndarray, "n s"]]:
    """So many draws of target labels by each rule ("coin_flip", "balanced"), as columns; the first
    are the same however many are asked for.

    In NumPy: every data set has a size of its own, for which JAX would compile each operation.
    """
    drawn = {}
    for rule, count in draws.items():
        draw_column = _RULES[rule]
        columns = np.empty((n, count), np.float32)
        for column in range(count):
            seed = [config["seed"], column, rule == "balanced"]
            rng = np.random.default_rng(seed)
            columns[:, column] = draw_column(n, rng)
        drawn[rule] = columns
    return drawn


def _coin_flip(n: int, rng: np.random.Generator) -> np.ndarray:
    bits = rng.integers(0, 2, n)
    return bits * 2 - 1


def _balanced(n: int, rng: np.random.Generator) -> np.ndarray:
    of_the_odd_one = rng.integers(0, 2) * 2 - 1
    even = np.arange(n) % 2 == 0
    alternating = np.where(even, of_the_odd_one, -of_the_odd_one)
    return rng.permutation(alternating)


_RULES = {"coin_flip": _coin_flip, "balanced": _balanced}
