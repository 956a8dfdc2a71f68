"""Adversarial attacks on any differentiable predictor: one step, many steps, the smallest size."""

from perturbkernel.attacks.iterated import attack as attack
from perturbkernel.attacks.iterated import universal as universal
from perturbkernel.attacks.minimum_norm import MinimumNorm as MinimumNorm
from perturbkernel.attacks.minimum_norm import minimum_norm as minimum_norm
from perturbkernel.attacks.one_step import Perturbation as Perturbation
from perturbkernel.attacks.one_step import perturb as perturb
