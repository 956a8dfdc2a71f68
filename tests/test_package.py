"""What holds for the package as a whole: one-way imports, a README that works, types at run time."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import architecture
import jax
import mutants
import numpy as np
import optax
import pytest
from pages import assert_prints, output_after

import perturbkernel
import perturbkernel as pk
from perturbkernel import _moved

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "perturbkernel"


def test_folders_import_one_way():
    """A folder imports only from folders of a lower level, and from itself."""
    level = {name: i for i, names in enumerate(architecture.LEVELS) for name in names}
    graph = architecture.edges()
    assert set(graph) == set(level)
    for room, others in graph.items():
        upward = {other for other in others if level[other] <= level[room]}
        assert not upward, f"{room} imports {upward}"


def test_every_folder_is_installed():
    """A wheel has what pyproject.toml lists; an editable installation would hide a missing folder."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent for path in (ROOT / "perturbkernel").rglob("__init__.py")}
    found = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(listed) == found | {"perturbkernel.benchmarks"}


def test_the_container_installs_as_the_readme_says():
    """The two lines of pip are those of the manual."""
    recipe = (ROOT / "Containerfile").read_text().replace(" --no-cache-dir", "")
    lines = [line[4:] for line in recipe.splitlines() if line.startswith("RUN ")]
    assert len(lines) == 2 and "\n".join(lines) in (ROOT / "README.md").read_text()


def test_no_module_imports_a_private_name():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("perturbkernel"):
                private = {a.name for a in node.names if a.name.startswith("_")}
                assert private <= {"__version__", "_moved"}, f"{path}: {private}"


def test_the_drawing_of_the_architecture_is_that_of_the_imports():
    assert architecture.main(["--check"]) == 0


def test_every_mutant_still_finds_its_text():
    assert mutants.check(mutants.MUTANTS) == 0


def test_public_names_load_from_where_type_checkers_look():
    """One list is for Python, the other for type checkers."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    checked = {
        alias.name: (node.module or "").removeprefix("perturbkernel").removeprefix(".")
        for branch in tree.body
        if isinstance(branch, ast.If)
        for node in ast.walk(branch)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    homes = perturbkernel._HOMES
    assert {name: home for name, home in checked.items() if home} == homes
    assert {name for name, home in checked.items() if not home} <= set(perturbkernel._MODULES)
    assert dir(perturbkernel) == sorted(perturbkernel.__all__)
    for name in perturbkernel.__all__:
        assert getattr(perturbkernel, name) is not None


def test_no_module_takes_the_name_of_a_function():
    # Importing a submodule binds it on the package, over a function of the same name.
    modules = {path.stem for path in PACKAGE.iterdir()} | {
        old.split(".")[0] for old in _moved.MOVED
    }
    assert not modules & perturbkernel._HOMES.keys()


@pytest.mark.parametrize(("folder", "name"), sorted(_moved.MOVED_NAMES))
def test_names_that_left_a_folder_say_where_they_went(folder, name):
    module = importlib.import_module(f"perturbkernel.{folder}")
    with pytest.warns(DeprecationWarning, match=f"{folder}.{name} has moved to"):
        found = getattr(module, name)
    home = _moved.MOVED_NAMES[folder, name]
    assert found is getattr(importlib.import_module(f"perturbkernel.{home}"), name)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        module.nothing  # noqa: B018


@pytest.mark.parametrize("old", sorted(_moved.MOVED))
def test_old_module_paths_say_where_their_names_went(old):
    with pytest.warns(DeprecationWarning, match=f"perturbkernel.{old} has moved to"):
        module = importlib.import_module(f"perturbkernel.{old}")
    for home in _moved.MOVED[old]:
        new = importlib.import_module(f"perturbkernel.{home}")
        assert all(hasattr(module, name) for name in vars(new) if not name.startswith("__"))
    del sys.modules[f"perturbkernel.{old}"]


def test_only_stax_kernels_touches_neural_tangents():
    for path in PACKAGE.glob("**/*.py"):
        if path.stem != "stax_kernels":
            assert not re.search(r"^\s*(import|from) neural_tangents", path.read_text(), re.M), path


def test_no_private_jax_and_no_heavy_imports():
    code = "import sys, perturbkernel; print(*sorted(sys.modules), sep='\\n')"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    for unwanted in (
        "tensorflow",
        "torch",
        "matplotlib.pyplot",
        "mlxtend",
        "pandas",
        "neural_tangents",
        "sklearn",
        "jax",
    ):
        assert unwanted not in loaded
    for path in PACKAGE.glob("**/*.py"):
        assert "jax._src" not in path.read_text(), path


def test_importing_leaves_jax_configuration_alone():
    code = (
        "import jax; before = dict(jax.config.values)\n"
        "import perturbkernel; assert dict(jax.config.values) == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_readme_example_prints_what_the_readme_shows(capsys):
    text = (ROOT / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.S)
    assert code is not None
    body = [line for line in code[1].splitlines() if line.strip() and "import" not in line]
    assert len(body) <= 10
    exec(compile(code[1], "README", "exec"), {})
    shown = output_after(text, code.end())
    assert shown is not None
    assert_prints(shown, capsys.readouterr().out)


def test_the_readme_is_short():
    """At most 600 words, those of code and tables among them."""
    text = (ROOT / "README.md").read_text()
    assert len(re.findall(r"\S*\w\S*", text)) <= 600


def test_pages_at_the_top_link_to_what_is_there():
    pages = [path.read_text() for path in ROOT.glob("*.md")]
    links = [link for page in pages for link in re.findall(r"\]\(([^)#]+)", page)]
    assert len(links) > 15
    own = [link for link in links if not link.startswith("https:")]
    assert not [link for link in own if not (ROOT / link).exists()]


@pytest.mark.slow
def test_types_hold_at_run_time():
    """The annotated shapes, checked by jaxtyping and beartype on one whole experiment."""
    code = (
        "from jaxtyping import install_import_hook\n"
        "checker = 'beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))'\n"
        "with install_import_hook('perturbkernel', checker):\n"
        "    import perturbkernel as pk\n"
        "    [getattr(pk, name) for name in pk.__all__ if name != 'sklearn']\n"
        "import jax\n"
        "data = pk.data.shifted_gaussian(30, 4, key=jax.random.key(0))\n"
        "train, test = data.split(test=0.2, key=jax.random.key(1))\n"
        "for loss in ('identity', 'logistic', 'squared'):\n"
        "    learner = pk.KernelLearner(pk.TwoLayerNTK(0.1, True), loss, pk.HeavyBall(0.1, 5))\n"
        "    r = pk.learn_from_perturbations(learner, train, scenario='b', size=1.0, key=jax.random.key(2))\n"
        "    r.evaluate(test)\n"
        "    r.f.input_gradient(test.inputs)\n"
        "    r.f.frozen_gate_gradient(test.inputs)\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_public_names_have_docstrings():
    for name in dir(perturbkernel):
        value = getattr(perturbkernel, name)
        if not name.startswith("_") and getattr(value, "__module__", "").startswith(
            "perturbkernel"
        ):
            assert value.__doc__, name
            for member, attribute in vars(value).items() if isinstance(value, type) else ():
                if not member.startswith("_") and callable(attribute):
                    assert attribute.__doc__, f"{name}.{member}"


def test_old_argument_names_work_and_warn():
    learner: Any = pk.networks.NetworkLearner
    bounds: Any = pk.theory.bounds
    options: dict[str, Any] = {"optimizer": optax.sgd(0.1), "steps": 1}
    with pytest.warns(DeprecationWarning, match='NetworkLearner.* is start="doubled" now'):
        assert learner(10, doubled=True, **options).start == "doubled"
    with pytest.warns(DeprecationWarning):
        assert learner(10, centred=False, **options).start == "random"
    with pytest.raises(TypeError, match="old name: give one"):
        learner(10, centred=True, start="random", **options)
    x, y = np.eye(4), np.array([1.0, -1.0, 1.0, -1.0])
    kernel = pk.TwoLayerNTK()
    constants = pk.theory.derive_constants(kernel, x, y, x)
    common: dict[str, Any] = {"width": 10, "delta": 0.1}
    with pytest.warns(DeprecationWarning, match=r"predictor_bound\(doubled"):
        old = bounds.predictor_bound(constants, doubled=True, **common)
    new = bounds.predictor_bound(constants, start="doubled", **common)
    np.testing.assert_array_equal(old, new)
    with pytest.warns(DeprecationWarning, match="is min_output= now"):
        best_time: Any = pk.theory.best_time
        assert best_time(kernel, x, y, x, progress=2.0, **common) > 0
    stages: list[str] = []
    with pytest.warns(DeprecationWarning, match="is on_stage= now"):
        learn: Any = pk.learn_from_perturbations
        learn(
            pk.KernelLearner(kernel),
            (x, y),
            size=1.0,
            key=jax.random.key(0),
            progress=stages.append,
        )
    assert stages
