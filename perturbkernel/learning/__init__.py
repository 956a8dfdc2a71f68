"""The experiment of the paper: learning from perturbations, its diagnosis, curves over sizes."""

from typing import Any

from perturbkernel._moved import moved_name
from perturbkernel.learning.adversarial import adversarial_training as adversarial_training
from perturbkernel.learning.adversarial import feature_adversarial as feature_adversarial
from perturbkernel.learning.curves import DecisionMap as DecisionMap
from perturbkernel.learning.curves import SizeCurve as SizeCurve
from perturbkernel.learning.curves import accuracy_against_size as accuracy_against_size
from perturbkernel.learning.curves import decision_map as decision_map
from perturbkernel.learning.diagnosis import Diagnosis as Diagnosis
from perturbkernel.learning.diagnosis import diagnose as diagnose
from perturbkernel.learning.experiment import Pair as Pair
from perturbkernel.learning.experiment import PerturbationLearning as PerturbationLearning
from perturbkernel.learning.experiment import learn_from_perturbations as learn_from_perturbations
from perturbkernel.learning.linearity import Linearity as Linearity


def __getattr__(name: str) -> Any:
    return moved_name("learning", name)
