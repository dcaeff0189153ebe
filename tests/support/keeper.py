"""Run a program so that neither it nor anything it started outlives the process that asked for it.

``python keeper.py PARENT_PID COMMAND...`` prints the command's process id, then waits for it and
for every orphan it leaves (a daemon's detached helpers too). On SIGTERM, or when the parent dies
in whatever way, SIGKILL included, it kills all of them. Linux only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


def main(parent: int, command: list[str]) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    for option, value in ((_PR_SET_PDEATHSIG, signal.SIGTERM), (_PR_SET_CHILD_SUBREAPER, 1)):
        if prctl(option, int(value), 0, 0, 0):
            raise OSError(ctypes.get_errno(), f"prctl({option})")
    if os.getppid() != parent:
        sys.exit()  # it died before the signal was asked for
    try:
        print(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=2).pid, flush=True)
        _reap()
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        # What a process forks while being listed is adopted by this one, hence found next time.
        while family := _descendants():
            for pid in family:
                _kill(pid)
            os.waitpid(-1, 0)


def _reap() -> None:
    """Wait until there is no child left."""
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _descendants() -> list[int]:
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue  # ended meanwhile
            # The name, in parentheses, may itself hold spaces and parentheses.
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    found = [os.getpid()]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found[1:]


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
