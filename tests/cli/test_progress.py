"""Progress where there is no terminal: lines in a log."""

import io
import re
import sys
import time

from perturbkernel.cli import progress as progresses
from perturbkernel.cli.progress import progress


def test_a_log_gets_lines_while_the_work_goes_on(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    monkeypatch.setattr(progresses, "_SECONDS", 0.02)
    with progress(3, "cell", quiet=False) as bar:
        bar.set_description("digits")
        bar.update(2)
        end = time.monotonic() + 10
        while log.getvalue().count("\n") < 2 and time.monotonic() < end:
            time.sleep(0.01)
    lines = log.getvalue().splitlines()
    assert len(lines) >= 2
    assert all(re.fullmatch(r"2 of 3 cells after 0 min \d\d s: digits", line) for line in lines)
    time.sleep(0.1)
    assert log.getvalue().splitlines() == lines  # nothing once it has ended


def test_quiet_writes_nothing(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    monkeypatch.setattr(progresses, "_SECONDS", 0.01)
    with progress(3, "cell", quiet=True) as bar:
        bar.update()
        time.sleep(0.05)
    assert log.getvalue() == ""
