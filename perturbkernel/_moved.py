"""The module paths and argument names of version 0.1, kept through version 1.

This is the only place that knows them.
"""

import functools
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

# Old module -> the modules that hold its names now. (`attacks`, `data`, `kernels`, `learning`,
# `networks`, `report` and `cli` are folders now and keep their names. The old `gaussian_process` is
# not here: importing it would bind that module over the function `perturbkernel.gaussian_process`.)
MOVED: dict[str, tuple[str, ...]] = {
    "activations": ("kernels.angles",),
    "architectures": ("kernels.architectures",),
    "bench": ("cli.bench",),
    "boundary": ("attacks.minimum_norm",),
    "classes": ("data.labels", "data.draws", "attacks.margins", "metrics"),
    "diagnosis": ("learning.diagnosis",),
    "dynamics": ("training.dynamics",),
    "gram": ("training.gram", "engine.memory"),
    "image_files": ("data.image_files",),
    "perturbations": ("attacks.one_step", "attacks.norms", "metrics"),
    "plans": ("kernels.forecast",),
    "plots": ("report.plots",),
    "predictors": ("training.predictors", "training.fit"),
    "projections": ("attacks.norms",),
    "reproduce.width": ("reproduce.studies.width.study",),
    "solvers": ("training.solve", "training.logistic_path"),
    "studies": ("learning.curves",),
    "two_layer": ("networks.two_layer",),
    "optimizers": ("networks.optimizers",),
}

# (folder, name) -> the module that holds the name now, where the folder keeps its own name.
MOVED_NAMES: dict[tuple[str, str], str] = {
    ("learning", "accuracy"): "metrics",
    ("learning", "agreement"): "metrics",
    ("learning", "draw_noise"): "data.draws",
    ("learning", "draw_targets"): "data.draws",
}


def moved_name(folder: str, name: str) -> Any:
    """The value of a name that has left a folder, for `__getattr__` there; warns where it went."""
    home = MOVED_NAMES.get((folder, name))
    if home is None:
        raise AttributeError(f"module 'perturbkernel.{folder}' has no attribute {name!r}")
    warnings.warn(
        f"perturbkernel.{folder}.{name} has moved to perturbkernel.{home}; the old path goes with "
        "version 2",
        DeprecationWarning,
        stacklevel=3,
    )
    return getattr(import_module(f"perturbkernel.{home}"), name)


class _Finder(MetaPathFinder, Loader):
    """Makes an old path a module with the names of the new ones, and says where they went."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        if package != "perturbkernel" or name not in MOVED:
            return None
        return ModuleSpec(fullname, self)

    def exec_module(self, module: ModuleType) -> None:
        _, _, name = module.__name__.partition(".")
        homes = [f"perturbkernel.{home}" for home in MOVED[name]]
        warnings.warn(
            f"{module.__name__} has moved to {', '.join(homes)}; the old path goes with version 2",
            DeprecationWarning,
            stacklevel=2,
        )
        for home in homes:
            for name, value in vars(import_module(home)).items():
                if not name.startswith("__"):
                    setattr(module, name, value)


def install() -> None:
    """Lets Python find the old paths, once."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())


def renamed(**former: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator with which a function still takes the argument names of version 0.1, and warns.

    `renamed(progress="on_stage")`: `progress=` is `on_stage=` now. `renamed(doubled="start")`:
    `doubled=True` is `start="doubled"` now, and `doubled=False` says nothing.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        name = function.__qualname__.removesuffix(".__init__")

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            for old in former.keys() & kwargs.keys():
                _rename(name, old, former[old], kwargs)
            return function(*args, **kwargs)

        return call

    return decorate


def _rename(function: str, old: str, new: str, kwargs: dict[str, Any]) -> None:
    value = kwargs.pop(old)
    if new in kwargs:
        raise TypeError(f"{function} takes {new}=; {old}= is its old name: give one of them")
    if new == "start":  # was one flag for each start
        if value:
            kwargs["start"] = old
        told = f'start="{old}"'
    else:
        kwargs[new] = value
        told = f"{new}="
    warnings.warn(
        f"{function}({old}=...) is {told} now; the old name goes with version 2",
        DeprecationWarning,
        stacklevel=4,
    )


def renamed_attribute(old: str, new: str) -> None:
    """Warns that an attribute has another name now."""
    warnings.warn(
        f"{old} is {new} now; the old name goes with version 2", DeprecationWarning, stacklevel=3
    )
