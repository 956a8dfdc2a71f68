"""Compiled programs on disk: where they are kept, how many there are, and what can go wrong."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from perturbkernel import compilation_cache

RUN = ("run", "--data", "gaussian", "--n", "30", "--d", "4", "--control-draws", "1", "--quiet")
# Counts what is compiled, and what is read instead.
COUNTED = """
import sys
import jax
from perturbkernel.cli import main as cli
compiled, read = [], []
def on_duration(event, seconds, **_):
    if event == "/jax/core/compile/backend_compile_duration":
        compiled.append(seconds)
def on_event(event, **_):
    if event == "/jax/compilation_cache/cache_hits":
        read.append(event)
jax.monitoring.register_event_duration_secs_listener(on_duration)
jax.monitoring.register_event_listener(on_event)
status = cli.main()
print("COUNTS", len(compiled), len(read), jax.config.jax_compilation_cache_dir, file=sys.stderr)
sys.exit(status)
"""


def environment(folder: Path, **others: str) -> dict[str, str]:
    """That of these tests without what says where programs are kept; how they are compiled stays."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "PERTURBKERNEL_"))}
    compiling = "JAX_DISABLE_MOST_OPTIMIZATIONS"
    if compiling in os.environ:
        kept[compiling] = os.environ[compiling]
    return kept | {"XDG_CACHE_HOME": str(folder), "JAX_PLATFORMS": "cpu"} | others


def start(arguments: tuple[str, ...], variables: dict[str, str]) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", COUNTED, *arguments],
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def counts(process: subprocess.Popen) -> tuple[int, int, str]:
    """Programs, those of them that were read, and the folder; the process did well, and said
    nothing else.
    """
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    line, *others = said.splitlines()[::-1]
    assert not others, said
    word, compiled, read, folder = line.split(" ", 3)
    assert word == "COUNTS"
    return int(compiled), int(read), folder


def run(arguments: tuple[str, ...], variables: dict[str, str]) -> tuple[int, int, str]:
    return counts(start(arguments, variables))


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> tuple[Path, int, int, str]:
    """A user's folder in which one run has kept its programs, and what `run` said of it."""
    home = tmp_path_factory.mktemp("home")
    return home, *run(RUN, environment(home))


@pytest.mark.slow
def test_a_run_takes_few_programs_and_the_next_one_reads_them(first):
    home, programs, read, folder = first
    assert programs <= 35
    assert read <= 2  # of two functions with one text, the second finds it there
    assert Path(folder).is_relative_to(home / "perturbkernel")
    assert Path(folder).stat().st_mode & 0o077 == 0
    again, read, _ = run(RUN, environment(home))
    assert again == programs
    assert read == programs


LINES = """
import jax, numpy as np
compiled = []
def on_duration(event, seconds, **_):
    if event == "/jax/core/compile/backend_compile_duration":
        compiled.append(seconds)
jax.monitoring.register_event_duration_secs_listener(on_duration)
import perturbkernel as pk
from perturbkernel.metrics import accuracy
x = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
y = np.where(x[:, 0] > 0, 1, -1)
f = pk.fit(pk.TwoLayerNTK(), x, y)
p = pk.perturb(f, x, y, size=0.1)
accuracy(f(x + p.delta), y).item()
print(len(compiled))
"""


def test_fit_perturb_and_accuracy_take_few_programs(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LINES],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    # Products of points; conversions of arguments by JAX.
    assert int(done.stdout) <= 10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "variable"),
    [(("--no-compilation-cache",), {}), ((), {compilation_cache.VARIABLE: "off"})],
)
def test_it_can_be_switched_off(option, variable, tmp_path):
    _, read, folder = run(RUN + option, environment(tmp_path, **variable))
    assert (read, folder) == (0, "None")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_folder_of_the_users_own_stays(tmp_path):
    own = tmp_path / "own"
    variables = environment(tmp_path, JAX_COMPILATION_CACHE_DIR=str(own))
    _, _, folder = run(RUN, variables)
    assert folder == str(own)
    assert not (tmp_path / "perturbkernel").exists()


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "perturbkernel").write_text("in the way")
    _, _, folder = run(RUN, environment(tmp_path))
    assert folder == "None"


@pytest.mark.slow
def test_broken_programs_are_made_again_without_a_word(first):
    """In the folder itself, which is whole again then: JAX knows a program by its folder, too."""
    home, programs, _, folder = first
    variables = environment(home)
    for path in Path(folder).glob("*-cache"):
        path.write_bytes(path.read_bytes()[:20])
    _, read, _ = run(RUN, variables)
    assert read < programs
    _, read, _ = run(RUN, variables)
    assert read == programs


@pytest.mark.slow
def test_two_processes_at_once(tmp_path):
    both = [start(RUN, environment(tmp_path)) for _ in range(2)]
    programs = [counts(process)[0] for process in both]
    assert programs[0] == programs[1]


def test_the_oldest_go_first(tmp_path):
    for age, name in enumerate(["new", "middle", "old"]):
        path = tmp_path / f"{name}-cache"
        path.write_bytes(bytes(100))
        os.utime(path, (1000 - age, 1000 - age))
    programs = list(tmp_path.iterdir())
    compilation_cache.make_room(programs, limit=300)
    assert len(list(tmp_path.iterdir())) == 3
    compilation_cache.make_room([*programs, tmp_path / "gone"], limit=250)
    assert [path.name for path in tmp_path.iterdir()] == ["new-cache"]


def test_only_programs_are_forgotten(tmp_path):
    (tmp_path / "program-cache").write_bytes(b"")
    (tmp_path / "letter").write_bytes(b"")
    compilation_cache.forget(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter"]


@pytest.mark.parametrize(
    ("platform", "folder"), [("linux", "~/.cache"), ("darwin", "~/Library/Caches")]
)
def test_the_folder_is_that_of_the_platform(platform, folder, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(sys, "platform", platform)
    inside = compilation_cache.default_folder()
    assert inside.is_relative_to(Path(folder).expanduser() / "perturbkernel")
    assert "jaxlib" in inside.name
