"""Infinite-width tangent kernels behind one protocol, and their tiled sums and derivatives."""

from perturbkernel.kernels.base import Kernel as Kernel
from perturbkernel.kernels.forecast import Plan as Plan
from perturbkernel.kernels.two_layer import TwoLayerNTK as TwoLayerNTK
