"""Children that are forked from a process with everything imported, and what befalls them there.

A launch of the tiny grid begins within milliseconds so, and hundreds of them can be killed.
"""

import ctypes
import errno
import gc
import multiprocessing
import operator
import os
import re
import resource
import signal
import struct
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from tiny_training import FEW_BLOCKS

from scorekit.files import write_file
from scorekit.models.score_network import ARCHITECTURES

#: The one server of forks that a process has, which others that fork must share.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        *(
            "pytest",
            "sklearn.datasets",
            "safetensors.torch",
            "torch_fidelity",
            "scorekit.metrics.features",
        ),
        "ablations.launch",
        # What the launcher itself imports when it needs it.
        *("ablations.studies.ncsnv2.collect", "ablations.studies.ncsnv2.report"),
        *("ablations.studies.ncsnv2.estimate", "ablations.pipeline.evaluation"),
    ]
)
_TEMPORARY = re.compile(r"\.(\d+(-[0-9a-f]{8})?|[0-9a-f]{16})\.tmp")
_WRITING = os.O_WRONLY | os.O_RDWR
_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link")


def start(function: Callable[..., Any], *arguments: Any, log: Path, fault: Any = None) -> Any:
    """Run a function in a forked child, its output appended to ``log``; returns the process.

    The child's exit code is what the function returns. ``fault.install()`` is called before.
    """
    process = CONTEXT.Process(target=_run, args=(function, arguments, str(log), fault))
    process.start()
    return process


def wait(process: BaseProcess, timeout: float = 600) -> int:
    """Return a child's exit code: negative where a signal ended it."""
    process.join(timeout)
    assert process.exitcode is not None, "the child hangs"
    return process.exitcode


def kill_after(process: BaseProcess, seconds: float) -> bool:
    """Kill -9 a child unless it has ended by then; returns whether that is how it ended."""
    process.join(seconds)
    process.kill()
    return wait(process) == -signal.SIGKILL


def _run(function: Callable[..., Any], arguments: Any, log: str, fault: Any) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    import torch
    from tqdm import tqdm

    gc.freeze()  # what was imported is no garbage: a stage's collection need not look through it
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own is a semaphore of the system, which a kill leaks
    if fault is not None:
        fault.install()
    sys.exit(function(*arguments))


def launcher(arguments: list[str]) -> int:
    """Run the launcher's command line."""
    from ablations.launch import main

    return main(arguments)


def with_few_blocks(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function where networks have few blocks, for what looks at files and not at weights.

    What is made so is compared with what is made so only.
    """
    ARCHITECTURES["32-64"] = FEW_BLOCKS
    return function(*arguments)


def sketcher(arguments: list[str]) -> int:
    """Run the launcher's command line, its report with files in the place of what takes seconds."""
    _sketch()
    return launcher(arguments)


def reporter(out: str) -> int:
    """Build a report from files, sketched."""
    from ablations.report import main

    _sketch()
    return main([out])


def sketch(picture: Any, directory: Path) -> tuple[Path, Path]:
    """Write a picture's files as ``save_picture`` does, but draw nothing."""
    png, svg = (directory / f"{picture.name}.{kind}" for kind in ("png", "svg"))
    return write_file(png, b"\x89PNG"), write_file(svg, b"<svg></svg>")


def _sketch() -> None:
    _replace("ablations.reporting.page.save_picture", sketch)


def _replace(name: str, value: Any) -> None:
    """Put a value in a name's place, which must be there, until the process ends."""
    pytest.MonkeyPatch().setattr(name, value)


def collector(out: str) -> None:
    """Collect a folder again and again, until killed."""
    from ablations.studies.ncsnv2.collect import collect

    while True:
        collect(Path(out))


@dataclass(frozen=True)
class _AtWrites:
    """Does something at changes of the file system below a folder.

    Those are: opening a file to write into it, flushing it to the disk, and renaming, removing or
    making a file or folder; each is seen before it happens.
    """

    folder: str

    def install(self) -> None:
        fsync = os.fsync

        def seen_fsync(descriptor: int) -> None:
            path = _descriptor(descriptor)
            if path.startswith(self.folder):
                self.change("fsync", path)
            fsync(descriptor)

        os.fsync = seen_fsync
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not isinstance(flags, int) or not flags & _WRITING:
                return
        elif event in _CHANGES:
            path = arguments[0]
        else:
            return
        path = _descriptor(path) if isinstance(path, int) else os.fsdecode(path)
        if not os.path.isabs(path):  # of a folder's removal, which goes by descriptors
            if not isinstance(arguments[-1], int) or arguments[-1] < 0:
                return
            path = os.path.join(_descriptor(arguments[-1]), path)
        if path.startswith(self.folder):
            self.change(event, path)

    def change(self, event: str, path: str) -> None:
        raise NotImplementedError


def _descriptor(number: int) -> str:
    """Return the path of an open file."""
    return os.readlink(f"/proc/self/fd/{number}")


@dataclass(frozen=True)
class KillAtNewWrite(_AtWrites):
    """Kills the process before the first change that is not yet listed in the file ``seen``.

    What is flushed at that moment is cut to half its length, as a power cut might.
    """

    seen: str

    def install(self) -> None:
        with open(self.seen, "a+") as file:
            file.seek(0)
            object.__setattr__(self, "_known", set(file.read().splitlines()))
        super().install()

    def change(self, event: str, path: str) -> None:
        key = named(event, path, self.folder)
        if key in self._known:  # type: ignore[attr-defined]
            return
        self._known.add(key)  # type: ignore[attr-defined]
        with open(self.seen, "a") as file:
            file.write(key + "\n")
        if event == "fsync" and not os.path.isdir(path):
            self._known.add(named("os.truncate", path, self.folder))  # type: ignore[attr-defined]
            os.truncate(path, os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class FailAtWrites(_AtWrites):
    """Lets a change of the file system, and all after it, fail with an OSError.

    Removing is still possible, as on a full disk.
    """

    first: int
    number: int = errno.ENOSPC

    def install(self) -> None:
        object.__setattr__(self, "_count", 0)
        super().install()

    def change(self, event: str, path: str) -> None:
        if event in ("os.remove", "os.rmdir"):
            return
        count = self._count + 1  # type: ignore[attr-defined]
        object.__setattr__(self, "_count", count)
        if count >= self.first:
            raise OSError(self.number, os.strerror(self.number), path)


@dataclass(frozen=True)
class NoReport:
    """Results are collected, and no report is made of them, which takes longer than they do."""

    def install(self) -> None:
        build = "ablations.studies.ncsnv2.report.build_report"
        _replace(build, lambda results, directory: directory / "index.html")


@dataclass(frozen=True)
class OnSlurm:
    """The launcher has a cluster's environment, asks it every second, and may draw no report.

    Files are on this machine: a result is there when its job has ended.
    """

    environment: dict[str, str]
    report: bool

    def install(self) -> None:
        os.environ.update(self.environment)
        _replace("ablations.executors.slurm.grid._SLOWEST_POLL_S", 1.0)
        _replace("ablations.executors.slurm.grid._RESULT_WITHIN_S", 1.0)
        if self.report:
            return
        # Jobs are pickled, and import nothing of the tests.
        from ablations.studies.ncsnv2.study import STUDY

        object.__setattr__(STUDY, "report", operator.methodcaller("joinpath", "none"))


@dataclass(frozen=True)
class SmallFiles:
    """No file can grow beyond a size in bytes."""

    size: int

    def install(self) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.size))


@dataclass(frozen=True)
class Unprivileged:
    """The process has no rights of root's: what a file's mode forbids its owner is forbidden.

    It keeps its user, so that it reads the code wherever that lies.
    """

    def install(self) -> None:
        version_3 = struct.pack("Ii", 0x20080522, 0)  # capset(2); of this process
        if ctypes.CDLL(None, use_errno=True).capset(version_3, bytes(24)):
            raise OSError(ctypes.get_errno(), "capset")


def named(event: str, path: str, folder: str) -> str:
    """Name a change below a folder without what is different in every run, or only a number.

    Stages of one kind stand for one another, and all kinds where they begin; so do files of the
    report by their suffix, and all files for what is the same with each: that one is begun, and
    that the beginning of one is removed.
    """
    name = _TEMPORARY.sub(".tmp", path.removeprefix(folder))
    name = re.sub(r"\d{5,}\.(png|pt)", r"N.\1", name).replace("-not-denoised", "-denoised")
    name = re.sub(r"(\.\w+)-\w+\.tmp", r"\1.tmp", name)
    name = re.sub(r"/\w{16}(?=/|$)", "/D", name)
    if re.match(r"/report/\w+/", name):
        name = f"{os.path.dirname(name)}/*{''.join(Path(name).suffixes[-2:])}"
    elif re.match(r"/(stages|data)/\w+/D(/lock|/\.settings\.json\.tmp)?$", name):
        name = f"*{name.partition('/D')[2]}"
    if name.endswith(".tmp") and event in ("open", "os.remove"):
        name = "*.tmp"
    return f"{event} {name}"
