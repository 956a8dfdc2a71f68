"""An image panel on Fashion-MNIST where the machine has it, and on what ships where not."""

import numpy as np

import perturbkernel as pk
from perturbkernel.data.image_files import FASHION_MNIST, standard_folder

PANEL = "fashion_mnist_a/size/identity"


def test_an_image_panel_runs_on_the_best_images_that_there_are(data_sets, tmp_path):
    result = pk.reproduce.reproduce([PANEL], tmp_path, mode="limit", seeds=1, workers=0)
    curves = result.curves(PANEL)
    f = np.asarray(curves["standard"]["limit"]["mean"])
    g = np.asarray(curves["perturbation"]["limit_balanced"]["mean"])
    folder = standard_folder(FASHION_MNIST)
    if folder is None:
        assert 0.9 < f[-1] < 0.98 and g[-1] > 0.9  # digits 1 and 2
        return
    train = pk.data.fashion_mnist()
    assert (train.n, train.classes) == (12_000, ("T-shirt/top", "Ankle boot"))
    assert f[-1] > 0.98 and g[-1] > 0.95
