"""A report claims what its numbers allow and nothing else, over a grid of outcomes."""

import itertools
import json
import math

import numpy as np
import pytest

from perturbkernel import report
from perturbkernel.report import plots, results
from perturbkernel.report.captions import captions, growing
from perturbkernel.report.statements import introduction, sentences

NAN = math.nan
CARRIERS = {
    "scenario (a)": "data",
    "scenario (b)": "data",
    "carrier uniform, 40 points": "data",
    "carrier uniform, 40 points, perturbed there": "carrier",
}


def configuration(**changes):
    base = {
        "command": "perturbkernel run",
        "data": "data",
        "classes": ["a", "b"],
        "image_shape": None,
        "n_train": 40,
        "n_test": 100,
        "n_perturbed": 40,
        "carrier": "scenario (a)",
        "at": "data",
        "size": 0.1,
        "norm": "l2",
        "bounds": None,
        "targets": "coin_flip",
        "g": "TwoLayerNTK(), identity loss, GradientFlow(time=10.0)",
    }
    return base | changes


def metrics(g=0.9, cosine=(1.0, 1.0), diagnosis=(1.0, 0.01), zeros=0, guess=0.5, **changes):
    score = {"train": 1.0, "test": 0.95}
    keys = ("signal_rms", "offset_std_rms")
    return {
        "accuracy": {"f": score, "g": {"train": g, "test": g}},
        "controls": {},
        "agreement": 0.9,
        "cosine": None if cosine is None else dict(zip(("mean", "min"), cosine, strict=True)),
        "diagnosis": None
        if diagnosis is None
        else dict(zip(keys, diagnosis, strict=True))
        | {"expected_accuracy": 0.8, "assumes": "identity loss"},
        "zero_gradients": zeros,
        "most_frequent": {"train": guess, "test": guess},
        "status": {"f": "ok", "g": "ok"},
    } | changes


def said(c=None, m=None) -> str:
    return " ".join(sentences(c or configuration(), m or metrics()))


VALUES = (None, NAN, -1.0, -0.5, -0.1, 0.0, 0.2, 0.58, 0.85, 0.9, 0.97, 1.0)


@pytest.mark.parametrize(("mean", "least"), list(itertools.product(VALUES, VALUES)))
def test_directions_are_the_theorys_only_where_cosines_are_large(mean, least):
    known = [NAN if value is None else value for value in (mean, least)]
    if known[1] > known[0]:
        return  # no mean is below the smallest
    text = said(m=metrics(cosine=(mean, least)))
    number = not any(map(math.isnan, known))
    assert ("The perturbations point along" in text) == (number and known[1] >= 0.9)
    assert ("Most of the perturbations point along" in text) == (
        number and known[0] >= 0.9 > known[1]
    )
    assert ("point partly along" in text) == (number and 0.3 <= known[0] < 0.9)
    assert ("do not follow" in text) == (number and -0.3 < known[0] < 0.3)
    assert ("point away" in text) == (number and known[0] <= -0.3)
    assert ("No perturbation makes an angle" in text) != number
    assert not number or all(f"{value:.4f}" in text for value in known)
    assert "nan" not in text and "None" not in text


def test_without_a_theory_nothing_is_said_of_it():
    assert "theory" not in said(m=metrics(cosine=None))
    assert "ignal" not in said(m=metrics(diagnosis=None))


NUMBERS = (None, NAN, math.inf, 0.0, 1e-12, 0.3, 1.0, 3.9, 4.1, 1e6)


@pytest.mark.parametrize(("signal", "offset"), list(itertools.product(NUMBERS, NUMBERS)))
@pytest.mark.parametrize("rule", ["coin_flip", "balanced"])
def test_what_decides_the_outcome_follows_from_signal_and_offset(signal, offset, rule):
    text = said(configuration(targets=rule), metrics(diagnosis=(signal, offset)))
    values = [NAN if value is None else value for value in (signal, offset)]
    if not np.isfinite(values).all():
        assert "are not finite" in text and "outcome depends" not in text
        return
    s, o = values
    assert ("hardly depends" in text) == (s > 4 * o)
    assert ("there is no signal" in text) == (s == 0 < o)
    assert ("are both zero" in text) == (s == o == 0)
    assert ("the outcome depends on the targets drawn;" in text) == (o < s <= 4 * o)
    assert ("decide most of the outcome" in text) == (0 < s <= o)
    assert "balanced targets" not in text or rule != "balanced"
    assert ("is expected to classify 80.0%" in text) == (s + o > 0)
    assert "nan" not in text and "inf" not in text


@pytest.mark.parametrize("loss", ["identity", "squared", "logistic"])
def test_the_theory_of_the_identity_loss_is_not_claimed_of_another(loss):
    text = said(configuration(g=f"TwoLayerNTK(), {loss} loss, GradientFlow(time=10.0)"))
    assert ("holds at small times" in text) == (loss != "identity")


@pytest.mark.parametrize("guess", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("g", [0.0, 0.1, 0.3, 0.5, 0.58, 0.7, 0.8, 0.95])
@pytest.mark.parametrize("n", [10, 100, 10_000])
def test_accuracy_is_compared_with_the_most_frequent_class(g, guess, n):
    text = said(configuration(n_test=n), metrics(g, guess=guess))
    spread = 2 * math.sqrt(guess * (1 - guess) / n)
    assert ("g does better" in text) == (g > guess + spread)
    assert ("g does worse" in text) == (g < guess - spread)
    assert ("within chance of that" in text) == (abs(g - guess) <= spread)
    assert f"{guess:.1%}" in text and f"{g:.1%}" in text


@pytest.mark.parametrize("zeros", [0, 1, 7, 40])
def test_points_that_were_not_perturbed_are_counted(zeros):
    c, m = configuration(), metrics(zeros=zeros)
    text, intro = said(c, m), introduction(c, m)
    assert ("nothing was perturbed" in text) == (zeros == 40)
    assert ("1 point had a zero gradient and was" in text) == (zeros == 1)
    assert ("7 points had a zero gradient and were" in text) == (zeros == 7)
    assert ("all 40 training points" in intro) == (zeros == 0)
    assert zeros == 0 or f"{40 - zeros} of 40" in intro


@pytest.mark.parametrize("rounding", [0.0, 1e-7, 0.005, 0.02, 1.0])
def test_perturbations_that_rounding_swallows_are_reported(rounding):
    text = said(m=metrics(rounding=rounding))
    assert ("take a higher precision" in text) == (rounding > 0.01)


def arrays(classes=2, d=12, boundary=(True, True)):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(4, d))
    data = {
        "mean_toward": rng.normal(size=(classes, d)),
        "curve_size": np.ones(2),
        "curve_accuracy": np.ones(2),
        "sample_inputs": rows,
        "sample_deltas": rows,
        "sample_targets": np.array([1, -1, 1, -1]) if classes == 2 else np.arange(4) % classes,
    }
    if classes > 2:
        return data | {"mean_of_class": rng.normal(size=(classes, d))}
    for name, crosses in zip("fg", boundary, strict=True):
        data[f"map_{name}"] = np.array([[-1.0 if crosses else 0.5, 1.0]])
    return data | {"mean_difference": rng.normal(size=d), "curve_expected": np.ones(2)}


@pytest.mark.parametrize("carrier", list(CARRIERS))
@pytest.mark.parametrize("rule", ["coin_flip", "balanced", "next", "random_other", "given"])
@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("shape", [None, (3, 4), (2, 2, 3), (2, 3, 2)])
def test_what_g_learned_from_is_what_it_was_given(carrier, rule, classes, shape):
    c = configuration(
        carrier=carrier,
        at=CARRIERS[carrier],
        targets=rule,
        classes=[str(i) for i in range(classes)],
        image_shape=shape,
    )
    m = metrics(cosine=None, diagnosis=None)
    found = captions(c, m, arrays(classes))
    everything = " ".join([said(c, m), introduction(c, m), *found.values()])
    assert ("perturbations alone" in everything) == (carrier == "scenario (a)")
    assert ("perturbed points" in everything) == (carrier == "scenario (b)")
    assert ("drawn at random" in everything) == (rule not in ("next", "given"))
    assert ("given labels" in everything) == (rule == "given")
    assert ("on the next class" in everything or "as the next class" in everything) == (
        rule == "next"
    )
    pictures = found["perturbations"]
    assert ("coordinate by coordinate" in pictures) == (shape is None)
    assert ("Mid-grey is zero" in pictures) == (shape == (2, 2, 3))
    assert ("mean over 2 channels" in pictures) == (shape == (2, 3, 2))
    assert ("Points of the carrier" in pictures) == (shape is not None and c["at"] == "carrier")
    assert ("quadrants" in found["outputs"]) == (classes == 2)
    assert ("neither network" in found["outputs"]) == carrier.startswith("scenario")
    assert ("wide line" in found["accuracy_against_size"]) == (classes == 2)
    assert (found["decision_map"] == "") == (classes > 2)


@pytest.mark.parametrize("boundary", list(itertools.product([True, False], repeat=2)))
def test_boundaries_are_described_where_they_are_drawn(boundary):
    text = captions(configuration(), metrics(), arrays(boundary=boundary))["decision_map"]
    f, g = boundary
    assert ("solid boundary" in text) == f and ("dashed boundary" in text) == g
    assert ("f does not change" in text) != f and ("g does not change" in text) != g


def test_numbers_that_json_lacks_are_written_in_words(tmp_path):
    c = configuration(bounds=[0.0, math.inf])
    m = metrics(cosine=(NAN, NAN), diagnosis=(0.0, 0.0))
    result = report.Report(c, m, {}, {})
    content = json.loads(results.as_json(result), parse_constant=lambda name: pytest.fail(name))
    assert content["metrics"]["cosine"] == {"mean": None, "min": None}
    assert content["configuration"]["bounds"] == [0.0, "inf"]
    # The page says the same before and after the way through the file.
    loaded = content["configuration"], content["metrics"]
    assert sentences(*loaded) == sentences(c, m) and introduction(*loaded) == introduction(c, m)


@pytest.mark.parametrize("names", [("$x$", "_y_"), ("<b>", "ключ"), ("$", "a" * 300)])
@pytest.mark.parametrize("shape", [None, (3, 4), (2, 2, 3), (2, 3, 2)])
def test_names_of_classes_are_drawn_as_they_are(names, shape):
    drawn = plots.perturbations(arrays(), names, shape)
    assert plots.render(drawn, "svg")
    texts = {text.get_text() for axis in drawn.axes for text in [axis.title]}
    legends = [axis.get_legend() for axis in drawn.axes if axis.get_legend()]
    texts |= {text.get_text() for legend in legends for text in legend.get_texts()}
    for name in names:
        assert any(plots.plain(name) in text for text in texts)
        assert len(plots.plain(name)) <= 26 and plots.plain(name).count("$") == name.count("$")


def test_colour_is_drawn_around_mid_grey():
    data = arrays()
    data["sample_deltas"] = 1e-3 * np.linspace(-1, 1, 12) * np.ones((4, 1))
    drawn = plots.perturbations(data, ("a", "b"), (2, 2, 3))
    picture = np.asarray(drawn.axes[1].images[0].get_array())
    assert picture.shape == (2, 2, 3)
    np.testing.assert_allclose(picture.ravel(), np.linspace(0, 1, 12), atol=1e-12)


def test_what_g_cannot_learn_is_said_where_it_is_so():
    says = "g can only be linear here, and f is not: at 99% of the points ..."
    m = metrics()
    m["diagnosis"]["linearity"] = {"says": says}
    assert f"What g cannot learn: {says}." in said(m=m)
    m["diagnosis"]["linearity"] = {"says": "g can only be linear here, and f nearly is: ..."}
    assert "linear" not in said(m=m)


def test_accuracy_under_attack_is_drawn_above_what_is_certified():
    table = {
        "norm": ["l2", "l2", "linf", "linf"],
        "size": [0.0, 1.0, 0.0, 0.1],
        "accuracy": [0.9, 0.5, 0.9, 0.4],
        "certified": [0.9, 0.3, NAN, NAN],
    }
    axes = report.robust_accuracy({"f": table, "g": table}, "apgd").axes
    assert [len(axis.lines) for axis in axes] == [4, 2]
    assert [line.get_label() for line in axes[0].lines[:2]] == ["f, under apgd", "f, certified"]
    np.testing.assert_array_equal(axes[1].lines[0].get_ydata(), [0.9, 0.4])


@pytest.mark.parametrize(
    ("margin", "said"),
    [
        ([-2, -1, 1, 2], "reads the target from size 2 on"),
        ([1, -1, 1, 2], "reads the target from size 2 on"),
        ([1, 1, 1, 2], "reads the target at every size"),
        ([-1, -1, -1, 0], "reads the target at none of them"),
        ([-1, 1, 1, -1], "reads the target at some of them, first at 1"),
    ],
)
def test_where_a_growing_perturbation_is_read_as_its_target(margin, said):
    margins = np.array([margin], float)
    arrays = {
        "growth_size": np.arange(4.0),
        "growth_margin_f": margins,
        "growth_margin_g": -margins,
        "growth_sample": np.array([1]),
        "sample_targets": np.array([1, -1]),
    }
    settings = {"classes": ["cat", "dog"]}
    caption = growing(settings, arrays)
    assert f"f {said}; g reads" in caption and "aims at dog" in caption
