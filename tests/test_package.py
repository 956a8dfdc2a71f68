"""What holds for the package as a whole: one-way imports, a README that works, types at run time."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import perturbkernel

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "perturbkernel"

# A module may import only from modules before it.
ORDER = """
    _version checks classes files interrupts image_files data meshes footprints tiles plans products activations kernels
    architectures dynamics gram krylov descent logistic softmax squared solvers gaussian_process predictors projections
    perturbations objectives attacks boundary diagnosis learning theory two_layer optimizers training networks
    studies plots report verify reproduce bench sklearn cli
""".split()  # noqa: SIM905


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if (
            isinstance(node, ast.ImportFrom)
            and node.module
            and node.module.split(".")[0] == "perturbkernel"
        ):
            parts = node.module.split(".")[1:]
            found |= {parts[0]} if parts else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {
                a.name.split(".")[1] for a in node.names if a.name.startswith("perturbkernel.")
            }
    return found & {p.stem for p in PACKAGE.iterdir()}


def test_every_module_has_its_place():
    modules = {
        path.stem
        for path in PACKAGE.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert modules - {"__init__"} == set(ORDER)


def test_imports_run_one_way():
    for path in PACKAGE.glob("**/*.py"):
        module = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if module != "__init__":
            place = [str(name) for name in ORDER].index(module)
            allowed = set(ORDER[:place]) | {module}
            assert imports_of(path) <= allowed, f"{path.name} imports {imports_of(path) - allowed}"


def test_only_architectures_touches_neural_tangents():
    for path in PACKAGE.glob("**/*.py"):
        if path.stem != "architectures":
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


def test_the_readme_example_works_and_prints_what_it_says(capsys):
    text = (ROOT / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.S)
    assert code is not None
    lines = [line for line in code.group(1).splitlines() if line.strip()]
    assert len(lines) <= 12
    exec(compile(code.group(1), "README", "exec"), {})
    printed = capsys.readouterr().out
    for expected in re.findall(r"# prints (.+)", code.group(1)):
        assert expected.strip() in printed


def test_types_hold_at_run_time():
    """The annotated shapes, checked by jaxtyping and beartype on one whole experiment."""
    code = (
        "from jaxtyping import install_import_hook\n"
        "checker = 'beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))'\n"
        "with install_import_hook('perturbkernel', checker):\n"
        "    import perturbkernel as pk\n"
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
