"""Predictors in files: one .npz of arrays and a header, checked as a whole when it is read."""

import hashlib
import json
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from perturbkernel.files import write_whole
from perturbkernel.kernels.base import Kernel
from perturbkernel.kernels.descriptions import described, from_description
from perturbkernel.training.dynamics import from_numbers, to_numbers
from perturbkernel.training.precision import as_stored, to_ambient

# 1: no fingerprint, no digest. 2: both. 3: targets, ridge and weights of points, too.
_FORMAT = 3
_ARRAYS = ("inputs", "dual_coef", "targets", "sample_weight")
_POINTS = 4  # training points of a fingerprint
# Of a fingerprint's largest value. Kernels are compared in float64, initial functions in the
# precision of the user's own code, which may run on other devices.
_SAME_KERNEL, _SAME_INITIAL = 1e-6, 1e-3


class Saved(NamedTuple):
    """What a file holds. `dynamics`: as `to_numbers` makes them."""

    kernel: Kernel
    inputs: Array
    dual_coef: Array
    status: str
    stats: dict[str, float]
    loss: str | None
    dynamics: tuple
    targets: Array | None
    ridge: float
    sample_weight: Array | None


def write(path: str | os.PathLike[str], saved: Saved, initial: Callable[..., Any] | None) -> None:
    """Writes the file whole or not at all."""
    arrays: dict[str, Any] = {
        "inputs": np.asarray(saved.inputs),
        "dual_coef": np.asarray(saved.dual_coef),
    }
    if saved.targets is not None:
        arrays["targets"] = np.asarray(saved.targets)
    if saved.sample_weight is not None:
        arrays["sample_weight"] = np.asarray(saved.sample_weight)
    points = _fingerprint_points(arrays["inputs"])
    kernel_values = _kernel_values(saved.kernel, points)
    initial_values = None
    if initial is not None:
        initial_values = _initial_values(initial, points).tolist()
    header = {
        "format": _FORMAT,
        "kernel": described(saved.kernel),
        "initial": initial is not None,
        "status": saved.status,
        "stats": {name: float(value) for name, value in saved.stats.items()},
        "loss": saved.loss,
        "dynamics": [np.asarray(number).tolist() for number in saved.dynamics],
        "ridge": saved.ridge,
        "digest": _digest(arrays),
        "kernel_values": kernel_values.tolist(),
        "initial_values": initial_values,
    }
    arrays["header"] = np.array(json.dumps(header))
    write_whole(path, lambda file: np.savez(file, **arrays))


def read(
    path: str | os.PathLike[str], kernel: Kernel | None, initial: Callable[..., Any] | None
) -> Saved:
    """Reads and checks the file; `kernel` and `initial` are those that the user gives again.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, of another format, or does not belong to `kernel` or `initial`.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            header = json.loads(str(file["header"]))
            arrays = {name: file[name] for name in _ARRAYS if name in file}
        # A newer format may lack what the next lines read.
        if header["format"] in range(1, _FORMAT + 1):
            _check_arrays(arrays, header)
            saved = _saved(header, arrays)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(
            f"{path} is not a predictor that KernelPredictor.save wrote, or is damaged: {error}"
        ) from None
    if header["format"] not in range(1, _FORMAT + 1):
        raise ValueError(
            f"{path} has format {header['format']}, and this version of perturbkernel reads "
            f"formats up to {_FORMAT}: load it with the version that wrote it"
        )
    if kernel is None and saved.kernel is None:
        name = header["kernel"]["class"]
        raise ValueError(f"{path} was trained with a kernel of class {name}; give it as kernel=...")
    saved = saved._replace(kernel=saved.kernel if kernel is None else kernel)
    if header["initial"] and initial is None:
        raise ValueError(f"{path} was trained from an initial function; give it as initial=...")
    if initial is not None and not header["initial"]:
        raise ValueError(f"{path} was trained without an initial function; leave out initial")
    if header["format"] > 1:
        _check_fingerprints(path, header, arrays["inputs"], saved.kernel, initial)
    return saved


def _saved(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> Any:
    """With kernel None where the file does not say enough to make one."""
    kernel: Any = from_description(header["kernel"])
    stats = {str(name): float(value) for name, value in header["stats"].items()}
    numbers = header.get("dynamics", ())  # the oldest files lack this and the loss
    targets = None
    if "targets" in arrays:
        targets = as_stored(arrays["targets"])
    weights = arrays.get("sample_weight")
    return Saved(
        kernel=kernel,
        inputs=as_stored(arrays["inputs"]),
        dual_coef=as_stored(arrays["dual_coef"]),
        status=str(header["status"]),
        stats=stats,
        loss=header.get("loss"),
        dynamics=to_numbers(from_numbers(numbers)) if numbers else (),
        targets=targets,
        ridge=float(header.get("ridge", 0.0)),
        sample_weight=None if weights is None else as_stored(weights),
    )


def _check_arrays(arrays: dict[str, np.ndarray], header: dict[str, Any]) -> None:
    inputs, dual_coef = arrays["inputs"], arrays["dual_coef"]
    for name, array in arrays.items():
        if array.dtype not in (np.float32, np.float64):
            raise ValueError(f"{name} has dtype {array.dtype}")
    if inputs.ndim < 2 or dual_coef.ndim not in (1, 2) or len(inputs) != len(dual_coef):
        raise ValueError(f"inputs have shape {inputs.shape}, dual_coef {dual_coef.shape}")
    targets = arrays.get("targets", dual_coef)
    if targets.shape != dual_coef.shape:
        raise ValueError(f"targets have shape {targets.shape}, dual_coef {dual_coef.shape}")
    if header["format"] > 1:
        # Also of coefficients that are not finite, of a training that diverged and says so.
        if header["digest"] != _digest(arrays):
            raise ValueError("its arrays are not those that were saved")
    elif not (np.isfinite(inputs).all() and np.isfinite(dual_coef).all()):
        raise ValueError("its arrays hold NaN or infinite values")


def _check_fingerprints(
    path: str | os.PathLike[str],
    header: dict[str, Any],
    inputs: np.ndarray,
    kernel: Kernel,
    initial: Callable[..., Any] | None,
) -> None:
    points = _fingerprint_points(inputs)
    saved = np.asarray(header["kernel_values"], float)
    difference = _difference(_kernel_values(kernel, points), saved)
    if not difference <= _SAME_KERNEL:
        raise ValueError(
            f"{path} was trained with another kernel than {kernel!r}: their values at training "
            f"points differ by {difference:.2g} of the largest"
        )
    if initial is not None:
        saved = np.asarray(header["initial_values"], float)
        difference = _difference(_initial_values(initial, points), saved)
        if not difference <= _SAME_INITIAL:
            raise ValueError(
                f"{path} was trained from another initial function than the one that is given: "
                f"their values at training points differ by {difference:.2g} of the largest"
            )


def _difference(found: np.ndarray, saved: np.ndarray) -> float:
    """Relative to the largest saved value; infinite for other shapes."""
    if found.shape != saved.shape:
        return np.inf
    largest = np.abs(saved).max()
    off = np.abs(found - saved).max()
    return float(off / (largest if largest > 0 else 1))


def _fingerprint_points(inputs: np.ndarray) -> np.ndarray:
    spread = np.linspace(0, len(inputs) - 1, _POINTS)
    rows = np.unique(spread.astype(int))
    return inputs[rows]


def _kernel_values(kernel: Kernel, points: np.ndarray) -> np.ndarray:
    """In float64, so that neither device nor JAX's setting matters."""
    with jax.enable_x64(True):
        return np.asarray(kernel.ntk(jnp.asarray(points, float)))


def _initial_values(initial: Callable[..., Any], points: np.ndarray) -> np.ndarray:
    stored = to_ambient(as_stored(points))
    values = np.asarray(initial(stored), float)
    return values.reshape(len(points), -1)


def _digest(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        description = f"{name} {array.dtype.str} {array.shape}"
        digest.update(description.encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
