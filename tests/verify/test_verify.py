"""Every check holds on the theory as it is, and fails on a theory with a wrong constant or a
dropped term.
"""

import dataclasses
import html as markup
import json
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import binom, t

from perturbkernel import theory, verify
from perturbkernel.attacks import certificates, flips
from perturbkernel.attacks import one_step as perturbations
from perturbkernel.attacks.one_step import perturb
from perturbkernel.kernels import angles as activations
from perturbkernel.kernels.two_layer import TwoLayerNTK
from perturbkernel.learning import split
from perturbkernel.report import drawing
from perturbkernel.theory import arguments, tails
from perturbkernel.training import fit
from perturbkernel.training.dynamics import GradientFlow, HeavyBall
from perturbkernel.verify import draws, judgement, page, protocol, runner, second_network
from perturbkernel.verify.judgement import judge
from perturbkernel.verify.protocol import Check, Sample, Setting

CHECKS = {check.name: check for check in verify.checks()}


def altered(owner, name: str, change: Callable):
    """Replaces owner.name by a function whose results went through `change`."""

    def apply(monkeypatch):
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, **kwargs: change(original(*args, **kwargs)))

    return apply


def scaled(owner, name: str, factor: float):
    return altered(owner, name, lambda value: factor * value)


def field(owner, name: str, **factors: float):
    """Scales fields of a result record."""

    def change(record):
        return dataclasses.replace(
            record, **{key: factor * getattr(record, key) for key, factor in factors.items()}
        )

    return altered(owner, name, change)


def replaced(owner, name: str, value):
    return lambda monkeypatch: monkeypatch.setattr(owner, name, value)


def estimated(name: str, factor: float):
    """Scales what the law of one neuron says of networks."""

    def change(estimate):
        return estimate._replace(value=factor * estimate.value, mean=factor * estimate.mean)

    return altered(theory.NeuronLaw, name, change)


def _larger(found):
    return found._replace(value=1.3 * np.asarray(found.value))


def faster(law):
    """Neurons that have moved too far."""
    return dataclasses.replace(law, paths=law.paths._replace(moved=1.001 * law.paths.moved))


def always(record):
    """A condition that is met everywhere."""
    return dataclasses.replace(record, holds=np.ones_like(record.holds))


def _gram_angles(z, x):
    """The angle as it must not be computed in float32."""
    product = z @ x.T
    lengths = [jnp.sqrt(1 + jnp.sum(p**2, 1) / p.shape[1]) for p in (z, x)]
    cosine = (1 + product / z.shape[1]) / (lengths[0][:, None] * lengths[1])
    return product, jnp.arccos(jnp.clip(cosine, -1, 1))


def _no_transient(self):
    return float(np.sum(self.rates)) / (1 - self.momentum)


def _fit_at_twice_the_time(kernel, x, y, *, loss, dynamics):
    twice = GradientFlow(2 * dynamics.time) if isinstance(dynamics, GradientFlow) else dynamics
    return _fit(kernel, x, y, loss=loss, dynamics=twice)


_fit = fit.fit


def _misdirected(net, x, targets, **options):
    made = perturb(net, x, targets, **options)
    return dataclasses.replace(made, delta=made.delta * (1 + 0.01 * targets[:, None]))


def _no_flips(gates):
    return dataclasses.replace(
        gates, sets=np.zeros_like(gates.sets), input_sets=np.zeros_like(gates.input_sets)
    )


def _all_certified(certificate):
    return dataclasses.replace(certificate, certified=np.ones_like(certificate.certified))


def _without_part(record, name: str):
    return dataclasses.replace(record, g_parts={**record.g_parts, name: 0 * record.g_error})


def _without_residual(record):
    return _without_part(record, "xi")


def _without_concentration(record):
    return _without_part(record, "concentration")


def _surer(tail):
    """As if the network had a hundred times as many neurons, but not less lazy loss."""
    return dataclasses.replace(tail, mean=tail.mean + tail.lazy, variance=tail.variance / 100)


def _halved(moments):
    return tails.LazyMoments(*(0.5 * moment for moment in moments))


def _certified_everywhere(record):
    return dataclasses.replace(record, certified=np.ones_like(record.certified))


def _all_linear(part):
    return dataclasses.replace(part, certified=np.ones_like(part.certified))


def _one_more(record):
    return dataclasses.replace(record, flips=record.flips + 1)


B = theory.bounds
# For every check: what its setting becomes, and what breaks the theory that it tries.
BROKEN: dict[str, tuple[dict, Callable | None]] = {
    "0.1": ({"draws": 40, "slope": 0.0}, scaled(TwoLayerNTK, "phi", 1.05)),
    "0.1 range": ({"draws": 3}, scaled(TwoLayerNTK, "phi", 1.05)),
    "0.2": (
        {"draws": 3},
        altered(activations, "products_and_angles", lambda pair: (pair[0], 1.02 * pair[1])),
    ),
    "0.3": ({"draws": 1}, scaled(theory, "gate_motion", 0.9)),
    "0.3 Lipschitz": ({"draws": 5}, scaled(arguments, "cone_slope", 0.3)),
    "0.4": ({"draws": 1, "d": 6, "n": 8}, scaled(arguments, "cone_slope", 0.9)),
    "0.5": ({"draws": 3}, replaced(activations, "products_and_angles", _gram_angles)),
    "1.1": ({"draws": 2}, replaced(HeavyBall, "effective_time", property(_no_transient))),
    "1.2": ({"draws": 1}, replaced(fit, "fit", _fit_at_twice_the_time)),
    "1.3 (iii)": ({"draws": 3, "time": 0.3}, field(B, "coefficient_bounds", high=0.9)),
    "1.3 (ii)": ({"draws": 3}, scaled(B, "weight_error_bound", 0.5)),
    "1.3 (iv)": ({"draws": 5}, scaled(B, "half_time_gap", 0.3)),
    "1.3 (1.4)": (
        {"draws": 5, "time": 1.0, "shift": 0.1},
        altered(theory, "same_sign_as_identity", lambda met: np.ones_like(met)),
    ),
    "2.1": ({"draws": 12, "width": 300}, scaled(B, "gate_moment_bound", 0.2)),
    "2.1 kernel": ({"draws": 12, "width": 300}, scaled(B, "kernel_bound", 0.2)),
    "2.1 variance": ({"draws": 150, "width": 100}, scaled(theory, "gate_moment_variance", 0.4)),
    "2.1'": ({"draws": 12, "width": 2000}, scaled(B, "gate_moment_bound_split", 0.1)),
    "2.2": ({"draws": 12, "width": 300}, scaled(B, "predictor_bound", 0.1)),
    "2.2 variance": ({"draws": 150, "width": 100}, scaled(theory, "predictor_variance", 0.4)),
    "2.3 vector": ({"draws": 12, "width": 2000}, scaled(B, "direction_bound", 0.05)),
    "2.3 operator": ({"draws": 12, "width": 2000}, scaled(B, "direction_bound", 0.05)),
    "2.3 variance": ({"draws": 150, "width": 100}, scaled(theory, "direction_variance", 0.4)),
    "3.1": ({"draws": 3, "width": 200}, scaled(B, "displacement", 0.4)),
    "3.1 lazy number": ({"draws": 10, "width": 2000}, scaled(B, "lazy_number", 0.5)),
    "3.2": ({"draws": 8, "width": 1000}, field(theory, "certified_gates", bound=0.01)),
    "3.2 algorithm L": ({"draws": 8, "width": 1000}, field(theory, "certified_gates", bound=0.01)),
    "3.2 gates": ({"draws": 2, "width": 500}, altered(theory, "certified_gates", _no_flips)),
    "3.3": ({"draws": 12, "width": 2000}, scaled(B, "lazy_bound", 0.003)),
    "3.4": (
        {"draws": 40, "widths": (250, 1000, 4000)},
        altered(theory, "tangent_predictor", lambda pair: (1.3 * pair[0], pair[1])),
    ),
    "3.4 spread": ({"draws": 100, "width": 500}, scaled(theory, "lazy_standard_deviation", 0.02)),
    "3.5": ({"draws": 3, "width": 2000}, scaled(B, "logistic_stability", 0.2)),
    "3.5 a priori": ({"draws": 10, "width": 10000}, scaled(B, "linearisation_error", 0.02)),
    "4.1": ({"draws": 12, "width": 200}, scaled(B, "initial_output_bound", 0.2)),
    "4.1 measured": ({"draws": 12, "width": 200}, scaled(B, "initial_output_bound_measured", 0.2)),
    "4.1 moments": ({"draws": 200}, scaled(theory, "initial_output_variance", 0.5)),
    "4.2": ({"draws": 12, "width": 200}, scaled(B, "initial_gradient_bound", 0.3)),
    "4.2 measured": (
        {"draws": 12, "width": 200},
        scaled(B, "initial_gradient_bound_measured", 0.3),
    ),
    "4.3": ({"draws": 12, "width": 200}, scaled(B, "initial_projection_bound", 0.2)),
    "4.3 measured": (
        {"draws": 12, "width": 200},
        scaled(B, "initial_projection_bound_measured", 0.2),
    ),
    "4.4": (
        {"draws": 2, "width": 100},
        altered(theory, "doubled", lambda net: (*net[:2], 1.01 * np.abs(net[2]))),
    ),
    "4.4 lazy": ({"draws": 12, "width": 4000}, scaled(B, "lazy_bound", 0.003)),
    "4.4 predictor": ({"draws": 12, "width": 2000}, scaled(B, "predictor_bound", 0.1)),
    "5.1": ({"draws": 2}, field(theory, "decompose_gradient", lazy=0.0)),
    "5.2 B_1": ({"draws": 12, "width": 500}, field(B, "gradient_bounds", initial=0.2)),
    "5.2 B_2": ({"draws": 12, "width": 500}, field(B, "gradient_bounds", flips=0.05)),
    "5.2 B_3": ({"draws": 12, "width": 500}, field(B, "gradient_bounds", concentration=0.05)),
    "5.2 B_4": ({"draws": 12, "width": 500}, field(B, "gradient_bounds", lazy=0.005)),
    "5.2 a priori": ({"draws": 12, "width": 500}, field(B, "gradient_bounds", total=0.1)),
    "5.3": ({"draws": 3}, scaled(B, "gate_motion_bound", 0.2)),
    "5.3 limit": ({"draws": 30, "width": 2000}, scaled(theory, "gate_motion", 4.0)),
    "5.4 (i)": ({"draws": 2, "width": 4000}, scaled(B, "flips_bound_measured", 0.1)),
    "5.4 (ii)": (
        {"draws": 3, "width": 4000},
        altered(B, "measured_cosine_bound", lambda bound: 1 - 0.5 * (1 - bound)),
    ),
    "6.1": ({"draws": 1, "n": 20}, scaled(theory, "psi", 0.99)),
    "6.2": ({"draws": 1}, scaled(theory, "g_hat_w", 0.99)),
    "6.2 spread": (
        {"draws": 20, "shift": 0.0, "points": 400},
        altered(theory, "spread_condition", always),
    ),
    "6.3": ({"draws": 12, "n": 100, "size": 10.0}, field(B, "label_term", radius=0.1)),
    "6.3 balanced": ({"draws": 12, "n": 100, "size": 10.0}, field(B, "label_term", radius=0.1)),
    "6.3 systematic": ({"draws": 3, "n": 100}, field(B, "label_term", systematic_bound=0.05)),
    "6.3 mean": ({"draws": 1400, "size": 20.0}, field(B, "label_term", systematic=-1.0)),
    "6.4 (a)": ({"draws": 10, "width": 5000}, field(theory, "match", g_error=0.1)),
    "6.4 (a) signs": ({"draws": 10, "width": 5000}, altered(theory, "match", always)),
    "6.4 (b)": ({"draws": 7, "width": 5000, "n": 200}, field(theory, "match", g_error=0.03)),
    "6.4 (b) signs": ({"draws": 7, "width": 5000, "n": 200}, altered(theory, "match", always)),
    "6.4 constants": ({}, altered(theory, "match", _without_concentration)),
    "6.4 a priori": ({"draws": 1}, altered(theory, "match", _without_residual)),
    "6.5 constants": ({"draws": 1}, altered(tails, "lazy_moments", _halved)),
    "6.5 level": ({"draws": 4}, altered(tails, "derive_tail", _surer)),
    "6.5 failure": (
        {"draws": 6, "start": "random"},
        altered(tails.Tail, "log_failure", lambda log: log - 5),
    ),
    "6.6 constants": ({"draws": 1}, altered(theory, "certify", _certified_everywhere)),
    "6.6 signs": ({"draws": 8}, altered(theory, "certify", _certified_everywhere)),
    "7.3 constants": ({}, altered(theory, "logistic_match", _without_residual)),
    "7.1": (
        {"draws": 10, "width": 5000},
        field(B, "logistic_predictor_error", lazy=0.0, concentration=0.03),
    ),
    "7.2": ({"draws": 10, "width": 1000}, field(B, "gradient_bounds", total=0.1)),
    "7.2 weights": ({"draws": 10}, scaled(B, "weighted_direction_gap", 0.1)),
    "7.3 (a)": ({"draws": 8, "width": 10000}, field(theory, "logistic_match", g_error=0.1)),
    "7.3 (a) signs": ({"draws": 8, "width": 10000}, altered(theory, "logistic_match", always)),
    "7.3 (b)": (
        {"draws": 7, "width": 2500, "n": 100},
        field(theory, "logistic_match", g_error=0.02),
    ),
    "8.1": ({"draws": 1}, replaced(perturbations, "perturb", _misdirected)),
    "8.2": ({"draws": 5}, altered(B, "label_effect_bound", lambda pair: (0.3 * pair[0], pair[1]))),
    "8.2 offset": ({"draws": 400}, scaled(theory, "bias_offset_deviation", 0.7)),
    "8.3": ({"draws": 1}, altered(theory, "f_hat", lambda value: value + 0.01)),
    "8.4": ({"draws": 2}, altered(theory, "output", lambda value: value + 0.01)),
    "8.5": ({"draws": 1}, altered(theory, "f_hat", lambda value: value + 0.01)),
    "8.6": ({"draws": 1}, scaled(theory, "symmetric_predictor_without_bias_input", 1.01)),
    "8.7": ({"draws": 3}, scaled(B, "linear_gap_bound", 0.7)),
    "8.7 exact": ({"draws": 1}, scaled(theory, "linear_predictor", 1.01)),
    "8.7 linear networks": ({"draws": 2}, None),
    "8.8 kernel": ({"draws": 150, "widths": (60, 400, 2400)}, scaled(theory, "gate_moment", 1.2)),
    "8.8 flips": ({"draws": 15, "widths": (100, 400, 1600)}, None),
    "8.8 output": ({"draws": 140, "widths": (80, 400, 2000)}, scaled(theory, "f_hat", 1.3)),
    "8.8 gradient": (
        {"draws": 12, "widths": (250, 1000, 4000)},
        scaled(theory, "limit_gradient", 2.0),
    ),
    "8.8 f_0": ({"draws": 150, "widths": (50, 200, 800)}, None),
    "8.9": ({"draws": 200, "width": 500}, scaled(theory, "output_change_variance", 0.3)),
    "8.10": (
        {"draws": 2, "width": 100},
        altered(theory, "doubled", lambda net: (*net[:2], np.abs(net[2]))),
    ),
    "12.1": (
        {"draws": 60, "width": 500},
        altered(theory, "expected_accuracy", lambda value: value - 0.2),
    ),
    "12.1 agreement": (
        {"draws": 60, "width": 500, "samples": 40},
        field(theory, "expected_agreement", mean=0.6),
    ),
    "12.2": ({"draws": 30, "width": 500}, scaled(theory, "expected_cosine", 0.6)),
    "12.3": ({"draws": 500}, field(theory, "target_moments", variance=0.5)),
    "12.3 balanced": ({"draws": 500}, field(theory, "target_moments", variance=0.5)),
    "14.1": ({"draws": 2}, altered(theory, "simulate_neurons", faster)),
    "14.2": ({"draws": 150}, estimated("mean", 0.7)),
    "14.2 variance": ({"draws": 200}, estimated("std", 0.6)),
    "14.2 collapse": ({"draws": 80}, estimated("mean", 0.5)),
    "14.3": ({"draws": 60}, estimated("cosine", 0.9)),
    "14.5 networks": ({"draws": 5}, altered(theory, "certify_network", _all_certified)),
    "14.5 signs": ({"draws": 7}, altered(theory, "certify_experiment", _all_certified)),
    "14.4": ({"draws": 100}, estimated("mean", 0.6)),
    "15.1": ({"draws": 5}, field(theory, "linear_part", error=0.05)),
    "15.1 signs": ({"draws": 20, "size": 10.0}, altered(theory, "linear_part", _all_linear)),
    "15.2": (
        {"draws": 20, "size": 100.0, "n": 20},
        altered(theory, "linear_part", _all_linear),
    ),
    "15.3": (
        {"draws": 12, "width": 500, "points": 200},
        altered(theory, "linear_part", _all_linear),
    ),
    "16.1": ({}, scaled(theory.scaling, "first_accuracy", 0.92)),
    "16.2": ({}, scaled(theory.scaling, "second_accuracy", 0.92)),
    "16.3": ({}, scaled(theory.scaling, "second_accuracy", 0.92)),
    "17.1": ({"draws": 3}, field(certificates, "certified_size", size=1.01)),
    "17.2": ({"draws": 2}, altered(flips, "certified_flips", _one_more)),
    "17.4": ({"draws": 6}, field(certificates, "certified_size", size=5.0)),
    "17.3": ({}, altered(split, "expected_own_square", _larger)),
}
# Statements about training itself, without a formula to break: a wrong power instead.
RATES = {"8.8 flips": -0.9, "8.8 f_0": -0.4}


def small(name: str) -> tuple[Check, Setting]:
    check = CHECKS[name]
    return check, dataclasses.replace(check.settings[0], **BROKEN[name][0])


def test_every_check_is_broken_here():
    assert set(BROKEN) == set(CHECKS)


def as_key(value):
    return (value.shape, hash(value.tobytes())) if isinstance(value, np.ndarray) else value


def trains_once(monkeypatch):
    """Networks are drawn from the same seed again when the theory is broken, and what training
    makes of them is no part of it.
    """
    kept = {}
    original = draws.train

    def train(net, x, y, kernel, s, **options):
        rate = HeavyBall(1.0, s.steps, s.momentum).effective_time  # part of the theory, in 1.1
        arrays = (*net, x, y, *options.values())
        key = (*map(as_key, arrays), *options, kernel, s.steps, s.momentum, s.loss, rate)
        if key not in kept:
            kept[key] = original(net, x, y, kernel, s, **options)
        return kept[key]

    for module in (draws, *runner._MODULES):
        if hasattr(module, "train"):
            monkeypatch.setattr(module, "train", train)


# Where rounding is tested: it differs where optimisations contract products and sums.
ROUNDING = ("0.5",)


@pytest.mark.parametrize("name", [name for name in BROKEN if name not in ROUNDING])
def test_a_broken_formula_fails(name, monkeypatch):
    tries_a_broken_formula(name, monkeypatch)


def tries_a_broken_formula(name, monkeypatch):
    trains_once(monkeypatch)
    check, setting = small(name)
    verdict = runner.run([check], setting)[0]
    vacuous = check.hopeless or name in ("7.3 (b)",)
    assert verdict.verdict == ("vacuous" if vacuous else "holds"), (
        verdict.measured,
        verdict.reason,
    )
    if name in RATES:
        check = dataclasses.replace(check, interval=(RATES[name] - 0.1, RATES[name] + 0.1))
    elif name == "8.7 linear networks":
        monkeypatch.setattr(second_network, "replace", lambda s, slope: s)
        setting = dataclasses.replace(setting, shift=0.0, draws=10)
        monkeypatch.setattr(
            second_network, "TwoLayerNTK", lambda slope, bias: TwoLayerNTK(0.0, bias)
        )
    else:
        change = BROKEN[name][1]
        assert change is not None
        change(monkeypatch)
    if name.endswith("signs"):
        # Hardly trained, both networks are what they were drawn as, which a condition that is
        # always met does not see.
        setting = dataclasses.replace(setting, start="random", time=1e-3, time_g=1e-3)
    verdict = runner.run([check], setting)[0]
    assert verdict.verdict == "fails", (verdict.measured, verdict.median, verdict.worst)
    assert verdict.violations and verdict.reason


def judged(kind: str, samples: list[Sample], **options) -> protocol.Verdict:
    check = Check("9.9", "a statement", kind, lambda rng, s, p: None, (), **options)
    return judge(check, Setting(delta=0.1, widths=(10, 100, 1000)), samples)


def test_binomial_tail_and_allowed_errors():
    for trials, probability, count in (
        (20, 0.1, 0),
        (20, 0.1, 1),
        (20, 0.1, 9),
        (300, 0.05, 40),
        (5, 1.0, 5),
        (5, 0.1, 6),
    ):
        expected = binom.sf(count - 1, trials, probability)
        assert judgement.binomial_tail(trials, probability, count) == pytest.approx(
            expected, rel=1e-9
        )
    for statistics, trials in ((1, 10), (1, 200), (20, 40)):
        exact = t.isf(judgement.FALSE_ALARM / (2 * statistics), trials - 1)
        assert judgement.allowed_errors(statistics, trials) == pytest.approx(exact, rel=0.15)


@pytest.mark.parametrize(
    ("violations", "verdict"), [(0, "holds"), (7, "holds"), (10, "fails"), (20, "fails")]
)
def test_probability_allows_what_chance_explains(violations, verdict):
    """P(Bin(20, 0.1) >= 9) = 7e-5 is the first below 1e-4."""
    samples = [
        Sample([0.5, 2.0 if i < violations else 0.1], [1.0, 1.0], [1.0, 4.0]) for i in range(20)
    ]
    out = judged("probability", samples)
    assert (out.verdict, out.violations) == (verdict, violations)
    assert out.median == (2.0 if violations > 10 else 1.25 if violations == 10 else 0.5)


def test_surely_allows_rounding_only():
    assert judged("surely", [Sample(1 + 5e-10, 1.0)]).verdict == "holds"
    assert judged("surely", [Sample(1 + 5e-9, 1.0)]).verdict == "fails"
    assert judged("surely", [Sample(0.0, 0.0)]).verdict == "holds"
    assert judged("surely", [Sample(1e-300, 0.0)]).verdict == "fails"
    assert judged("identity", [Sample(1.01e-12, 1e-12)]).verdict == "fails"


@pytest.mark.parametrize("kind", ["probability", "surely", "identity", "expectation"])
def test_what_is_undefined_fails(kind):
    assert judged(kind, [Sample(np.array([0.1, np.nan]), np.ones(2))] * 30).verdict == "fails"


def test_vacuous_is_no_pass():
    wide = judged("surely", [Sample(0.1, 5.0, 1.0)], resolves="the signal")
    assert (
        wide.verdict == "vacuous" and "5 times the signal" in wide.reason and wide.resolution == 5
    )
    nowhere = judged("surely", [Sample([1.0], [np.nan])], claim=True)
    assert nowhere.verdict == "vacuous" and nowhere.claimed == 0
    # A violated bound fails, however wide it is.
    assert judged("surely", [Sample(6.0, 5.0, 1.0)]).verdict == "fails"
    assert not verify.failed([wide, nowhere]) and verify.failed(
        [judged("surely", [Sample(6.0, 5.0)]), wide]
    )


def test_expectations(rng):
    values = rng.normal(1, 0.1, size=400)
    assert judged("expectation", [Sample(v, 1.0) for v in values]).verdict == "holds"
    assert judged("expectation", [Sample(v, 0.9) for v in values]).verdict == "fails"
    assert judged("expectation", [Sample(v, 0.9, slack=0.15) for v in values]).verdict == "holds"
    assert (
        judged("expectation", [Sample(v, 1.5) for v in values], one_sided=True).verdict == "holds"
    )
    assert (
        judged("expectation", [Sample(v, 0.5) for v in values], one_sided=True).verdict == "fails"
    )
    few = judged("expectation", [Sample(v, 1.0) for v in 1 + 30 * (values - 1)][:20])
    assert few.verdict == "vacuous" and "too few draws" in few.reason


def test_rates(rng):
    widths = np.array([10.0, 100.0, 1000.0])
    samples = [Sample(3 * widths**-0.5 * rng.normal(1, 0.02, size=3)) for _ in range(30)]
    out = judged("rate", samples, interval=(-0.6, -0.4))
    assert (
        out.verdict == "holds"
        and out.median == pytest.approx(-0.5, abs=0.01)
        and out.worst is not None
    )
    np.testing.assert_array_equal(out.expected, widths)
    assert judged("rate", samples, interval=(-0.3, -0.2)).verdict == "fails"
    noisy = [Sample(widths**-0.5 * np.exp(rng.normal(0, 2, size=3))) for _ in range(8)]
    assert judged("rate", noisy, interval=(-0.6, -0.4)).verdict == "vacuous"


def test_unknown_kinds_are_refused():
    with pytest.raises(ValueError, match="kind must be one of probability"):
        judged("certainly", [])


@pytest.mark.parametrize(
    ("only", "found"),
    [
        ("8.1", {"8.1"}),
        ("1", {"1.1", "1.2", "1.3"}),
        ("2.1", {"2.1", "2.1'"}),
        ("2.1'", {"2.1'"}),
        (" 8.10, 5.1", {"5.1", "8.10"}),
        (["12"], {"12.1", "12.2", "12.3"}),
    ],
)
def test_selection(only, found):
    assert {check.id for check in runner.select(only)} == found


@pytest.mark.parametrize("only", ["9.9", "", "3.", "x", []])
def test_unknown_results_are_named(only):
    with pytest.raises(ValueError, match=r"only must name results of the theory: 0.1, 0.2, .*12.3"):
        verify.verify(only)


def test_every_result_is_tried():
    """Every numbered result of the theory that can be tried is."""
    numbers = "0.1 0.2 0.3 0.4 0.5 1.1 1.2 1.3 2.1 2.1' 2.2 2.3 3.1 3.2 3.3 3.4 3.5 4.1 4.2 4.3 4.4 5.1 5.2 5.3"
    numbers += " 5.4 6.1 6.2 6.3 6.4 6.5 6.6 7.1 7.2 7.3 8.1 8.2 8.3 8.4 8.5 8.6 8.7 8.8 8.9 8.10 12.1 12.2 12.3"
    numbers += " 14.1 14.2 14.3 14.4 14.5 15.1 15.2 15.3 16.1 16.2 16.3"
    numbers += " 17.1 17.2 17.3 17.4"
    assert list(dict.fromkeys(check.id for check in verify.checks())) == numbers.split()
    assert all(check.settings for check in verify.checks())


@pytest.fixture(scope="module")
def verdicts():
    names: list[str] = []
    out = verify.verify("4.4,6.2,8.10", on_stage=names.append)
    assert len(names) == verify.trials("4.4,6.2,8.10") == 6
    return out


def test_draws_do_not_depend_on_the_selection(verdicts):
    again = verify.verify("8.10")
    assert (again[0].median, again[0].worst) == (verdicts[-1].median, verdicts[-1].worst)
    other = verify.verify("8.10", seed=1)
    assert other[0].worst != again[0].worst
    with pytest.raises(ValueError, match="seed"):
        verify.verify("8.10", seed=-1)


def test_the_table_needs_no_explanation(verdicts):
    text = verify.table(verdicts, width=130)
    assert [line.split()[0] for line in text.splitlines() if "holds" in line[-6:]] == [
        "4.4"
    ] * 3 + ["6.2"] * 2 + ["8.10"]
    for wanted in (
        "a doubled network starts at zero",
        "vacuous:",
        "6 checks in",
        "6 hold, 0 vacuous, 0 fail",
        "[4]",
    ):
        assert wanted in text
    assert "2.1'" in verify.listing() and "every entry of Phi_m" in verify.listing()


def test_results_on_disk(verdicts, tmp_path):
    bad = judged("surely", [Sample([np.inf, 2.0], [1.0, 1.0])])
    rate = judged(
        "rate", [Sample(np.array([3.0, 2.0, 1.0 + 0.01 * i])) for i in range(5)], interval=(-1, 0)
    )
    mean = judged(
        "expectation",
        [Sample(np.array([1.0 + 0.1 * (-1) ** i, 2.0]), np.array([1.0, 2.0])) for i in range(9)],
    )
    everything = [*verdicts, *(dataclasses.replace(v, id="3.4") for v in (bad, rate, mean))]
    (tmp_path / "mine.txt").write_text("kept")
    folder = verify.save(everything, tmp_path, {"command": "perturbkernel verify <x>"})
    assert {path.name for path in folder.iterdir()} == {
        "verify.json",
        "verify.npz",
        "verify.html",
        "mine.txt",
    }

    def strict(constant):
        raise AssertionError(f"{constant} is no JSON")

    content = json.loads((folder / "verify.json").read_text(), parse_constant=strict)
    assert (
        content["verdicts"][-3]["worst"] is None and content["verdicts"][-3]["verdict"] == "fails"
    )
    assert content["verdicts"][0]["statement"] and "perturbkernel" in content["environment"]
    html = (folder / "verify.html").read_text()
    assert (
        "perturbkernel verify &lt;x&gt;" in html
        and html.count("data:image/png") == 4
        and "http" not in html
    )
    loaded = verify.load(folder)
    assert [v.name for v in loaded] == [v.name for v in everything]
    np.testing.assert_array_equal(loaded[0].observed, everything[0].observed)
    assert loaded[-2].interval == (-1, 0)


@pytest.fixture
def empty_figures(monkeypatch) -> None:
    """Where it counts that there are figures, and not what they show."""
    monkeypatch.setattr(page, "figure", lambda members: drawing.figure(1, 1))


def test_a_failed_write_leaves_the_earlier_result(verdicts, empty_figures, tmp_path, monkeypatch):
    verify.save(verdicts[:1], tmp_path)
    before = (tmp_path / "verify.json").read_text()
    monkeypatch.setattr(page, "_arrays", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        verify.save(verdicts, tmp_path)
    assert (tmp_path / "verify.json").read_text() == before
    assert len(list(tmp_path.iterdir())) == 3
    with pytest.raises(ValueError, match="is a file"):
        verify.save(verdicts, tmp_path / "verify.json")
    with pytest.raises(FileNotFoundError, match="no finished result"):
        verify.load(tmp_path / "nothing")


def test_what_has_no_points_has_no_panel(verdicts, empty_figures, tmp_path):
    claimed = dataclasses.replace(verdicts[0], claim=True)
    html = (verify.save([claimed], tmp_path) / "verify.html").read_text()
    assert "data:image" not in html and html.count(f"<td>{claimed.verdict}</td>") == 1
    html = (verify.save([claimed, verdicts[0]], tmp_path) / "verify.html").read_text()
    assert html.count("data:image") == 1
    # The caption is what was checked.
    assert f"{verdicts[0].id}: {verdicts[0].statement}.</figcaption>" in markup.unescape(html)


def test_a_failed_figure_costs_no_results(verdicts, empty_figures, tmp_path, monkeypatch):
    def broken(members):
        if members[0].id == "6.2":
            raise ValueError("no <axis>")
        return figure(members)

    figure = page.figure
    monkeypatch.setattr(page, "figure", broken)
    with pytest.warns(UserWarning, match="figure of 6.2 could not be drawn"):
        verify.save(verdicts, tmp_path)
    assert [v.name for v in verify.load(tmp_path)] == [v.name for v in verdicts]
    html = (tmp_path / "verify.html").read_text()
    assert "ValueError: no &lt;axis&gt;" in html
    assert html.count("data:image/png") == 2
    # A page that cannot be written leaves the results, and no page of earlier ones beside them.
    monkeypatch.setattr(page, "_page", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        verify.save(verdicts[:1], tmp_path)
    assert len(verify.load(tmp_path)) == 1
    assert not (tmp_path / "verify.html").exists()


def test_jax_settings_are_left_alone():
    before = jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]
    runner.run([CHECKS["1.2"]], small("1.2")[1])
    assert jax.config.jax_enable_x64 == before  # pyright: ignore[reportAttributeAccessIssue]


# The last of this module, so that few programs are compiled once more.
@pytest.mark.parametrize("name", ROUNDING)
def test_a_formula_that_rounds_fails(name, optimised, monkeypatch):
    tries_a_broken_formula(name, monkeypatch)
