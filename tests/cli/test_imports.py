"""What a command loads: help comes at once, and a run loads nothing that it does not use."""

import subprocess
import sys

import pytest

# Everything that takes long to import and that only some commands need.
DRAWING = {"matplotlib", "perturbkernel.report.plots"}
FINITE_NETWORKS = {"optax", "perturbkernel.networks"}
OTHER_COMMANDS = {"perturbkernel.reproduce", "perturbkernel.verify", "perturbkernel.theory"}
OTHERS = {"diffrax", "neural_tangents", "scipy", "sklearn", "pandas", "mlxtend"}
SELDOM_NEEDED = DRAWING | FINITE_NETWORKS | OTHER_COMMANDS | OTHERS

HELP = "from perturbkernel.cli.main import main\nmain([])"
RUN = """
from perturbkernel.cli.main import main
points = ["--data", "gaussian", "--n", "20", "--d", "3", "--control-draws", "1", "--quiet"]
assert main(["run", *points]) == 0
"""


def loaded_by(code: str) -> set[str]:
    """The modules that a fresh Python has loaded when it has run the code."""
    command = [sys.executable, "-c", f"import sys\n{code}\nprint('loaded:', *sys.modules)"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return set(printed.rpartition("loaded: ")[2].split())


@pytest.mark.parametrize(
    ("code", "unwanted"),
    [
        ("import perturbkernel", SELDOM_NEEDED | {"jax", "tqdm", "numpy"}),
        (HELP, SELDOM_NEEDED | {"jax", "tqdm", "numpy"}),
        (RUN, SELDOM_NEEDED - {"perturbkernel.theory"}),  # the diagnosis asks how linear g is
    ],
    ids=["import", "help", "run"],
)
def test_nothing_heavy_is_loaded_unasked(code, unwanted):
    loaded = loaded_by(code)
    assert "perturbkernel" in loaded
    assert not unwanted & loaded
