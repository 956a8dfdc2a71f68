"""What the benchmark page begins with, the history of runs, whole processes, and the arithmetic of
a device: on stored rows and tiny sizes.
"""

import json
from dataclasses import replace
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
# The suite of this checkout, as in test_bench.py.
perturbkernel.__path__.insert(0, str(ROOT))
suite = bench.suite()
harness, history, story = suite.harness, suite.history, suite.story
Row = harness.Row

MACHINE = {"processor": "p", "cores": 2, "backend": "cpu", "device": "cpu"}
ENVIRONMENT = {**MACHINE, "python": "3", "perturbkernel": "0", "versions": {}}


def row(samples, what="matvec", subject="perturbkernel", **fields) -> Any:
    fields = {"sizes": "n = 1", "reference": "x @ z.T", "group": "sizes"} | fields
    return Row(what, subject=subject, samples=tuple(samples), **fields)


def stored() -> list[Any]:
    """One row at least of everything that the page begins with."""
    rows = []
    for subject, seconds in (
        ("perturbkernel", 3.0),
        ("perturbkernel, cached", 2.0),
        ("NumPy", 0.3),
    ):
        start = row((seconds, seconds * 1.1), "train", subject, group="start", reference="JAX")
        rows += [start, replace(start, what="perturbkernel run")]
    for what in ("matvec", "input_gradient"):
        for n in (100, 1000, 60_000):
            sizes = {"sizes": f"{n} x 784", "size": float(n)}
            rows.append(row((1.0, 1.1, 1.2), what, **sizes))
            rows.append(row((300 / n, 310 / n), what, "NumPy", **sizes))
            rows.append(row((4.0,), what, "neural-tangents", status="differs", **sizes))
    measured = ((1000.0, 0.02), (3000.0, 0.2))
    planned = ((60_000.0, 80.0), (1e6, 22_000.0))
    rows.append(row((1.1, 0.9), "all", group="million", curve=measured, planned=planned))
    return rows


# --- the page ---


def test_the_page_begins_with_three_figures_and_the_table_of_tools(tmp_path):
    outcome = harness.Outcome(stored())
    folder = suite.page.save(suite.GROUPS, outcome, {}, ENVIRONMENT, tmp_path)
    written = {path.stem for path in folder.glob("story-*.svg")}
    assert written == {"story-start", "story-sizes", "story-million"}
    page = (folder / "bench.html").read_text()
    places = [page.index(f'alt="story-{name}"') for name in ("start", "sizes", "million")]
    places += [page.index("Which tool for which size"), page.index("How to read the rows")]
    assert places == sorted(places)
    assert "Nothing on an accelerator is measured yet" in page
    assert "Not measured in this run" not in page and "Since the last run" not in page


def test_figures_that_were_not_measured_are_named(tmp_path):
    rows = [one for one in stored() if one.group == "sizes"]
    folder = suite.page.save(suite.GROUPS, harness.Outcome(rows), {}, ENVIRONMENT, tmp_path)
    page = (folder / "bench.html").read_text()
    assert "Not measured in this run: start, million (<code>--only start,million</code>)" in page


def test_the_figures_show_the_rows():
    drawn = {picture.name: picture.figure for picture in story.pictures(stored())}
    bars = drawn["story-start"].axes[0].patches
    assert [bar.get_width() for bar in bars] == pytest.approx([3.15, 2.1, 0.315])
    lines = drawn["story-sizes"].axes[0].lines
    curve = next(line for line in lines if len(line.get_xdata()) == 3)
    assert curve.get_xdata().tolist() == [100, 1000, 60_000]
    assert curve.get_ydata() == pytest.approx([1.1] * 3)
    measured, _, planned = drawn["story-million"].axes[0].lines
    assert measured.get_xdata().tolist() == [1000, 3000]
    assert planned.get_ydata().tolist() == [80, 22_000] and planned.get_markerfacecolor() == "white"


def test_an_accelerator_is_named():
    said = suite.page.accelerator({"backend": "gpu", "device": "H9"})
    assert said == "Measured on an accelerator: H9 (gpu)."


def test_which_tool_for_which_size():
    found = {(one.what, one.sizes): one for one in story.choices(stored())}
    small, middle = found["matvec, time", "100 x 784"], found["matvec, time", "1000 x 784"]
    assert small.best == "perturbkernel"
    assert small.others == "NumPy 2.8 times; neural-tangents: another result"
    assert middle.best == "NumPy" and middle.others.startswith("perturbkernel 3.6 times")
    assert found["train, first result", "n = 1"].best == "NumPy"


def test_methods_whose_quartiles_meet_are_level_and_a_reference_can_win():
    level = [row((1.0, 1.2, 1.1)), row((1.15, 1.05, 1.3), subject="NumPy")]
    (one,) = story.choices(level)
    assert one.best == "perturbkernel or NumPy" and one.others == ""
    duel = row((2.0, 2.0), group="predictors", reference="neural-tangents")
    (one,) = story.choices([duel])
    assert one.best == "neural-tangents" and one.others == "perturbkernel 2 times"
    assert story.choices([row((1.0,))]) == []


# --- history ---


def verdict(before, now) -> str:
    return history.Change(row(now), row(before), "").verdict


def test_a_row_is_worse_only_beyond_the_spread_of_both():
    assert verdict((1.0, 1.1, 1.2), (1.3, 1.4, 1.5)) == "worse"
    assert verdict((1.3, 1.4, 1.5), (1.0, 1.1, 1.2)) == "better"
    assert verdict((1.0, 1.1, 1.35), (1.3, 1.4, 1.5)) == ""
    # Of many samples the quartiles count, so that one slow round hides nothing.
    assert verdict((*[1.0] * 8, 9.0), (*[1.2] * 8, 0.5)) == "worse"
    assert verdict((1.0, 1.0), (1.04, 1.04)) == ""
    assert verdict((1.0,), (2.0, 2.0)) == "one sample"


def test_runs_are_kept_and_compared_with_the_last_one_on_the_same_machine(tmp_path):
    folder = tmp_path / "kept"
    assert history.read(folder) == []

    def keep(value, environment, *others):
        rows = [row((value, value * 1.01)), *others]
        return history.add(folder, harness.Outcome(rows), {"command": "c"}, environment)

    other = row((5.0, np.nan), subject="NumPy", curve=((1.0, 2.0),))
    first = keep(1.0, ENVIRONMENT, other)
    content = first.read_bytes()
    keep(3.0, ENVIRONMENT | {"cores": 64})
    assert first.read_bytes() == content and len(list(folder.glob("run-*.json"))) == 2
    runs = history.read(folder)
    kept = [one for run in runs for one in run.rows if one.subject == "NumPy"]
    assert kept[0].curve == ((1.0, 2.0),) and np.isnan(kept[0].samples[1])
    found = history.changes([row((2.0, 2.02)), other], runs, ENVIRONMENT)
    assert [(change.ratio, change.verdict) for change in found] == [(pytest.approx(2), "worse")]
    assert "1 rows against the last run on this machine: 1 worse, 0 better" in history.summary(
        found
    )


def test_a_row_is_compared_with_the_last_run_that_has_it():
    def run(date, *rows):
        return history.Run(date, date, MACHINE, rows)

    runs = [run("a", row((1.0, 1.0))), run("b", row((2.0, 2.0))), run("c", row((9.0,), "ntk"))]
    (change,) = history.changes([row((2.0, 2.0))], runs, ENVIRONMENT)
    assert (change.commit, change.ratio) == ("b", 1)


def test_the_commit_is_that_of_the_checkout(tmp_path, monkeypatch):
    name = history.commit().rstrip("+")
    assert not name or (len(name) == 12 and int(name, 16) >= 0)
    # Installed inside another project, whose commit would say nothing.
    monkeypatch.setattr(perturbkernel, "__file__", str(tmp_path / "__init__.py"))
    assert history.commit() == ""


@pytest.fixture
def quick_suite(monkeypatch):
    """One group of one row, whose value is `value[0]`."""
    value = [1.0]

    def cases(settings):
        rows = lambda: [row((value[0], value[0] * 1.01), group="")]  # noqa: E731
        return [suite.Case("all", "n = 1", rows, cost=1)]

    monkeypatch.setattr(suite, "GROUPS", (suite.Group("sizes", "Sizes", "time / time", cases),))
    return value


def test_the_command_keeps_runs_and_tells_a_worse_row(quick_suite, tmp_path, capsys):
    kept, out = tmp_path / "kept", tmp_path / "out"
    assert main(["bench", "--quiet", "--history", str(kept)]) == 0
    assert "no earlier run on this machine has these rows" in capsys.readouterr().out
    quick_suite[0] = 2.0
    assert main(["bench", "--quiet", "--history", str(kept), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "1 worse, 0 better" in printed
    assert "worse: sizes: matvec, n = 1, perturbkernel: 1" in printed and "x 2 (since" in printed
    assert len(list(kept.iterdir())) == 2
    page = (out / "bench.html").read_text()
    assert "Since the last run" in page and '<tr class="worse">' in page
    fields = json.loads(min(kept.iterdir()).read_text())
    assert {"date", "commit", "environment", "configuration", "rows"} <= fields.keys()


@pytest.mark.parametrize("wrong", ["file", "other", "broken", "foreign", "out"])
def test_wrong_folders_are_told_before_anything_is_measured(wrong, quick_suite, tmp_path, capsys):
    folder = tmp_path / "kept"
    arguments = ["bench", "--quiet", "--history", str(folder)]
    if wrong == "file":
        folder.write_text("")
        message = "--history must be a folder"
    elif wrong == "out":
        arguments += ["--out", str(folder)]
        message = "--history and --out must be two folders"
    else:
        folder.mkdir()
        name, text = {
            "other": ("report.json", "{}"),
            "broken": ("run-1.json", '{"rows": '),
            "foreign": ("run-1.json", '{"rows": [{"samples": 3}]}'),
        }[wrong]
        (folder / name).write_text(text)
        message = "no run of `perturbkernel bench --history`"
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1 and not printed.out
    left = list(folder.iterdir()) if folder.is_dir() else []
    assert len(left) == (wrong in ("other", "broken", "foreign"))


# --- whole processes ---


def test_processes_are_interleaved_with_one_that_starts_jax():
    start, ran = suite.start, []

    def run(arguments, environment):
        ran.append((arguments[-1], environment.get("PERTURBKERNEL_COMPILATION_CACHE")))
        bare = "import jax" in arguments[-1]
        # The first run of each reads files for the first time.
        seconds = 9.0 if len(ran) < 3 else 1.0
        return start.Spent(seconds if bare else 3 * len(ran), 0.5 if bare else 2.0, "0.75")

    starts = [start.Start("mine", ["do"], cached=True), start.Start("broken", ["fail"])]
    (mine, broken) = start.rows("first", "n", starts, 2, run)
    assert [name for name, _ in ran[:6]] == [start._NOTHING[-1], "do"] * 3
    assert [cache for _, cache in ran[:2]] == ["off", "on"]
    assert mine.samples == (12, 18) and mine.processor == 4
    assert mine.note == "accuracy of g 0.750; JAX alone 1 s" and broken.status == "ok"

    def fails(arguments, environment):
        raise RuntimeError("the process ended with 1: no memory")

    (failed,) = start.rows("first", "n", starts[1:], 2, fails)
    assert failed.status == "failed" and "no memory" in failed.reason


def test_a_process_is_timed_and_its_last_line_kept():
    spent = suite.start.spend(["-c", "print(1); print(0.5)"], {})
    assert spent.printed == "0.5" and spent.seconds > 0 and spent.processor > 0


def test_the_first_result_is_the_same_by_every_method():
    first = suite.start.first
    task = first.draw(40, 50, 0)
    found = {name: first.METHODS[name](task) for name in ("perturbkernel", "NumPy")}
    assert found["perturbkernel"] == found["NumPy"] > 0.5


def test_gradients_at_the_points_themselves_in_numpy():
    x, _, coef = suite.products.points((30, 1, 7), 0)
    got = suite.products.other.numpy_input_gradient(x, x, coef, at_points=True)
    wide = x.astype(float)
    wanted = oracle.input_gradient(wide, wide, coef, 0.0, True)
    # Angles of a point with itself by arccos of a rounded cosine are right to 3e-4.
    assert harness.difference(got, wanted) < 1e-2


# --- to a million points ---


def test_sizes_that_take_too_long_are_planned(monkeypatch):
    million = suite.million
    monkeypatch.setattr(million, "SIZES", (20, 40, 1_000_000))
    monkeypatch.setattr(million, "DIMENSION", 5)

    class Kernel(perturbkernel.TwoLayerNTK):
        def plan(self, n, m, d, **options):
            plan = super().plan(n, m, d, **{**options, "rate": 1e6})
            return plan

    monkeypatch.setattr(million, "TwoLayerNTK", Kernel)
    found = million.row(harness.Settings(quick=True))
    assert [n for n, _ in found.curve] == [20, 40] and len(found.samples) == 2
    # 4 n^2 d operations
    assert found.planned == ((1e6, pytest.approx(4e12 * 5 / 1e6)),)
    assert "N = 1,000,000 planned" in found.note


def test_every_size_has_its_number(monkeypatch):
    monkeypatch.setattr(suite.sizes, "QUICK", (30,))
    monkeypatch.setattr(suite.sizes, "DIMENSION", 5)
    (case, _) = suite.sizes.GROUP.cases(harness.Settings(quick=True, repeats=1))
    rows = list(case.measure())
    assert [one.subject for one in rows] == ["perturbkernel", "NumPy", "neural-tangents"]
    assert {one.size for one in rows} == {30.0} and rows[0].status == "ok"


# --- the arithmetic of a device ---


@pytest.mark.parametrize(("name", "unit"), [("TF32", 2**-11), ("bfloat16", 2**-8)])
def test_products_in_lower_precision_are_imitated_by_rounding(name, unit, rng):
    arithmetic = suite.arithmetic
    mode = arithmetic.MODES[name]
    a = jnp.asarray(1 + rng.random((64, 1)), jnp.float32)
    one = jnp.ones((1, 1), jnp.float32)
    off = np.abs(np.asarray(arithmetic.matmul(a, one, mode)) - np.asarray(a))
    # Half a unit in the last place of numbers between 1 and 2, which some come near to.
    assert unit / 2 < off.max() <= unit
    exact = arithmetic.matmul(a, one, arithmetic.MODES["float32 at highest"])
    assert np.array_equal(exact, a)


def test_errors_of_each_precision_are_in_their_order():
    settings = harness.Settings(quick=True, repeats=1)
    rows = list(suite.arithmetic._errors("new points", settings))
    errors = {one.subject: one.samples[0] for one in rows if one.what == "error of outputs"}
    ours, exact, tf32, bfloat16 = errors.values()
    assert max(ours, exact) < 1e-6 < 10 * max(ours, exact) < tf32 < bfloat16 < 0.1
    assert rows[-1].note == "inputs rounded as an accelerator does"


def test_the_roofline_on_a_cpu_and_as_on_a_device_without_tf32(monkeypatch):
    arithmetic = suite.arithmetic
    monkeypatch.setattr(arithmetic, "QUICK_SHAPE", (40, 30, 5))
    settings = harness.Settings(quick=True, repeats=1)
    rows = {one.subject: one for one in arithmetic._roofline(settings)}
    assert [one.status for one in rows.values()] == ["ok", "skipped", "skipped", *["ok"] * 3]
    assert "GB/s" in rows["read and write the result"].note
    assert rows["perturbkernel matvec"].note.endswith("GFLOP/s")
    assert rows["TF32"].reason == "a CPU has no products in TF32"
    # What runs on an accelerator: XLA's own products, which a CPU has in bfloat16 alone.
    monkeypatch.setattr(arithmetic, "imitated", lambda: False)
    monkeypatch.setattr(arithmetic, "_ACCELERATOR_SHAPE", (40, 30, 5))
    arithmetic._rounded.clear_cache()
    full = harness.Settings(repeats=1)
    rows = {one.subject: one for one in arithmetic._roofline(full)}
    arithmetic._rounded.clear_cache()
    assert rows["bfloat16"].status == "ok" and rows["TF32"].status == "skipped"
    assert rows["TF32"].reason == "no products in TF32 on cpu"


def test_memory_of_an_accelerator_is_what_its_runtime_counts(monkeypatch):
    import importlib

    large = importlib.import_module(f"{suite.__name__}.large")
    counted = {"bytes_in_use": 5, "peak_bytes_in_use": 9}
    device = SimpleNamespace(memory_stats=lambda: counted)
    monkeypatch.setattr(large.jax, "devices", lambda: [device])
    assert (large.resident(), large.peak()) == (5, 9)
    monkeypatch.setattr(large.jax, "devices", lambda: [SimpleNamespace(memory_stats=dict)])
    assert large.resident() > 10**6 < large.peak()
