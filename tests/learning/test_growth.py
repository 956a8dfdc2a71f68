"""Perturbations that grow: outputs of both networks along them, against the networks themselves."""

import base64
import io
import re

import jax
import numpy as np
import pytest
from common import compilations
from PIL import Image

import perturbkernel as pk
from perturbkernel.learning.curves import decision_map, growth
from perturbkernel.learning.record import growth_of

KEY = jax.random.key(0)
LEARNER = pk.KernelLearner(pk.TwoLayerNTK())
SIZE, REACH = 0.5, 30.0


def experiment(**options):
    data = pk.data.shifted_gaussian(40, 9, 1.0, key=KEY)
    images = pk.data.from_arrays(np.asarray(data.inputs).reshape(40, 3, 3), data.targets)
    return pk.learn_from_perturbations(LEARNER, images, size=SIZE, key=KEY, **options)


@pytest.mark.parametrize("bounds", [None, (-1.0, 1.5)])
def test_of_two_classes(bounds):
    r = experiment(scenario="b", bounds=bounds)
    away = np.flatnonzero(np.asarray(r.perturbation.targets) != np.asarray(r.train.targets))[:3]
    found = growth(r, away, REACH)
    assert found.size[0] == 0 and (np.diff(found.size) > 0).all()
    x, delta = (np.asarray(values)[away] for values in (r.attacked, r.perturbation.delta))
    targets = np.asarray(r.perturbation.targets)[away]
    for step in (0, 40, 100):
        z = x + found.size[step] / SIZE * delta
        if bounds is not None:
            z = z.clip(*bounds)
        for name in "fg":
            outputs = np.asarray(getattr(r, name)(z.astype(np.float32)))
            margin, decision = (getattr(found, f"{what}_{name}") for what in ("margin", "decision"))
            # Sums of 40 terms in another order.
            atol = 1e-5 * np.abs(margin).max()
            np.testing.assert_allclose(margin[:, step], targets * outputs, atol=atol)
            np.testing.assert_array_equal(decision[:, step] == 0, outputs > 0)
    if bounds is None:
        # f changes its mind along each of them, and a little later the path ends.
        last = max(found.size[row.argmax()] for row in found.margin_f > 0)
        assert (found.margin_f[:, -1] > 0).all() and last < found.size[-1] < 1.5 * last


def test_of_many_classes_the_margin_is_that_over_the_best_other():
    rng = np.random.default_rng(0)
    labels = np.arange(30) % 3
    inputs = 3 * np.eye(3)[labels] + rng.normal(size=(30, 3))
    data = pk.data.from_arrays(inputs, labels, classes=range(3))
    r = pk.learn_from_perturbations(LEARNER, data, size=SIZE, targets="next", key=KEY)
    found = growth(r, [0, 4], REACH)
    attacked, delta = np.asarray(r.attacked), np.asarray(r.perturbation.delta)
    for i, row in enumerate((0, 4)):
        z = attacked[row] + np.float32(found.size[-1] / SIZE) * delta[row]
        outputs = np.asarray(r.f(z[None]))[0]
        target = int(r.perturbation.targets[row])
        expected = outputs[target] - np.delete(outputs, target).max()
        assert found.margin_f[i, -1] == pytest.approx(expected, rel=1e-4, abs=1e-6)
        assert found.decision_f[i, -1] == outputs.argmax()


def test_they_take_the_programs_of_the_decision_map():
    """A run of images compiles none for them, whatever their number."""
    r = experiment()
    decision_map(r)
    with compilations() as count:
        growth(r, [0, 1, 2], REACH)
        assert count() == 0
        jax.jit(lambda x: x + 1)(1.0)
        assert count() > 0  # what is compiled is counted


def test_a_report_of_images_has_them_and_their_pictures(tmp_path):
    r = experiment()
    r.report(tmp_path, control_draws=1)
    arrays = pk.report.load(tmp_path).arrays
    chosen = arrays["growth_sample"]
    assert len(chosen) == len(arrays["growth_margin_g"]) > 0
    # Each is moved away from its class.
    assert (arrays["sample_labels"][chosen] != arrays["sample_targets"][chosen]).all()
    page = (tmp_path / "report.html").read_text()
    # Without its script the page shows the row of pictures.
    assert '<div class="growth" hidden>' in page and 'alt="growing"' in page
    # The picture of each point is its own.
    sheet = re.search(r'data-tile="3,3" data-sheet="data:image/png;base64,(.+?)"', page)
    assert sheet is not None
    tiles = np.asarray(Image.open(io.BytesIO(base64.b64decode(sheet[1])))).reshape(-1, 3, 3)
    x = np.asarray(r.train.inputs).reshape(40, 3, 3)
    rows = re.findall(r'<tr data-picture="(\d+)"><td>point (\d+)</td>', page)
    assert sorted(int(point) for _, point in rows) == list(range(40))
    for place, point in rows:
        grey = 255 * (1 - (x[int(point)] - x.min()) / np.ptp(x))
        np.testing.assert_allclose(tiles[int(place)], grey, atol=0.51)  # rounded
    flat = pk.data.shifted_gaussian(40, 9, 1.0, key=KEY)
    r = pk.learn_from_perturbations(LEARNER, flat, size=SIZE, key=KEY)
    assert growth_of(r, {}) == {}
