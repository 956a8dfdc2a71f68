"""What a reproduction does when files are damaged, and when code, data or workers differ."""

import json
import os
import shutil
import sys
import time
from concurrent.futures import Executor, Future
from pathlib import Path

import numpy as np
import pytest

import perturbkernel as pk
from perturbkernel import _moved
from perturbkernel.cli.main import main
from perturbkernel.report import plots
from perturbkernel.reproduce import page, plan, runner, source, store
from perturbkernel.reproduce.panels import datasets, limit, network

PACKAGE = Path(pk.__file__).parent
CELLS = [{"function": "limit", "config": {"number": number}} for number in range(3)]


def square(config):
    return {"square": np.array(config["number"] ** 2), "row": np.arange(50.0)}


@pytest.fixture
def computed(tmp_path, monkeypatch):
    """A folder with three finished cells."""
    monkeypatch.setitem(runner.FUNCTIONS, "limit", square)
    runner.run(CELLS, tmp_path, runner.Here())
    return tmp_path


# --- damaged cells ---


def rewritten(path, header=None, **changed):
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    kept = json.loads(str(arrays.pop("header"))) | (header or {})
    np.savez(path, header=np.array(json.dumps(kept)), **(arrays | changed))


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(content)


def replace_by_a_folder(path):
    path.unlink()
    path.mkdir()


DAMAGE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "empty": lambda path: path.write_bytes(b""),
    "a bit flipped": flip,
    "text": lambda path: path.write_text("no archive"),
    "a single array": lambda path: np.save(path.open("wb"), np.zeros(3)),
    "a folder": replace_by_a_folder,
    "no header": lambda path: np.savez(path, square=np.array(1)),
    "another cell": lambda path: rewritten(path, {"cell": CELLS[2]}),
    "other code": lambda path: rewritten(path, {"code": "0" * 16}),
    "another shape": lambda path: rewritten(path, row=np.arange(49.0)),
    "other values": lambda path: rewritten(path, square=np.array(5)),
    "another dtype": lambda path: rewritten(path, row=np.arange(50, dtype=np.float32)),
    "one array more": lambda path: rewritten(path, extra=np.zeros(1)),
}


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_cell_is_set_aside_and_computed_again(computed, damage):
    path = store.cell_path(computed, CELLS[1])
    damage(path)
    assert not store.is_finished(computed, CELLS[1])
    with pytest.raises(ValueError, match=rf"{path.name}.*give the `reproduce` command again"):
        store.load(computed, CELLS[1])
    with pytest.warns(UserWarning, match=rf"{path.name}.*it is kept as .*computed again"):
        runner.run(CELLS, computed, runner.Here())
    assert [int(store.load(computed, cell)["square"]) for cell in CELLS] == [0, 1, 4]
    assert len(list((computed / "cells").glob(f"{path.name}.*.damaged"))) == 1
    assert len(list((computed / "cells").iterdir())) == 4


def test_an_unreadable_cell_is_set_aside(computed, monkeypatch):
    """By whoever is not root, who may read everything."""
    path = store.cell_path(computed, CELLS[1])
    path.chmod(0)
    if os.access(path, os.R_OK):
        monkeypatch.setattr(
            store.np, "load", lambda *a, **k: (_ for _ in ()).throw(PermissionError("no"))
        )
        with pytest.warns(UserWarning, match="PermissionError"):
            store.set_aside_damaged(computed, CELLS[1])
    else:
        with pytest.warns(UserWarning, match="PermissionError"):
            runner.run(CELLS, computed, runner.Here())


def test_leftovers_of_killed_runs_are_swept(computed):
    (computed / "cells" / ".abc.npz.0123456789abcdef.part").write_bytes(b"half")
    runner.run(CELLS, computed, runner.Here())
    assert len(list((computed / "cells").iterdir())) == 3


# --- identity: code ---


def test_the_code_of_a_cell_is_what_it_executes(tmp_path):
    """Edits of a copy of the package, and which cells they discard."""
    copied = tmp_path / "perturbkernel"
    shutil.copytree(PACKAGE, copied, ignore=shutil.ignore_patterns("__pycache__"))
    of = {
        "limit": "perturbkernel.reproduce.panels.limit",
        "carriers": "perturbkernel.reproduce.studies.carriers.study",
        "width": "perturbkernel.reproduce.studies.width.study",
    }

    def versions():
        return {name: source.source_hash(copied, module) for name, module in of.items()}

    def edited(name, change):
        path = copied / name
        before = path.read_text()
        path.write_text(change(before))
        os.utime(path, ns=(time.time_ns(), time.time_ns()))
        found = {name for name, version in versions().items() if version != first[name]}
        path.write_text(before)
        return found

    first = versions()
    assert first == {name: source.source_hash(PACKAGE, module) for name, module in of.items()}
    add = "\n\ndef added():\n    return 1\n"
    for name in (
        *("sklearn", "cli/main", "report/plots", "report/results", "cli/bench", "_version"),
        *("__init__", "interrupts", "verify/runner", "reproduce/page", "reproduce/runner"),
        *("reproduce/store", "reproduce/panels/specification", "reproduce/panels/figures"),
        *("reproduce/studies/carriers/figure", "reproduce/studies/width/figure"),
        *("cli/reproduce", "reproduce/__init__", "reproduce/plan"),
    ):
        assert edited(f"{name}.py", lambda text: text + add) == set(), name
    for name in ("kernels/two_layer", "kernels/angles", "checks"):
        assert edited(f"{name}.py", lambda text: text + add) == set(of), name
    assert edited("reproduce/panels/limit_logistic.py", lambda text: text + add) == {"limit"}
    assert edited("theory/leading.py", lambda text: text + add) == {"width"}
    for name in ("kernels/two_layer", "reproduce/panels/limit"):
        text = (copied / f"{name}.py").read_text()
        assert edited(f"{name}.py", lambda text: text + "\n# a comment\n\n\n") == set()
        first_line = text.index('"""') + 3
        other = text[:first_line] + "Other words. " + text[first_line:]
        assert edited(f"{name}.py", lambda _, other=other: other) == set(), name


def test_the_walk_follows_folders_and_re_exports(tmp_path):
    """A package in sub-folders: relative imports, names that an `__init__` passes on, cycles."""
    package = tmp_path / "package"
    for name, content in {
        "__init__.py": "from package.other import unused as unused\n",
        "other.py": "unused = 1\n",
        "study/__init__.py": "from package.study.page import draw as draw\n",
        "study/page.py": "def draw(): ...\n",
        "study/measure.py": "from .page import draw as draw\nfrom ..kernels import Kernel, tools\n"
        "import package.facade as facade\ndef measure(): return Kernel, tools, facade.x\n",
        "kernels/__init__.py": "from package.kernels.base import Kernel as Kernel\n"
        "from package.kernels.more import More as More\n",
        "kernels/base.py": "class Kernel:\n    def f(self):\n        from . import inner\n"
        "        return inner\n",
        "kernels/inner.py": "from package.study.measure import measure\nmeasure\n",
        "kernels/more.py": "class More: ...\n",
        "kernels/tools.py": "x: 'Annotated' = 1\nfrom package.annotated import Annotated\n",
        "annotated.py": "Annotated = int\n",
        "facade.py": "from package.deep import x as x\n",
        "deep.py": "x = 1\n",
    }.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(content)
    found = set(source.modules(package, "package.study.measure"))
    kernels = {"kernels.base", "kernels.inner", "kernels.tools"}
    names = {"study.measure", *kernels, "annotated", "facade", "deep"}
    assert found == {f"package.{name}" for name in names}
    assert source.modules(package, "numpy") == {}


DATA = {"name": "shifted_gaussian", "n": 16, "d": 4, "seed": 3}
SMALL = {
    limit.limit_cell: {
        "data": DATA,
        "slope": 0.0,
        "loss": "identity",
        "requests": [["b", 0.5, 1.0, 50, 1.0, 50]],
        "draws": [2, 2],
        "initial_draws": 2,
        "cosine": True,
    },
    network.network_cell: {
        "data": DATA,
        "scenario": "b",
        "width": 4,
        "slope": 0.0,
        "loss": "identity",
        "targets": "balanced",
        "learning_rates_f": [0.3],
        "learning_rates_g": [0.3],
        "steps_f": [2],
        "steps_g": [2],
        "sizes": [0.5],
    },
}


@pytest.mark.parametrize("function", SMALL)
def test_whatever_a_cell_executes_is_hashed(function):
    """Every function of the package that runs, or is traced, lies in a module of the hash.

    But for one: Python asks the finder of old paths, last of all, for every module that is not
    there, and JAX looks for that of TPUs when it starts.
    """
    hashed = set(source.modules(PACKAGE, function.__module__).values())
    finder = _moved._Finder.find_spec.__code__
    executed = set()

    def note(frame, event, argument):
        if event == "call" and frame.f_code is not finder:
            executed.add(frame.f_code.co_filename)

    sys.setprofile(note)
    try:
        function(SMALL[function])
    finally:
        sys.setprofile(None)
    ours = {Path(name) for name in executed if name.startswith(str(PACKAGE))}
    assert len(ours) > 2 and ours <= hashed


class Elsewhere(Executor):
    """Workers with another version of the package, or of what they return."""

    def __init__(self, change):
        self.change = change

    def submit(self, fn, /, *args, **kwargs):
        future = Future()
        future.set_result([self.change(result) for result in fn(*args, **kwargs)])
        return future


@pytest.mark.parametrize(
    "change", [lambda result: result._replace(code="f" * 16), lambda result: tuple(result[:2])]
)
def test_a_worker_with_another_version_is_refused(monkeypatch, tmp_path, change):
    monkeypatch.setitem(runner.FUNCTIONS, "limit", square)
    with pytest.raises(RuntimeError, match=r"another version of the package.*Install the same"):
        runner.run(CELLS, tmp_path, Elsewhere(change))
    assert not list((tmp_path / "cells").iterdir())


# --- identity: data and environment ---


def write_images(folder, seed):
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    for prefix in ("train", "t10k"):
        for name, content in (
            ("images-idx3", rng.integers(0, 256, (30, 28, 28), np.uint8)),
            ("labels-idx1", (np.arange(30) % 3).astype(np.uint8)),
        ):
            sizes = b"".join(size.to_bytes(4, "big") for size in content.shape)
            header = bytes([0, 0, 8, content.ndim]) + sizes
            (folder / f"{prefix}-{name}-ubyte").write_bytes(header + content.tobytes())


def image_cell(folder):
    options = plan.Options(("mnist_a/size/identity",), "limit", seeds=1, mnist=str(folder))
    return plan.cells(options)[0]


def test_cells_belong_to_images_not_to_folders(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    write_images(here, 1)
    shutil.copytree(here, there)
    before = image_cell(here)
    assert store.cell_path("", before) == store.cell_path("", image_cell(there))
    assert datasets.draw(before["config"]["data"]).x.shape == (20, 784)
    write_images(here, 2)
    assert store.cell_path("", before) != store.cell_path("", image_cell(here))
    with pytest.raises(ValueError, match="here holds other images"):
        datasets.draw(before["config"]["data"])


@pytest.fixture
def page_of_two(tmp_path, monkeypatch):
    """The page of a study of two cells that take no time, on a machine of its own."""
    configs = [{"number": 0}, {"number": 1}]
    study = plan.STUDIES["carriers"].module
    monkeypatch.setitem(runner.FUNCTIONS, "carriers", square)
    monkeypatch.setattr(study, "cells", lambda scale, seeds: configs)
    monkeypatch.setattr(study, "summarise", lambda results: {})
    monkeypatch.setattr(study, "draw", lambda results: plots.figure(1, 1))
    store.local_environment.cache_clear()
    monkeypatch.setattr(pk.report, "environment", lambda packages=(): {"device": "a toaster"})
    pk.reproduce.reproduce(["carriers"], tmp_path, workers=0)
    store.local_environment.cache_clear()
    monkeypatch.setattr(pk.report, "environment", lambda packages=(): {"device": "a kettle"})
    yield tmp_path
    store.local_environment.cache_clear()


def test_results_keep_the_environment_that_computed_them(page_of_two, capsys):
    record = page_of_two / "reproduction.json"
    assert json.loads(record.read_text())["environment"] == {"device": "a toaster"}
    assert main(["report", str(page_of_two)]) == 0
    assert json.loads(record.read_text())["environment"] == {"device": "a toaster"}
    assert "a toaster" in (page_of_two / "index.html").read_text()
    cells = plan.study_cells("carriers", plan.Options(("carriers",)))
    store.cell_path(page_of_two, cells[1]).unlink()
    done = pk.reproduce.reproduce(["carriers"], page_of_two, workers=0)
    assert done.environment == {"device": ["a toaster", "a kettle"]}
    assert store.header(page_of_two, cells[0])["environment"] == {"device": "a toaster"}
    assert not list(page_of_two.rglob(".*"))


def test_a_page_of_studies_speaks_of_no_panels(page_of_two):
    text = (page_of_two / "index.html").read_text()
    about = plan.STUDIES["carriers"].about
    assert f"<h1>{about[0].upper()}{about[1:]}</h1>" in text and text.count(about[1:]) == 1
    for word in ("Circles", "Blue", "the paper reproduced", "dynamics", "coin_flip"):
        assert word not in text


def test_every_study_draws_in_the_style_of_all_figures():
    styled = plots.styled(lambda: None).__code__
    for name, study in plan.STUDIES.items():
        assert study.module.draw.__code__ is styled, name


def test_report_names_what_is_damaged(page_of_two, capsys):
    cells = plan.study_cells("carriers", plan.Options(("carriers",)))
    path = store.cell_path(page_of_two, cells[1])
    path.write_bytes(b"")
    assert main(["report", str(page_of_two)]) == 2
    error = capsys.readouterr().err
    assert path.name in error and error.count("\n") == 1
    (page_of_two / "reproduction.json").write_text("{")
    assert main(["report", str(page_of_two)]) == 2
    error = capsys.readouterr().err
    assert "reproduction.json is damaged" in error and error.count("\n") == 1


def test_results_of_other_code_leave_the_page(page_of_two, monkeypatch):
    """Named together with new results, they were a crash after all was computed."""
    monkeypatch.setitem(store.MODULES, "carriers", "perturbkernel.kernels")
    options = plan.Options(("map/shifted_gaussian_a",))
    with pytest.warns(UserWarning, match="left out of the page.*: carriers; give"):
        assert page.together(page_of_two, options) == options
