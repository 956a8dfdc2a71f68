"""Every bound of the theory under one name: `theory.bounds.predictor_bound(...)`, and so on.

The section of the theory each comes from is the module it is defined in: concentration (2), lazy
(3), initial (4), gradients (5), matching (6), logistic (7), facts (8). Bounds that say "with
probability" hold at all their points at once.
"""

from perturbkernel.theory.concentration import direction_bound as direction_bound
from perturbkernel.theory.concentration import gate_moment_bound as gate_moment_bound
from perturbkernel.theory.concentration import gate_moment_bound_split as gate_moment_bound_split
from perturbkernel.theory.concentration import kernel_bound as kernel_bound
from perturbkernel.theory.concentration import predictor_bound as predictor_bound
from perturbkernel.theory.facts import label_effect_bound as label_effect_bound
from perturbkernel.theory.facts import linear_gap_bound as linear_gap_bound
from perturbkernel.theory.gradients import cosine_bound as cosine_bound
from perturbkernel.theory.gradients import flips_bound_measured as flips_bound_measured
from perturbkernel.theory.gradients import gate_motion_bound as gate_motion_bound
from perturbkernel.theory.gradients import gradient_bounds as gradient_bounds
from perturbkernel.theory.gradients import measured_cosine_bound as measured_cosine_bound
from perturbkernel.theory.initial import initial_gradient_bound as initial_gradient_bound
from perturbkernel.theory.initial import (
    initial_gradient_bound_measured as initial_gradient_bound_measured,
)
from perturbkernel.theory.initial import initial_output_bound as initial_output_bound
from perturbkernel.theory.initial import (
    initial_output_bound_measured as initial_output_bound_measured,
)
from perturbkernel.theory.initial import initial_projection_bound as initial_projection_bound
from perturbkernel.theory.initial import (
    initial_projection_bound_measured as initial_projection_bound_measured,
)
from perturbkernel.theory.labels import label_term as label_term
from perturbkernel.theory.lazy import certified_gates as certified_gates
from perturbkernel.theory.lazy import displacement as displacement
from perturbkernel.theory.lazy import lazy_bound as lazy_bound
from perturbkernel.theory.lazy import lazy_number as lazy_number
from perturbkernel.theory.lazy import linearisation_error as linearisation_error
from perturbkernel.theory.lazy import logistic_stability as logistic_stability
from perturbkernel.theory.logistic import coefficient_bounds as coefficient_bounds
from perturbkernel.theory.logistic import half_time_gap as half_time_gap
from perturbkernel.theory.logistic import logistic_predictor_error as logistic_predictor_error
from perturbkernel.theory.logistic import weight_error_bound as weight_error_bound
from perturbkernel.theory.logistic import weighted_direction_gap as weighted_direction_gap
from perturbkernel.theory.matching import predictor_error as predictor_error
