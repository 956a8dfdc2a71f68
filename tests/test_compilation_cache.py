"""Compiled programs on disk: where they are kept, how many there are, and what can go wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from perturbkernel import compilation_cache

RUN = ("run", "--data", "gaussian", "--n", "30", "--d", "4", "--control-draws", "1", "--quiet")
# Gives commands in one process, each with variables of its own, and counts what is compiled, and
# what is read instead.
COUNTED = """
import json, os, sys
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
commands = json.loads(sys.argv[1])
for arguments, variables in commands:
    sys.argv[1:] = arguments
    os.environ.update(variables)
    if status := cli.main():
        sys.exit(status)
    print("COUNTS", len(compiled), len(read), jax.config.jax_compilation_cache_dir, file=sys.stderr)
"""
Command = tuple[tuple[str, ...], dict[str, str]]


def environment(folder: Path, **others: str) -> dict[str, str]:
    """That of these tests without what says where programs are kept; how they are compiled stays."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "PERTURBKERNEL_"))}
    compiling = "JAX_DISABLE_MOST_OPTIMIZATIONS"
    if compiling in os.environ:
        kept[compiling] = os.environ[compiling]
    return kept | {"XDG_CACHE_HOME": str(folder), "JAX_PLATFORMS": "cpu"} | others


def start(variables: dict[str, str], *commands: Command) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", COUNTED, json.dumps(commands or [(RUN, {})])],
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def counts(process: subprocess.Popen) -> list[tuple[int, int, str]]:
    """Programs until the end of each command, those of them that were read, and the folder; the
    process did well, and said nothing else.
    """
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    found = []
    for line in said.splitlines():
        word, *numbers = line.split(" ", 3)
        assert word == "COUNTS", said
        found.append((int(numbers[0]), int(numbers[1]), numbers[2]))
    return found


def run(variables: dict[str, str]) -> tuple[int, int, str]:
    (found,) = counts(start(variables))
    return found


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> tuple[Path, int, int, str]:
    """A user's folder in which one run has kept its programs, and what `run` said of it."""
    home = tmp_path_factory.mktemp("home")
    return home, *run(environment(home))


@pytest.mark.slow
def test_a_run_takes_few_programs(first):
    home, programs, read, folder = first
    assert programs <= 35
    assert read <= 2  # of two functions with one text, the second finds it there
    assert Path(folder).is_relative_to(home / "perturbkernel")
    assert Path(folder).stat().st_mode & 0o077 == 0


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
def test_it_can_be_switched_off_and_a_folder_that_cannot_be_written_is_no_error(tmp_path):
    barred = tmp_path / "barred"
    barred.mkdir()
    (barred / "perturbkernel").write_text("in the way")
    home = tmp_path / "home"
    home.mkdir()
    on = {compilation_cache.VARIABLE: "on"}
    process = start(
        environment(home),
        ((*RUN, "--no-compilation-cache"), {}),
        (RUN, {compilation_cache.VARIABLE: "off"}),
        (RUN, {"XDG_CACHE_HOME": str(barred), **on}),
    )
    # Once it is on it stays on: each of these would show.
    assert [(read, folder) for _, read, folder in counts(process)] == [(0, "None")] * 3
    assert not list(home.iterdir())


@pytest.mark.slow
def test_a_folder_of_the_users_own_stays(tmp_path):
    own = tmp_path / "own"
    variables = environment(tmp_path, JAX_COMPILATION_CACHE_DIR=str(own))
    _, _, folder = run(variables)
    assert folder == str(own)
    assert not (tmp_path / "perturbkernel").exists()


@pytest.mark.slow
def test_a_run_reads_what_another_kept_and_makes_a_broken_program_again_without_a_word(first):
    """The last one, which it meets when it has read the others."""
    home, programs, _, folder = first
    *_, last = sorted(Path(folder).glob("*-cache"), key=lambda path: path.stat().st_mtime_ns)
    last.write_bytes(last.read_bytes()[:20])
    again, read, _ = run(environment(home))
    assert again == programs
    assert programs / 2 < read < programs
    assert last.stat().st_size > 20


@pytest.mark.slow
def test_two_processes_at_once(tmp_path):
    both = [start(environment(tmp_path)) for _ in range(2)]
    programs = [counts(process)[0][0] for process in both]
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
