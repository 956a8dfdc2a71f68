"""What a file says of a kernel: its class and its numbers, and the kernel from that again.

What bounds memory belongs to the machine, and is left out.
"""

import dataclasses
from typing import Any

from perturbkernel.kernels.algebra import Combination, KernelProduct, KernelSum, ScaledKernel
from perturbkernel.kernels.base import Kernel
from perturbkernel.kernels.baselines import RBF, ArcCosine, Laplace
from perturbkernel.kernels.two_layer import TwoLayerNTK

_PLAIN = {cls.__name__: cls for cls in (TwoLayerNTK, RBF, Laplace, ArcCosine)}
_COMBINED = {cls.__name__: cls for cls in (KernelSum, KernelProduct, ScaledKernel)}


def described(kernel: Kernel) -> dict[str, Any]:
    """The kernel in terms that JSON has; of a class that is not one of the package's closed forms,
    the name of the class.

    Example:
        >>> described(2.0 * RBF(3.0))
        {'class': 'ScaledKernel', 'factor': 2.0, 'parts': [{'class': 'RBF', 'length_scale': 3.0}]}
    """
    cls = type(kernel)
    description: dict[str, Any] = {"class": cls.__name__}
    known = _PLAIN | _COMBINED
    if known.get(cls.__name__) is not cls:  # one of the user's own may have the same name
        return description
    for name in _numbers(cls):
        description[name] = getattr(kernel, name)
    if isinstance(kernel, Combination):
        description["parts"] = [described(part) for part in kernel.parts]
    return description


def from_description(description: dict[str, Any]) -> Kernel | None:
    """The kernel of that description; None where it, or a part of it, says no more than a class.

    Example:
        >>> from_description({"class": "Laplace", "length_scale": 2.0, "norm": "l1"})
        Laplace(length_scale=2.0, norm='l1', memory=None)
    """
    arguments = dict(description)
    name = arguments.pop("class")
    if name in _PLAIN and set(arguments) == set(_numbers(_PLAIN[name])):
        return _PLAIN[name](**arguments)
    if name not in _COMBINED or "parts" not in arguments:
        return None
    parts = []
    for part in arguments.pop("parts"):
        kernel = from_description(part)
        if kernel is None:
            return None
        parts.append(kernel)
    return _COMBINED[name](tuple(parts), **arguments)


def _numbers(cls: Any) -> list[str]:
    """The names of what tells kernels of a class apart, but for their parts."""
    names = [field.name for field in dataclasses.fields(cls)]
    return [name for name in names if name not in ("memory", "parts")]
