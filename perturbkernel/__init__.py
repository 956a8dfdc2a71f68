"""Learning from adversarial perturbations in closed form: infinite-width kernels, attacks and
theorems in JAX.
"""

from perturbkernel import data as data
from perturbkernel import networks as networks
from perturbkernel import report as report
from perturbkernel import reproduce as reproduce
from perturbkernel import theory as theory
from perturbkernel._version import __version__ as __version__
from perturbkernel.architectures import ArchitectureNTK as ArchitectureNTK
from perturbkernel.attacks import attack as attack
from perturbkernel.attacks import universal as universal
from perturbkernel.boundary import MinimumNorm as MinimumNorm
from perturbkernel.boundary import minimum_norm as minimum_norm
from perturbkernel.classes import one_hot as one_hot
from perturbkernel.data import Dataset as Dataset
from perturbkernel.diagnosis import Diagnosis as Diagnosis
from perturbkernel.dynamics import GradientFlow as GradientFlow
from perturbkernel.dynamics import HeavyBall as HeavyBall
from perturbkernel.gaussian_process import Gaussian as Gaussian
from perturbkernel.gaussian_process import InitialFunction as InitialFunction
from perturbkernel.gaussian_process import sample_initial as sample_initial
from perturbkernel.kernels import Kernel as Kernel
from perturbkernel.kernels import TwoLayerNTK as TwoLayerNTK
from perturbkernel.learning import PerturbationLearning as PerturbationLearning
from perturbkernel.learning import learn_from_perturbations as learn_from_perturbations
from perturbkernel.perturbations import Perturbation as Perturbation
from perturbkernel.perturbations import perturb as perturb
from perturbkernel.plans import Plan as Plan
from perturbkernel.predictors import KernelLearner as KernelLearner
from perturbkernel.predictors import KernelPredictor as KernelPredictor
from perturbkernel.predictors import fit as fit
from perturbkernel.worst import WorstCase as WorstCase
from perturbkernel.worst import worst_case as worst_case
