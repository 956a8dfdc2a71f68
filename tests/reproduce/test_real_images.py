"""Image panels use the images that a machine has; Fashion-MNIST itself where it is there."""

import perturbkernel as pk
from perturbkernel import reproduce
from perturbkernel.data.image_files import FASHION_MNIST, MNIST, standard_folder


def test_image_panels_find_their_images(tmp_path, monkeypatch):
    """A folder that is given comes first; without any, panels use what ships."""
    (tmp_path / "fashion-mnist").mkdir()
    monkeypatch.setenv("PERTURBKERNEL_DATA", str(tmp_path))
    assert reproduce._folder(FASHION_MNIST, None) == str(tmp_path / "fashion-mnist")
    assert reproduce._folder(FASHION_MNIST, tmp_path) == str(tmp_path)
    assert reproduce._folder(MNIST, None) is None
    monkeypatch.setenv("PERTURBKERNEL_DATA", "off")
    assert reproduce._folder(FASHION_MNIST, None) is None


def test_the_real_images_are_those_of_the_published_experiments(data_sets):
    """Where a machine has them, Debian's package for one: continuous integration installs it."""
    if standard_folder(FASHION_MNIST) is None:
        train, names = pk.data.mnist5k(), ("1", "2")
        assert (train.n, train.classes) == (1000, names)
        return
    train, test = pk.data.fashion_mnist(), pk.data.fashion_mnist(split="test")
    assert (train.n, test.n, train.classes) == (12_000, 2000, ("T-shirt/top", "Ankle boot"))
