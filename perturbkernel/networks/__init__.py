"""The same network at finite width: drawn, trained by any optax optimiser, and averaged."""

from perturbkernel.networks.ensembles import NetworkLearner as NetworkLearner
from perturbkernel.networks.ensembles import ensemble as ensemble
from perturbkernel.networks.optimizers import Plateau as Plateau
from perturbkernel.networks.optimizers import paper_optimizer as paper_optimizer
from perturbkernel.networks.training import Trace as Trace
from perturbkernel.networks.training import train as train
from perturbkernel.networks.two_layer import Centred as Centred
from perturbkernel.networks.two_layer import Mean as Mean
from perturbkernel.networks.two_layer import TwoLayerNetwork as TwoLayerNetwork
