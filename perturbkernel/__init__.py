"""Learning from adversarial perturbations in closed form: infinite-width kernels, attacks and
theorems in JAX.

Public names load when they are first used, so that `import perturbkernel` takes no time of its own.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from perturbkernel import _moved
from perturbkernel._version import __version__ as __version__

if TYPE_CHECKING:
    from perturbkernel import data as data
    from perturbkernel import learning as learning
    from perturbkernel import networks as networks
    from perturbkernel import report as report
    from perturbkernel import reproduce as reproduce
    from perturbkernel import theory as theory
    from perturbkernel import verify as verify
    from perturbkernel.attacks.certificates import CertifiedSize as CertifiedSize
    from perturbkernel.attacks.certificates import certified_size as certified_size
    from perturbkernel.attacks.flips import LabelFlips as LabelFlips
    from perturbkernel.attacks.flips import certified_flips as certified_flips
    from perturbkernel.attacks.iterated import attack as attack
    from perturbkernel.attacks.iterated import universal as universal
    from perturbkernel.attacks.minimum_norm import MinimumNorm as MinimumNorm
    from perturbkernel.attacks.minimum_norm import minimum_norm as minimum_norm
    from perturbkernel.attacks.one_step import Perturbation as Perturbation
    from perturbkernel.attacks.one_step import perturb as perturb
    from perturbkernel.attacks.robust_accuracy import RobustAccuracy as RobustAccuracy
    from perturbkernel.attacks.robust_accuracy import robust_accuracy as robust_accuracy
    from perturbkernel.attacks.worst_case import WorstCase as WorstCase
    from perturbkernel.attacks.worst_case import worst_case as worst_case
    from perturbkernel.compilation_cache import use_compilation_cache as use_compilation_cache
    from perturbkernel.data.dataset import Dataset as Dataset
    from perturbkernel.data.labels import one_hot as one_hot
    from perturbkernel.kernels.architectures import ArchitectureNTK as ArchitectureNTK
    from perturbkernel.kernels.base import Kernel as Kernel
    from perturbkernel.kernels.baselines import RBF as RBF
    from perturbkernel.kernels.baselines import ArcCosine as ArcCosine
    from perturbkernel.kernels.baselines import Laplace as Laplace
    from perturbkernel.kernels.empirical import EmpiricalNTK as EmpiricalNTK
    from perturbkernel.kernels.forecast import Plan as Plan
    from perturbkernel.kernels.linearized import LinearizedNetwork as LinearizedNetwork
    from perturbkernel.kernels.linearized import linearize as linearize
    from perturbkernel.kernels.two_layer import TwoLayerNTK as TwoLayerNTK
    from perturbkernel.learning.diagnosis import Diagnosis as Diagnosis
    from perturbkernel.learning.experiment import PerturbationLearning as PerturbationLearning
    from perturbkernel.learning.experiment import (
        learn_from_perturbations as learn_from_perturbations,
    )
    from perturbkernel.learning.features import KernelFeatures as KernelFeatures
    from perturbkernel.learning.features import kernel_features as kernel_features
    from perturbkernel.learning.split import Split as Split
    from perturbkernel.learning.split import split as split
    from perturbkernel.training.dynamics import GradientFlow as GradientFlow
    from perturbkernel.training.dynamics import HeavyBall as HeavyBall
    from perturbkernel.training.fit import KernelLearner as KernelLearner
    from perturbkernel.training.fit import fit as fit
    from perturbkernel.training.gaussian_process import GaussianProcess as GaussianProcess
    from perturbkernel.training.gaussian_process import gaussian_process as gaussian_process
    from perturbkernel.training.gaussian_process import (
        log_marginal_likelihood as log_marginal_likelihood,
    )
    from perturbkernel.training.influence import Smoother as Smoother
    from perturbkernel.training.influence import smoother as smoother
    from perturbkernel.training.initial_function import Gaussian as Gaussian
    from perturbkernel.training.initial_function import InitialFunction as InitialFunction
    from perturbkernel.training.initial_function import sample_initial as sample_initial
    from perturbkernel.training.predictors import KernelPredictor as KernelPredictor

# The public modules, and the module that defines each public name: the imports above, for Python.
_MODULES = ("data", "learning", "networks", "report", "reproduce", "sklearn", "theory", "verify")
_HOMES = {
    "CertifiedSize": "attacks.certificates",
    "certified_size": "attacks.certificates",
    "LabelFlips": "attacks.flips",
    "certified_flips": "attacks.flips",
    "attack": "attacks.iterated",
    "universal": "attacks.iterated",
    "MinimumNorm": "attacks.minimum_norm",
    "minimum_norm": "attacks.minimum_norm",
    "Perturbation": "attacks.one_step",
    "perturb": "attacks.one_step",
    "RobustAccuracy": "attacks.robust_accuracy",
    "robust_accuracy": "attacks.robust_accuracy",
    "WorstCase": "attacks.worst_case",
    "worst_case": "attacks.worst_case",
    "use_compilation_cache": "compilation_cache",
    "Dataset": "data.dataset",
    "one_hot": "data.labels",
    "ArchitectureNTK": "kernels.architectures",
    "Kernel": "kernels.base",
    "ArcCosine": "kernels.baselines",
    "Laplace": "kernels.baselines",
    "RBF": "kernels.baselines",
    "EmpiricalNTK": "kernels.empirical",
    "LinearizedNetwork": "kernels.linearized",
    "linearize": "kernels.linearized",
    "Plan": "kernels.forecast",
    "TwoLayerNTK": "kernels.two_layer",
    "Diagnosis": "learning.diagnosis",
    "PerturbationLearning": "learning.experiment",
    "learn_from_perturbations": "learning.experiment",
    "KernelFeatures": "learning.features",
    "kernel_features": "learning.features",
    "Split": "learning.split",
    "split": "learning.split",
    "GradientFlow": "training.dynamics",
    "HeavyBall": "training.dynamics",
    "KernelLearner": "training.fit",
    "fit": "training.fit",
    "Smoother": "training.influence",
    "smoother": "training.influence",
    "GaussianProcess": "training.gaussian_process",
    "gaussian_process": "training.gaussian_process",
    "log_marginal_likelihood": "training.gaussian_process",
    "Gaussian": "training.initial_function",
    "InitialFunction": "training.initial_function",
    "sample_initial": "training.initial_function",
    "KernelPredictor": "training.predictors",
}

__all__ = ["__version__", *_MODULES, *_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]

_moved.install()


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(f"perturbkernel.{_HOMES[name]}"), name)
    elif name in _MODULES or name in _moved.MOVED:
        value = import_module(f"perturbkernel.{name}")
    else:
        raise AttributeError(f"module 'perturbkernel' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
