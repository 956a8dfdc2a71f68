"""Labelled data sets: synthetic Gaussians, real images from local files, and arrays of one's own.

The data of the experiments section of Kumano, Kera, Yamasaki, *Wide Two-Layer Networks can Learn
from Adversarial Perturbations* (NeurIPS 2024). Nothing here downloads anything. Rows of `inputs`
are points, images included; a target is +1 for the first of two classes and -1 for the second, and
the class index 0, 1, .. for more than two. Dtypes follow JAX: float32 unless x64 is enabled.
"""

from perturbkernel.data.arrays import csv as csv
from perturbkernel.data.arrays import from_arrays as from_arrays
from perturbkernel.data.arrays import from_npz as from_npz
from perturbkernel.data.dataset import Dataset as Dataset
from perturbkernel.data.draws import draw_classes as draw_classes
from perturbkernel.data.draws import draw_noise as draw_noise
from perturbkernel.data.draws import draw_targets as draw_targets
from perturbkernel.data.images import cifar10 as cifar10
from perturbkernel.data.images import digits as digits
from perturbkernel.data.images import fashion_mnist as fashion_mnist
from perturbkernel.data.images import folder as folder
from perturbkernel.data.images import mnist as mnist
from perturbkernel.data.images import mnist5k as mnist5k
from perturbkernel.data.synthetic import gaussian as gaussian
from perturbkernel.data.synthetic import shifted_gaussian as shifted_gaussian
