"""The benchmark suite: interleaving and ratios on fake clocks, rows that fail in words, and the
command end to end.
"""

import importlib
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import perturbkernel
from perturbkernel.cli import bench
from perturbkernel.cli.main import main

ROOT = Path(__file__).parents[2]
# The suite of this checkout, whether it is installed or on the path: its folder counts as one more
# sub-package.
perturbkernel.__path__.insert(0, str(ROOT))
suite = bench.suite()
harness, page, precision = suite.harness, suite.page, suite.precision


class Clock:
    """Time that passes only when a method spends it; remembers who ran."""

    def __init__(self):
        self.now, self.order = 0.0, []

    def __call__(self) -> float:
        return self.now

    def method(self, name: str, *seconds: float, result: Any = 0.0):
        """Takes the given times in turn, beginning with the warm-up."""
        left = list(seconds)

        def call():
            self.order.append(name)
            self.now += left.pop(0)
            return jnp.asarray(result)

        return call


def compared(clock: Clock, methods, rounds: int = 3, reference=None, **options):
    reference = reference or clock.method("ref", 9, *[2.0] * 40)
    rows = suite.compare(
        "sum", "n = 1", ("ref", lambda: reference), methods, rounds, clock=clock, pause=0, **options
    )
    return list(rows)


def test_runs_are_interleaved_and_the_warm_up_is_not_counted():
    clock = Clock()
    a, b = clock.method("a", 50, 1, 4, 2), clock.method("b", 70, 8, 8, 8)
    rows = compared(clock, {"a": lambda: a, "b": lambda: b})
    assert clock.order == ["ref", "a", *["ref", "a"] * 3, "b", *["ref", "b"] * 3]
    assert rows[0].samples == (0.5, 2.0, 1.0) and rows[0].seconds == 2
    assert rows[1].samples == (4.0, 4.0, 4.0) and rows[1].status == "ok"


def test_ratios_are_of_neighbours_so_that_a_slow_spell_cancels():
    clock = Clock()
    reference = clock.method("ref", 1, 1, 10, 100)
    a = clock.method("a", 1, 3, 30, 300)
    (row,) = compared(clock, {"a": lambda: a}, reference=reference)
    assert row.quartiles == pytest.approx((3, 3, 3))


def test_median_and_quartiles():
    row = suite.Row("sum", "n = 1", "a", "ref", samples=(5.0, 1.0, 2.0, 4.0, 3.0))
    assert row.quartiles == (2, 3, 4)
    assert page.result(row) == "3 (2 to 4)"
    assert suite.Row("sum", "n = 1", "a", "ref").quartiles is None
    nothing = suite.Row("sum", "n = 1", "a", "ref", samples=(1.0, np.nan))
    assert nothing.quartiles is None and page.result(nothing) == "not finite"


def test_a_method_that_fails_has_a_row_and_the_others_go_on():
    clock = Clock()

    def broken():
        raise RuntimeError("out of\nmemory")

    def absent():
        raise harness.NotHere("scikit-learn is not installed")

    later = clock.method("later", 1, 1, 1)  # fails in the third round, when its times run out
    good = clock.method("good", 1, 1, 1, 1)
    builders = {
        "broken": lambda: broken,
        "absent": absent,
        "later": lambda: later,
        "good": lambda: good,
    }
    rows = compared(clock, builders)
    assert [row.status for row in rows] == ["failed", "skipped", "failed", "ok"]
    assert rows[0].reason == "RuntimeError: out of memory" and "not installed" in rows[1].reason
    assert rows[3].samples == (0.5, 0.5, 0.5)
    no_reference = list(suite.compare("sum", "n = 1", ("ref", absent), builders, 3))
    assert {row.status for row in no_reference} == {"skipped"} and len(no_reference) == 4


def test_results_are_compared():
    clock = Clock()
    values = {"a": [1.0, 100.0], "near": [1.0, 100.1], "far": [1.0, 110.0], "nan": [np.nan, 1.0]}
    calls = {name: clock.method(name, *[1.0] * 4, result=value) for name, value in values.items()}
    rows = compared(
        clock, {name: lambda call=call: call for name, call in calls.items()}, tolerance=1e-2
    )
    assert [row.status for row in rows] == ["ok", "ok", "differs", "differs"]
    assert rows[1].note == "results differ by 1e-03" and len(rows[2].samples) == 3
    assert (
        "by 1e-01 of the largest entry" in rows[2].reason and "being not finite" in rows[3].reason
    )
    reference = clock.method("ref", *[1.0] * 9, result=[1.0, 100.0])
    calls = {name: clock.method(name, *[1.0] * 4, result=values[name]) for name in ("near", "far")}
    rows = compared(
        clock,
        {name: lambda call=call: call for name, call in calls.items()},
        reference=reference,
        tolerance=1e-2,
        same_result=True,
    )
    assert [row.status for row in rows] == ["ok", "failed"]


def test_powers(rng):
    sizes = np.array([100, 200, 400, 1000])
    scale = rng.uniform(1, 3, size=(5, 1))
    np.testing.assert_allclose(harness.power(sizes, scale * sizes**1.5), [1.5] * 5)


def test_a_case_that_raises_is_reported_and_does_not_stop_the_run():
    def raises():
        raise ValueError("no such matrix")

    good = suite.Row("sum", "n = 1", "a", "ref", samples=(1.0,))
    group = suite.Group("fake", "A fake group", "time / time", lambda settings: [])
    outcome = suite.run(
        [
            (group, suite.Case("bad", "n = 2", raises, 1)),
            (group, suite.Case("good", "", lambda: [good], 1)),
        ]
    )
    assert [row.status for row in outcome.rows] == ["failed", "ok"] and outcome.failed
    assert (
        outcome.rows[0].reason == "ValueError: no such matrix" and outcome.rows[1].group == "fake"
    )


def test_rows_are_told_as_soon_as_they_are_there():
    told = []

    def measure():
        for i in (1, 2):
            assert len(told) == i
            yield suite.Row("sum", f"n = {i}", "a", "ref", samples=(1.0,))
        raise ValueError("too large")

    case = suite.Case("sums", "n", measure, cost=1)
    outcome = suite.run(
        [(suite.Group("g", "G", "x", lambda s: []), case)], lambda group, event: told.append(event)
    )
    assert told[0] is case and [row.sizes for row in told[1:3]] == ["n = 1", "n = 2"]
    assert [row.status for row in outcome.rows] == ["ok", "ok", "failed"]


def test_processor_times_stand_beside_those_of_the_clock(monkeypatch):
    clock, work = Clock(), Clock()
    monkeypatch.setattr(harness.time, "process_time", work)
    works, waits = work.method("works", 3, 4), clock.method("waits", 7, 8)
    seconds, processor = harness.times([works, waits], 2, clock, pause=0)
    assert seconds.tolist() == [[0, 7], [0, 8]] and processor.tolist() == [[3, 0], [4, 0]]
    row = harness.ratios(
        (np.array([[2.0, 1], [4, 1], [9, 1]]), np.array([[6.0, 2]] * 3)), subject=0, reference=1
    )
    assert row == {"samples": (2, 4, 9), "seconds": 4, "processor": 3}


def test_a_fresh_process_finds_this_package_and_fails_in_words():
    code = "import os, importlib.util as u; print(1); print(u.find_spec('perturbkernel').origin, os.environ['A'])"
    assert harness.fresh_process(code, A="b") == f"{ROOT / 'perturbkernel' / '__init__.py'} b"
    with pytest.raises(RuntimeError, match="the process ended with 1: no memory"):
        harness.fresh_process("raise SystemExit('no memory')")


# --- the groups that measure in their own ways ---


@pytest.fixture
def small_training(monkeypatch):
    for name, value in {"N": 20, "D": 3, "WIDTH": 5}.items():
        monkeypatch.setattr(suite.training, name, value)
    # One network, 16 of them, PyTorch with all its threads and with one.
    monkeypatch.setattr(
        suite.training, "times", lambda calls, rounds: np.full((2, rounds, 4), [2.0, 48, 8, 4])
    )


def test_without_torch_its_rows_are_skipped(small_training, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    rows = list(suite.training._measure(2, harness.Settings(quick=True)))
    assert [row.status for row in rows] == ["ok", "skipped", "skipped"]
    assert rows[1].reason == "torch is not installed" and rows[0].samples == (1.5,) * 3


def test_the_faster_of_the_torch_loops_counts(small_training, monkeypatch):
    monkeypatch.setattr(
        suite.training, "_torch", lambda: SimpleNamespace(get_num_threads=lambda: 2)
    )
    monkeypatch.setattr(
        suite.training, "_torch_loop", lambda torch, net, x, *rest: np.zeros(len(x))
    )
    rows = list(suite.training._measure(2, harness.Settings(quick=True)))
    assert [row.quartiles[1] for row in rows] == [1.5, 0.5, 0.75]
    assert "one thread; its outputs differ by 1e+00" in rows[1].note


def test_interpolation_finds_the_factorisation():
    (row,) = suite.solvers._interpolation(
        "tiny", 60, 5, True, harness.Settings(quick=True, repeats=1)
    )
    assert row.status == "ok" and float(row.note.split()[-1]) < 1e-4


def test_heavy_ball_written_in_numpy(rng):
    """The oracle keeps every velocity and sums: a = rate sum_j v_j; float32 is right to 1e-6 or so."""
    solvers, x, y = (
        suite.solvers,
        rng.normal(size=(20, 3)).astype(np.float32),
        rng.choice([-1.0, 1.0], 20),
    )
    gram, velocities = oracle.ntk(x.astype(float), x.astype(float), 0.0, True), [np.zeros(20)]
    for _ in range(solvers.STEPS):
        outputs = gram @ (solvers.RATE * np.sum(velocities, axis=0))
        velocities.append(
            solvers.MOMENTUM * velocities[-1] + y * (1 - 1 / (1 + np.exp(-y * outputs))) / 20
        )
    wanted = solvers.RATE * np.sum(velocities, axis=0)
    assert harness.difference(solvers.numpy_heavy_ball(x, y.astype(np.float32)), wanted) < 1e-4


def test_devices(monkeypatch, capsys):
    suite.scale.devices_child("matvec", (30, 20, 5), (1,), 2, 0)
    (fields,) = json.loads(capsys.readouterr().out)
    asked = {}

    def process(code, **environment):
        asked.update(environment, code=code)
        return json.dumps([fields] * 4)

    monkeypatch.setattr(suite.scale, "fresh_process", process)
    rows = list(suite.scale._over_devices("matvec", harness.Settings(quick=True)))
    assert (
        asked["XLA_FLAGS"].endswith("device_count=8")
        and "devices_child('matvec', (2048, 2048, 100)" in asked["code"]
    )
    assert [row.sizes.split(",")[0] for row in rows] == [
        "1 device",
        "2 devices",
        "4 devices",
        "8 devices",
    ]
    assert all(len(row.samples) == 2 and "no speed-up" in row.note for row in rows)


def test_large(monkeypatch, capsys):
    stages, planned = list(suite.scale.STAGES), {}

    class Kernel:
        def plan(self, n, m, d, what):
            planned[what, m] = (n, d)
            return SimpleNamespace(seconds=2.0 if m is None else 4.0)

    ran = {
        "seconds": dict(zip(stages, (3, 4, 5), strict=True)),
        "accuracy": (0.9, 0.8),
        "data": 1024,
        "above": 2048,
    }
    large = importlib.import_module(f"{suite.__name__}.large")
    monkeypatch.setattr(large, "run", lambda n, d, progress: ran)
    monkeypatch.setattr(suite.scale, "TwoLayerNTK", Kernel)
    suite.scale.large_child(60)
    assert planned == dict.fromkeys(
        [("matvec", None), ("input_gradient", None), ("matvec", 60)], (60, 784)
    )
    printed = capsys.readouterr().out
    monkeypatch.setattr(suite.scale, "fresh_process", lambda code: printed)
    rows = list(suite.scale._large(60, harness.Settings(quick=True)))
    assert [(row.what, row.samples, row.seconds) for row in rows] == [
        (stages[0], (1.5,), 3),
        (stages[1], (2.0,), 4),
        (stages[2], (1.25,), 5),
    ]
    assert [row.note.partition(";")[0] for row in rows] == [
        "accuracy of f 0.9000",
        "in all 2 KiB above the data's 1 KiB",
        "accuracy of g 0.8000",
    ]


# --- the methods that are compared ---


def test_the_float64_reference_is_the_oracle():
    for kind in precision.POINTS:
        z, x, coef = precision.draw(kind, 3)
        got, z, x = precision.reference(z, x, coef), z[:6].astype(float), x.astype(float)
        wanted = {
            "angles": oracle.angle(x, z).T,
            "outputs": oracle.matvec(z, x, coef, 0.0, True),
            "gradients": oracle.input_gradient(z, x, coef, 0.0, True),
        }
        errors = precision.errors({name: value[:6] for name, value in got.items()}, wanted)
        # The cancellation of x - z, 1e4 or so at near points, is left in the angles; float32's
        # errors are from 1e-7.
        assert max(errors.values()) < 1e-10, (kind, errors)


def test_the_alternatives_compute_the_kernel():
    other = suite.products.other
    x, z, coef = suite.products.points((31, 1500, 7), 0)  # more queries than NumPy's block
    ntk = oracle.ntk(x, z, 0.0, True).T
    matvec, gradient = (
        oracle.matvec(z, x, coef, 0.0, True),
        oracle.input_gradient(z, x, coef, 0.0, True),
    )
    for got, wanted in (
        (other.numpy_ntk(z, x), ntk),
        (other.sklearn_ntk(z, x)(), ntk),
        (other.numpy_matvec(z, x, coef), matvec),
        (other.numpy_input_gradient(z, x, coef), gradient),
    ):
        assert got.dtype == np.float32 and harness.difference(got, wanted) < 1e-5
    near = other.tangents_ntk()(z[:20], x), other.tangents_input_gradient()(z[:20], x, coef)
    assert (
        harness.difference(near[0], ntk[:20]) < 1e-5
        and harness.difference(near[1], gradient[:20]) < 1e-4
    )


# --- the command ---


@pytest.fixture
def tiny(monkeypatch):
    """The suite at sizes of no interest."""
    monkeypatch.setattr(suite.products, "QUICK", ((40, 30, 5),))
    monkeypatch.setattr(suite.products, "QUICK_PERTURBATIONS", (20,))


def test_one_case_end_to_end(tiny, tmp_path, capsys):
    cases = "products.ntk,products.ntk-at-perturbations"
    arguments = ["bench", "--quick", "--only", cases, "--repeats", "2", "--quiet"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    for method in ("perturbkernel", "NumPy", "scikit-learn", "neural-tangents"):
        assert re.search(
            rf"ntk +40 x 30 x 5 float32 +{method} +one x @ z.T +[\d.]+ \([\d.]+ to [\d.]+\)",
            printed,
        )
    assert "8 rows in" in printed and "cores; JAX on" in printed
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "bench.json",
        "bench.html",
        "products.png",
        "products.svg",
    }

    def strict(constant):
        raise AssertionError(f"{constant} is no JSON")

    content = json.loads((tmp_path / "out" / "bench.json").read_text(), parse_constant=strict)
    assert content["configuration"]["command"].startswith(
        "perturbkernel bench --quick --only products.ntk"
    )
    assert {"processor", "cores", "device", "versions"} <= content["environment"].keys()
    assert "scikit-learn" in content["environment"]["versions"]
    for row in content["rows"]:
        assert len(row["samples"]) == 2 and row["median"] == pytest.approx(
            np.median(row["samples"])
        )
        assert (row["group"], row["reference"], row["status"]) == ("products", "one x @ z.T", "ok")
    html = (tmp_path / "out" / "bench.html").read_text()
    assert html.count("data:image/png;base64,") == 1 and not re.search(
        r'(src|href)="(?!data:)', html
    )


@pytest.fixture
def fake(monkeypatch):
    """Groups that show everything a row can be, and run no time."""

    def row(what: str, samples=(), **fields):
        return suite.Row(
            what,
            fields.pop("sizes", "n = <1>"),
            fields.pop("subject", "perturbkernel"),
            "x",
            samples,
            **fields,
        )

    rows = [
        row("a", (0.5, 0.7)),
        row("a", (4.0, 5.0), subject="other", status="differs", reason="wrong"),
        row("a", (np.nan,), subject="third", note="NaN"),
        row("b", subject="absent", status="skipped", reason="torch is not installed"),
    ]
    curves = [
        row("c", (1.0, 1.1), sizes=f"n = 1, 2; d = {d}", curve=((1.0, 1.0), (2.0, 2.1)))
        for d in (1, 2)
    ]

    def broken():
        raise RuntimeError("no luck")

    def cases(rows, *more):
        return lambda settings: [suite.Case("all", "n = 1", lambda: rows, cost=1), *more]

    groups = (
        suite.Group(
            "times",
            "Times",
            "time / time",
            cases(rows, suite.Case("bad", "n", broken, cost=120)),
            one="the same",
        ),
        suite.Group("curves", "Curves", "powers", cases(curves)),
        suite.Group("nothing", "Nothing", "time / time", cases(rows[3:])),
    )
    monkeypatch.setattr(suite, "GROUPS", groups)


def test_a_failing_row_is_reported_and_exits_with_1(fake, tmp_path, capsys):
    assert main(["bench", "--quiet", "--out", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert re.search(r"bad .* failed .* RuntimeError: no luck", printed)
    assert "8 rows in 0 s, 1 with another result, 2 skipped, 1 failed" in printed
    names = {f"{group}.{kind}" for group in ("times", "curves") for kind in ("png", "svg")}
    assert {path.name for path in tmp_path.iterdir()} == {"bench.json", "bench.html"} | names
    html = (tmp_path / "bench.html").read_text()
    assert (
        html.count("data:image/png") == 2 and 'class="failed"' in html and "n = &lt;1&gt;" in html
    )
    content = json.loads((tmp_path / "bench.json").read_text())
    assert [row["status"] for row in content["rows"]].count("failed") == 1
    assert content["rows"][2]["samples"] == [None] and content["rows"][2]["median"] is None


def test_a_figure_that_fails_costs_no_numbers(fake, tmp_path, monkeypatch):
    def no_font(group, rows):
        raise RuntimeError("no font")

    monkeypatch.setattr(page.figures, "figure", no_font)
    outcome = harness.Outcome([suite.Row("a", "n = 1", "x", "y", (1.0,), group="times")])
    environment = {"processor": "p", "cores": 1, "backend": "cpu", "device": "cpu"}
    environment |= {"python": "3", "perturbkernel": "0", "versions": {}}
    with pytest.raises(RuntimeError, match="no font"):
        page.save(suite.GROUPS, outcome, {}, environment, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["bench.json"]
    assert json.loads((tmp_path / "bench.json").read_text())["rows"][0]["median"] == 1


def test_what_is_skipped_or_differs_does_not_fail(fake, capsys):
    assert main(["bench", "--quiet", "--only", "times.all,curves"]) == 0
    assert "RuntimeError" not in capsys.readouterr().out
    assert main(["bench", "--only", "times,nothing"]) == 1
    told = capsys.readouterr().err.splitlines()
    assert (
        told[0] == "[1/3] times.all: n = 1 (about 1 s)"
        and told[1] == "    a, perturbkernel: 0.6 (0.55 to 0.65)"
    )
    assert (
        told[5] == "[2/3] times.bad: n (minutes: about 2)"
        and told[6] == "    bad, perturbkernel: failed"
    )


def test_the_list(capsys):
    assert main(["bench", "--list", "--only", "products,memory.matvec"]) == 0
    printed = capsys.readouterr().out
    assert (
        "products.input_gradient" in printed
        and "8192 x 4096 x 100 float32" in printed
        and "growth" not in printed
    )
    assert printed.count("memory.matvec") == 1 and re.search(
        r"products.ntk .* float32 +about \d+ s\n", printed
    )
    assert main(["bench", "--list", "--quick"]) == 0
    everything = capsys.readouterr().out
    settings = suite.Settings(quick=True)
    for name in (f"{g.name}.{case.name}" for g, case in suite.select(None, settings)):
        chosen = suite.select(name, settings)
        assert {f"{g.name}.{case.name}" for g, case in chosen} == {name}
    assert all(f"\n{group.name}: {group.title}\n" in "\n" + everything for group in suite.GROUPS)
    assert "minutes" not in everything
    assert main(["bench", "--list", "--only", "large"]) == 0
    assert re.search(
        r"large.identity +N = 60,000, d = 784 +minutes: about \d", capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--only", "products,speed"],
            "--only must name groups or cases: start, start.perturb, start.run, ",
        ),
        (["--only", ""], "got ''"),
        (["--only", "products.sums"], "got 'products.sums'"),
        (["--repeats", "0"], "argument --repeats: wanted a whole number, 1 or more; got '0'"),
        (["--repeats", "many"], "argument --repeats: wanted a whole number, 1 or more; got 'many'"),
        (["--seed", "-1"], "argument --seed: wanted a whole number from 0 to 4294967295; got '-1'"),
        (["--out", __file__], "--out must be a folder"),
    ],
)
def test_errors_are_one_line_and_exit_with_2(arguments, message, capsys):
    try:
        status = main(["bench", *arguments])
    except SystemExit as stop:
        status = stop.code
    printed = capsys.readouterr().err
    assert status == 2 and message in printed and printed.count("\n") == 1


# --- where the suite is ---


def test_the_suite_of_this_checkout_is_the_one_that_runs():
    assert Path(str(suite.__file__)) == ROOT / "benchmarks" / "__init__.py"
    assert suite.__name__ == "perturbkernel.benchmarks" and bench.suite() is suite


def test_an_installation_holds_every_package_and_the_suite():
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in ROOT.glob("perturbkernel/**/__init__.py")
    }
    assert set(setup["packages"]) == found | {"perturbkernel.benchmarks"}
    assert setup["package-dir"] == {"perturbkernel.benchmarks": "benchmarks"}


NOTHING_INSTALLED = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
sys.path.insert(0, {path!r})
from perturbkernel.cli.main import main
status = main(["bench", "--list"])
print(sys.modules.get("perturbkernel.benchmarks"))
sys.exit(status)
"""


@pytest.mark.parametrize("place", ["perturbkernel/benchmarks", "benchmarks", None])
def test_the_suite_is_found_in_an_installation(place, tmp_path):
    """Copies of the package as a wheel lays it out, as a checkout does that is only on the path,
    and without the suite.
    """
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "perturbkernel", tmp_path / "perturbkernel", ignore=ignore)
    if place is not None:
        shutil.copytree(ROOT / "benchmarks", tmp_path / place, ignore=ignore)
    code = NOTHING_INSTALLED.format(path=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    if place == "perturbkernel/benchmarks":
        assert done.returncode == 0
        assert str(tmp_path / place / "__init__.py") in done.stdout
    else:
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert "suite, perturbkernel.benchmarks, is missing" in done.stderr
        assert "`pip install -e .`" in done.stderr


def test_what_the_suite_misses_is_not_taken_for_the_suite(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError("No module named 'scipy'", name="scipy")

    monkeypatch.setattr(bench.importlib, "import_module", missing)
    with pytest.raises(ModuleNotFoundError, match="scipy"):
        bench.suite()
