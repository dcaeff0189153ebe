"""What ends a launcher, its workers and the rating page: Ctrl-C, and SIGTERM in the background."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from rated_dump import make_dump
from tiny_grid import ROOT, environment, launch_command

LONG = ("--set", "iterations=100000", "--set", "snapshot_interval=50000")


def background(command: list[str], *, ignoring: bool = True, **options) -> subprocess.Popen[str]:
    """Start a command in a session of its own, as a script's ``&`` does: SIGINT is ignored."""
    shell = "trap '' INT; exec \"$@\"" if ignoring else 'exec "$@"'
    return subprocess.Popen(
        ["sh", "-c", shell, "sh", *command],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        **options,
    )


def of_session(leader: int) -> list[int]:
    """Return the running processes of a session, zombies left out."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            of = os.getsid(int(path.name))
            if (
                of == leader
                and path.joinpath("stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
            ):
                found.append(int(path.name))
    return found


def wait_for(condition, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def ends(process: subprocess.Popen[str]) -> str:
    """Return what a process said, which ends with all of its session within seconds."""
    try:
        said, _ = process.communicate(timeout=20)
    finally:
        left = of_session(process.pid)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
    assert left == []
    return said


def training(out: Path) -> bool:
    return any((out / "jobs").glob("train-*.progress.json"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "executor",
    [("inline",), ("local", "--workers", "1"), ("local", "--workers", "1", "--gpus", "2")],
)
def test_a_launcher_in_the_background_of_a_script_ends_on_sigterm(tmp_path, executor):
    process = background(
        launch_command(tmp_path, "--executor", *executor, "--only", "ncsnv2", *LONG)
    )
    wait_for(lambda: training(tmp_path / "out") or process.poll() is not None)
    process.terminate()
    said = ends(process)
    assert process.returncode == 130
    assert "the same command continues" in said
    assert "Traceback" not in said
    # Workers keep what they had done.
    stages = tmp_path / "out" / "stages" / "train"
    assert "inline" in executor or list(stages.rglob("interim-*.pt"))


@pytest.mark.slow
def test_ctrl_c_shows_no_traceback_and_leaves_no_worker(tmp_path):
    flags = ("--executor", "local", "--workers", "2", *LONG)
    process = background(launch_command(tmp_path, *flags), ignoring=False)
    wait_for(lambda: training(tmp_path / "out") or process.poll() is not None)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to all of them
    said = ends(process)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert "KeyboardInterrupt" not in said


def test_the_rating_page_in_the_background_of_a_script_ends_on_sigterm(tmp_path):
    dump = make_dump(tmp_path / "dump")
    command = [
        sys.executable,
        "-u",
        "-m",
        "ablations.hype.__main__",
        "serve",
        str(dump),
        "--port",
        "0",
    ]
    process = background([*command, "--ratings", str(tmp_path / "ratings")])
    assert "rating page" in process.stdout.readline()
    process.terminate()
    assert "stopped; the same command goes on" in ends(process)
    assert process.returncode == 0


_TERMINATED = """
import hashlib, time
from ablations.engine.interruption import Terminated
terminated = Terminated(within_s={within_s})
print("ready", flush=True)
{work}
print("told", flush=True)
"""


@pytest.mark.parametrize(
    ("within_s", "work", "said", "code"),
    [
        (60, "while not terminated(): time.sleep(0.01)", "told\n", 0),
        # In code that knows nothing of signals.
        (0.2, "hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)", "", 128 + signal.SIGTERM),
    ],
    ids=["asked", "forced"],
)
def test_a_terminated_job_may_finish_what_it_does_and_then_ends(within_s, work, said, code):
    script = _TERMINATED.format(within_s=within_s, work=work)
    process = background([sys.executable, "-c", script])
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    assert ends(process) == said
    assert process.returncode == code
