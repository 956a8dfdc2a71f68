"""The theory's formulas, one module a section: leading terms, constants, bounds, and what stays
random. Statements and proofs are in the manual, docs/theory.md, by the numbers that docstrings
cite.

    kernel = pk.TwoLayerNTK(slope=0.0)
    record = pk.theory.derive_constants(kernel, x, y, z)  # one pass; every bound reads it
    pk.theory.bounds.predictor_bound(record, width=10_000, delta=0.1)

| module              | theory         | what                                                      |
| ------------------- | -------------- | --------------------------------------------------------- |
| `leading`           | 5.3, 6.1, 6.2  | f_hat, the direction v, zeta, the three g_hat, psi        |
| `constants`         | 2, 3           | `derive_constants`: one record of a training set          |
| `concentration`     | 2              | finite-width kernels against the limit; exact variances   |
| `lazy`              | 3              | motion of gates; certified gates; a priori bounds         |
| `initial`           | 4              | the function before training                              |
| `gradients`         | 5              | the gradient's exact decomposition, its bounds, cosine    |
| `labels`            | 6.3            | the term of the random labels                             |
| `matching`          | 6.4            | the theorem: when sgn f = sgn g                           |
| `tails`             | 6.5            | the probability of a wrong sign at a point                |
| `certify`           | 6.6            | certificates for real data                                |
| `certificates`      | 6.6            | what a certificate says                                   |
| `logistic`          | 1.3, 7         | the logistic loss                                         |
| `logistic_matching` | 7.3            | the theorem for it                                        |
| `facts`             | 8              | exact facts and limits                                    |
| `initial_draws`     | 12.1           | joint draws of f0 and its gradients, their covariance     |
| `randomness`        | 12.1, 12.2     | sign probabilities, agreement, cosine over time           |
| `targets`           | 12.3           | moments over the targets                                  |
| `linear`            | 15             | the linear classifier that scenario (a) teaches           |
| `scaling`           | 16             | accuracy in n, d, distance and size: estimates            |
| `finite`            | 0.1, 2, 4.4    | finite networks given as arrays                           |
| `bounds`            |                | every bound under one name                                |
| `law`               | 14             | trained networks of every width, from simulated neurons   |

Everything takes plain arrays, computes in float64 whatever JAX's setting, and returns NumPy arrays:
x (n, d) and y (n,) train the first network, r (n, d) and targets (n,) the second, z (m, d) are
queries; finite networks are weights (width, d), biases and readout (width,). What is undefined
comes back as NaN with a status in words.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from perturbkernel.theory import bounds as bounds
from perturbkernel.theory import scaling as scaling
from perturbkernel.theory.certificates import Certificate as Certificate
from perturbkernel.theory.certify import best_time as best_time
from perturbkernel.theory.certify import certified_share as certified_share
from perturbkernel.theory.certify import certify as certify
from perturbkernel.theory.concentration import direction_variance as direction_variance
from perturbkernel.theory.concentration import gate_moment_variance as gate_moment_variance
from perturbkernel.theory.concentration import predictor_variance as predictor_variance
from perturbkernel.theory.constants import Constants as Constants
from perturbkernel.theory.constants import derive_constants as derive_constants
from perturbkernel.theory.facts import WIDTH_RATES as WIDTH_RATES
from perturbkernel.theory.facts import bias_offset_deviation as bias_offset_deviation
from perturbkernel.theory.facts import linear_predictor as linear_predictor
from perturbkernel.theory.facts import output_change_variance as output_change_variance
from perturbkernel.theory.facts import (
    symmetric_predictor_without_bias_input as symmetric_predictor_without_bias_input,
)
from perturbkernel.theory.finite import doubled as doubled
from perturbkernel.theory.finite import gate_moment as gate_moment
from perturbkernel.theory.finite import gradient as gradient
from perturbkernel.theory.finite import output as output
from perturbkernel.theory.finite import tangent_predictor as tangent_predictor
from perturbkernel.theory.gradients import GradientBounds as GradientBounds
from perturbkernel.theory.gradients import GradientDecomposition as GradientDecomposition
from perturbkernel.theory.gradients import decompose_gradient as decompose_gradient
from perturbkernel.theory.initial import (
    initial_gradient_second_moment as initial_gradient_second_moment,
)
from perturbkernel.theory.initial import initial_output_variance as initial_output_variance
from perturbkernel.theory.initial_draws import initial_covariance as initial_covariance
from perturbkernel.theory.initial_draws import sample_initial as sample_initial
from perturbkernel.theory.labels import LabelTerm as LabelTerm
from perturbkernel.theory.lazy import CertifiedGates as CertifiedGates
from perturbkernel.theory.lazy import certified_gates as certified_gates
from perturbkernel.theory.lazy import flip_probability as flip_probability
from perturbkernel.theory.lazy import lazy_standard_deviation as lazy_standard_deviation
from perturbkernel.theory.leading import Spread as Spread
from perturbkernel.theory.leading import direction as direction
from perturbkernel.theory.leading import f_hat as f_hat
from perturbkernel.theory.leading import g_hat as g_hat
from perturbkernel.theory.leading import g_hat_u as g_hat_u
from perturbkernel.theory.leading import g_hat_w as g_hat_w
from perturbkernel.theory.leading import gate_motion as gate_motion
from perturbkernel.theory.leading import gated_projection as gated_projection
from perturbkernel.theory.leading import limit_gradient as limit_gradient
from perturbkernel.theory.leading import psi as psi
from perturbkernel.theory.leading import spread_condition as spread_condition
from perturbkernel.theory.linear import LinearPart as LinearPart
from perturbkernel.theory.linear import linear_part as linear_part
from perturbkernel.theory.logistic import CoefficientBounds as CoefficientBounds
from perturbkernel.theory.logistic import LogisticError as LogisticError
from perturbkernel.theory.logistic import realised_weights as realised_weights
from perturbkernel.theory.logistic import same_sign_as_identity as same_sign_as_identity
from perturbkernel.theory.logistic import weighted_direction as weighted_direction
from perturbkernel.theory.logistic_matching import LogisticMatching as LogisticMatching
from perturbkernel.theory.logistic_matching import logistic_match as logistic_match
from perturbkernel.theory.matching import Matching as Matching
from perturbkernel.theory.matching import PredictorError as PredictorError
from perturbkernel.theory.matching import match as match
from perturbkernel.theory.randomness import Agreement as Agreement
from perturbkernel.theory.randomness import expected_accuracy as expected_accuracy
from perturbkernel.theory.randomness import expected_agreement as expected_agreement
from perturbkernel.theory.randomness import expected_cosine as expected_cosine
from perturbkernel.theory.randomness import reproducibility as reproducibility
from perturbkernel.theory.randomness import sign_probability as sign_probability
from perturbkernel.theory.targets import TargetMoments as TargetMoments
from perturbkernel.theory.targets import target_moments as target_moments

if TYPE_CHECKING:
    from perturbkernel.theory import law as law
    from perturbkernel.theory.law import Estimate as Estimate
    from perturbkernel.theory.law import ExperimentCertificate as ExperimentCertificate
    from perturbkernel.theory.law import GradientMoments as GradientMoments
    from perturbkernel.theory.law import MeanFieldLearner as MeanFieldLearner
    from perturbkernel.theory.law import NeuronLaw as NeuronLaw
    from perturbkernel.theory.law import NeuronPlan as NeuronPlan
    from perturbkernel.theory.law import Neurons as Neurons
    from perturbkernel.theory.law import SignCertificate as SignCertificate
    from perturbkernel.theory.law import certify_experiment as certify_experiment
    from perturbkernel.theory.law import certify_network as certify_network
    from perturbkernel.theory.law import certify_outputs as certify_outputs
    from perturbkernel.theory.law import plan_neurons as plan_neurons
    from perturbkernel.theory.law import simulate_neurons as simulate_neurons

# These load networks, and so optax, when they are first used.
_OF_THE_LAW = (
    "Estimate",
    "ExperimentCertificate",
    "GradientMoments",
    "MeanFieldLearner",
    "NeuronLaw",
    "NeuronPlan",
    "Neurons",
    "SignCertificate",
    "certify_experiment",
    "certify_network",
    "certify_outputs",
    "plan_neurons",
    "simulate_neurons",
)


def __getattr__(name: str) -> Any:
    if name == "law":
        return import_module("perturbkernel.theory.law")
    if name in _OF_THE_LAW:
        value = getattr(import_module("perturbkernel.theory.law"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'perturbkernel.theory' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), "law", *_OF_THE_LAW})
