"""Results are complete or absent: writers that race, die, or run out of disk."""

import errno
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from perturbkernel import files

# `files` alone, without the package and JAX: a process of these tests starts in milliseconds.
LOADED = f"""
import importlib.util, json, os, signal, sys, time
from pathlib import Path
spec = importlib.util.spec_from_file_location("files", {str(Path(files.__file__))!r})
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)
folder = Path(sys.argv[1])
"""

WRITER = (
    LOADED
    + """
def write(aside):
    (aside / "figures").mkdir()
    for name in ("a", "b", "figures/c", "marker"):
        (aside / name).write_text(sys.argv[2])

for _ in range(60):
    files.write_folder(folder, "marker", write)
"""
)

# Killed by SIGKILL in the middle of a file, and of a folder.
KILLED = (
    LOADED
    + """
def write(unfinished):
    if isinstance(unfinished, Path):
        (unfinished / "a").write_text("half")
    else:
        unfinished.write(b"half")
    os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[2] == "file":
    files.write_whole(folder / "result", write)
else:
    files.write_folder(folder, "marker", write)
"""
)

SLOW = (
    LOADED
    + """
def write(file):
    print("writing", flush=True)
    sys.stdin.readline()
    file.write(b"slow")

files.write_whole(folder / "result", write)
"""
)

FULL = (
    LOADED
    + """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    files.write_whole(folder / "result", lambda file: file.write(bytes(100_000)))
except OSError as error:
    print(error)
"""
)


def start(program, *arguments, **options):
    return subprocess.Popen([sys.executable, "-c", program, *map(str, arguments)], **options)


def test_two_writers_of_a_folder_never_mix(tmp_path):
    """Sixty results each, every time all files of one writer."""
    writers = [start(WRITER, tmp_path, name) for name in ("one", "two")]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    found = {path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert len(found) == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "c", "figures", "marker"]


def test_threads_take_turns(tmp_path):
    inside, most = [], []

    def visit():
        for _ in range(20):
            with files.locked(tmp_path):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=visit) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path, kind):
    assert start(KILLED, tmp_path, kind).wait(60) == -9
    assert [path.name for path in tmp_path.iterdir()] != []
    assert not (tmp_path / "result").exists() and not (tmp_path / "marker").exists()
    (tmp_path / "theirs.part").write_text("another program's")
    with files.locked(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["theirs.part"]


def test_a_living_writer_is_left_alone(tmp_path):
    """It is neither swept by `locked` nor by a writer of the same path; the last one wins."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    slow = start(SLOW, tmp_path, **pipes)
    assert slow.stdout is not None
    assert slow.stdout.readline() == "writing\n"
    with files.locked(tmp_path):
        files.write_whole(tmp_path / "result", lambda file: file.write(b"quick"))
    assert len(list(tmp_path.glob(".result.*.part"))) == 1
    assert (tmp_path / "result").read_bytes() == b"quick"
    slow.communicate("go on\n", timeout=60)
    assert (tmp_path / "result").read_bytes() == b"slow"
    assert len(list(tmp_path.iterdir())) == 1


def test_leftovers_of_earlier_versions_are_removed_too(tmp_path):
    (tmp_path / ".result.npz.1234.5678.part").write_bytes(b"half")
    (tmp_path / ".unfinished-1234").mkdir()
    with files.locked(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_named_and_leaves_what_was_there(tmp_path):
    (tmp_path / "result").write_text("earlier")
    done = subprocess.run([sys.executable, "-c", FULL, tmp_path], capture_output=True, text=True)
    assert str(tmp_path / "result") in done.stdout and not done.stderr
    assert (tmp_path / "result").read_text() == "earlier"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_failing_writer_leaves_what_was_there(tmp_path):
    def fill(aside):
        (aside / "marker").write_text("first")

    files.write_folder(tmp_path, "marker", fill)

    def fail(aside):
        (aside / "marker").write_text("second")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        files.write_folder(tmp_path, "marker", fail)
    assert (tmp_path / "marker").read_text() == "first"
    assert len(list(tmp_path.iterdir())) == 1


def test_who_waits_long_is_told_for_whom(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_PATIENCE", 0.0)
    inside = threading.Event()

    def hold():
        with files.locked(tmp_path):
            inside.set()
            time.sleep(0.3)

    holder = threading.Thread(target=hold)
    holder.start()
    inside.wait()
    told = pytest.warns(UserWarning, match=r"waiting for process \d+ on .+, which writes")
    with told, files.locked(tmp_path):
        pass
    holder.join()
