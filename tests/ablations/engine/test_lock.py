"""One launcher in a folder: on one machine, on several, and whatever their clocks say."""

import contextlib
import errno
import fcntl
import json
import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from ablations.engine import lock
from ablations.engine.interruption import interrupt_on_sigterm
from ablations.engine.lock import launcher_lock

YEAR = 365 * 86400


@pytest.fixture
def without_flock(monkeypatch):
    def flock(file, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.fixture
def impatient(monkeypatch):
    """Fail where somebody waits."""

    def sleep(seconds):
        raise AssertionError("waited for a holder that is known to be dead")

    monkeypatch.setattr(lock.time, "sleep", sleep)


def leased(out: Path, **changes: object) -> Path:
    """A lease as another machine's launcher left it."""
    record = {"host": "node7", "machine": "node7 boot ns", "pid": 4242, "user": "ann"}
    record |= {"since": "2026-01-02 03:04:05 +0000", "token": "ab" * 8}
    path = out / "launcher.lease"
    path.write_text(json.dumps(record | changes))
    return path


def in_child(function) -> int:
    """Run a function in a forked child; returns its exit code or minus the signal."""
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            code = function()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def hold_and_die(out: Path) -> int:
    with launcher_lock(out):
        os.kill(os.getpid(), signal.SIGKILL)
    return 0


def test_the_second_is_told_who_holds_the_folder_and_since_when(tmp_path):
    before = time.strftime("%Y-%m-%d %H:")
    with launcher_lock(tmp_path):
        with (
            pytest.raises(ValueError, match="is in use by process") as caught,
            launcher_lock(tmp_path),
        ):
            pass
        with pytest.raises(ValueError, match="is in use by process"), launcher_lock(tmp_path):
            pass
    message = str(caught.value)
    for part in (f"process {os.getpid()} of ", f"on {socket.gethostname()}, since {before}"):
        assert part in message
    with launcher_lock(tmp_path):
        pass
    assert not (tmp_path / "launcher.lease").exists()


def test_a_killed_holder_on_this_machine_is_known_to_be_dead(tmp_path, impatient):
    assert in_child(lambda: hold_and_die(tmp_path)) == -signal.SIGKILL
    assert (tmp_path / "launcher.lease").exists()
    with launcher_lock(tmp_path):
        pass


def test_without_locks_too(tmp_path, without_flock, impatient):
    assert in_child(lambda: hold_and_die(tmp_path)) == -signal.SIGKILL
    with launcher_lock(tmp_path):
        pass


def test_without_locks_a_living_holder_is_respected(tmp_path, without_flock):
    with (
        launcher_lock(tmp_path, beat_s=0.02),
        pytest.raises(ValueError, match=f"in use by process {os.getpid()} of"),
        launcher_lock(tmp_path, stale_s=10),
    ):
        pass


@pytest.mark.parametrize("skew_s", [-YEAR, 0, YEAR])
@pytest.mark.parametrize("content", ["lease", "", "{", "[]", '{"host": 1}'])
def test_a_stale_lease_is_taken_over_whatever_the_clocks_say(tmp_path, skew_s, content, caplog):
    path = leased(tmp_path)
    if content != "lease":
        path.write_text(content)
    os.utime(path, (time.time() + skew_s, time.time() + skew_s))
    began = time.monotonic()
    with launcher_lock(tmp_path, stale_s=0.3):
        assert time.monotonic() - began >= 0.3
        assert json.loads(path.read_text())["pid"] == os.getpid()
    holder = "process 4242 of ann on node7, since 2026" if content == "lease" else "unknown"
    assert holder in caplog.text


@pytest.mark.parametrize("skew_s", [-YEAR, 0, YEAR])
@pytest.mark.parametrize("step_s", [1, -1])
def test_a_living_holder_on_another_machine_is_respected_whatever_the_clocks_say(
    tmp_path, skew_s, step_s
):
    path = leased(tmp_path)
    ended = threading.Event()

    def beat():
        now = time.time() + skew_s
        while not ended.wait(0.05):
            now += step_s  # a clock may be set back, too
            os.utime(path, (now, now))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with (
            pytest.raises(ValueError, match="in use by process 4242 of ann on node7, since 2026-"),
            launcher_lock(tmp_path, stale_s=10),
        ):
            pass
    finally:
        ended.set()
        thread.join()
    assert json.loads(path.read_text())["pid"] == 4242


def test_one_of_many_takes_a_stale_lease_over(tmp_path, without_flock):
    leased(tmp_path)

    def compete() -> int:
        with contextlib.suppress(ValueError), launcher_lock(tmp_path, beat_s=0.05, stale_s=0.4):
            time.sleep(1.5)
            return 0
        return 1

    pids = []
    for _ in range(5):
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                code = compete()
            finally:
                os._exit(code)
        pids.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert sorted(codes) == [0, 1, 1, 1, 1]


@pytest.mark.parametrize("background", [False, True])
def test_a_holder_that_lost_its_lease_stops_and_leaves_it(tmp_path, background):
    def hold() -> None:
        with launcher_lock(tmp_path, beat_s=0.02):
            leased(tmp_path)
            time.sleep(20)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if background:  # of a script: SIGINT is ignored
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        interrupt_on_sigterm()
    began = time.monotonic()
    try:
        with pytest.raises(ValueError, match="taken over by process 4242 of ann on node7"):
            hold()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert time.monotonic() - began < 10
    assert json.loads((tmp_path / "launcher.lease").read_text())["pid"] == 4242


def test_an_interrupt_of_the_holder_stays_one(tmp_path):
    with pytest.raises(KeyboardInterrupt), launcher_lock(tmp_path):
        raise KeyboardInterrupt
    assert not (tmp_path / "launcher.lease").exists()
