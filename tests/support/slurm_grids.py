"""Grids of this project on the cluster of the tests: launched, watched and compared."""

import time
from collections import Counter
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import forked
from forked import NoReport, OnSlurm, launcher, wait
from tiny_grid import environment, launch_command, results

from ablations.executors.slurm.submissions import latest_ids, load_submissions

FLAGS = ("--executor", "slurm", "--device", "cpu", "--slurm", "time=30")
LATER = ("--slurm", "begin=now+3600")
#: Two cells of one training; and one cell.
TWO, ONE = ("--only", "ncsn_124,ncsn_1245"), ("--only", "ncsnv2")


@dataclass(frozen=True)
class Launcher:
    """A launcher in a forked child: jobs take seconds to start, and it need not."""

    process: BaseProcess
    log: Path

    def end(self) -> tuple[int, str]:
        """Wait for its end; return the exit code, and what it said."""
        return wait(self.process, 900), self.log.read_text()


def start(slurm, folder: Path, *flags: str, report: bool = False) -> Launcher:
    """Start a launcher on the cluster; its grid ends without a report, unless one is wanted."""
    log = folder / f"log-{len([*folder.glob('log-*')])}"
    log.touch()
    arguments = launch_command(folder, *FLAGS, *flags)[3:]
    fault = OnSlurm(environment() | slurm.environment, report)
    return Launcher(forked.start(launcher, arguments, log=log, fault=fault), log)


def launch(slurm, folder: Path, *flags: str) -> tuple[int, str]:
    """Launch on the cluster and wait; return the exit code, and what it said."""
    return start(slurm, folder, *flags).end()


def give_up(slurm, folder: Path, process: Launcher) -> None:
    """End a launcher and its jobs, when what comes next shows nothing."""
    process.process.kill()
    assert launch(slurm, folder, "--cancel")[0] == 0


def let_start(slurm, out: Path) -> None:
    """Let jobs start that were told to begin later."""
    for job in {element.split("_")[0] for element in ids_of(out).values()}:
        slurm.run("scontrol", "update", f"JobId={job}", "StartTime=now", check=False)


def undisturbed(folder: Path, *flags: str) -> dict[str, Any]:
    """Return the results of a grid in one process."""
    arguments = launch_command(folder, "--executor", "inline", "--threads", "1", *flags)[3:]
    log = folder / "log"
    assert (
        wait(forked.start(launcher, [*arguments, "--device", "cpu"], log=log, fault=NoReport()))
        == 0
    )
    return results(folder / "out")


def wait_for(condition, what: str, timeout: float = 300.0):
    """Return what the condition gives once it is true."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError(f"not within {timeout} s: {what}")


def ids_of(out: Path) -> dict[str, str]:
    return latest_ids(load_submissions(out))


def one(out: Path, prefix: str) -> str | None:
    """Return Slurm's id of the job whose name begins so, once it is known."""
    return next((i for name, i in ids_of(out).items() if name.startswith(prefix)), None)


def state_of(slurm, element: str) -> str:
    text = slurm.run("squeue", "-h", "-r", "-o", "%F_%K|%A|%T")
    states = {}
    for line in text.splitlines():
        joined, raw, state = line.strip().split("|")
        states[joined.removesuffix("_N/A")] = states[raw] = state
    return states.get(element, "gone")


def times_submitted(out: Path) -> Counter[str]:
    """Count how often each job was sent, from the records."""
    return Counter(entry.name for s in load_submissions(out) for _, entry in s.elements())


def live(slurm) -> set[str]:
    text = slurm.run("squeue", "-h", "-r", "-o", "%F|%K")
    return {
        job if index == "N/A" else f"{job}_{index}"
        for job, index in (line.strip().split("|") for line in text.splitlines())
    }


def restarts(slurm, job: str) -> int:
    return int(slurm.job(job)["Restarts"])
