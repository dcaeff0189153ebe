"""One launcher at a time in an output folder, on one machine or on several that share the disk.

On one machine the system's advisory lock decides: it is released however its holder ends. A shared
disk may keep such locks to each machine, or have none; there the holder's lease decides, a file
that it touches every few seconds. Clocks of two machines are never compared: an observer watches,
by its own monotonic clock, whether the lease changes. A holder that was suspended for so long that
another one took over finds that out at its next touch, and stops.
"""

import fcntl
import getpass
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from secrets import token_hex

from ablations.engine.interruption import interrupt_main_thread
from scorekit.runtime.locks import NO_LOCKS

_log = logging.getLogger("scorekit")
_Seen = tuple[bytes, int]  # a lease's content and time of change


@dataclass(frozen=True, kw_only=True)
class Lease:
    """Who holds an output folder; ``machine`` is of one start of one system, ``token`` of one hold.

    ``since`` is by the holder's clock, for people only.
    """

    host: str
    machine: str
    pid: int
    user: str
    since: str
    token: str

    def __str__(self) -> str:
        return f"process {self.pid} of {self.user} on {self.host}, since {self.since}"


@contextmanager
def launcher_lock(out: Path, *, beat_s: float = 5.0, stale_s: float = 30.0) -> Iterator[None]:
    """Hold ``out`` for this launcher; another one is told who holds it, by a ValueError.

    The lease is touched every ``beat_s``. One of another machine that does not change in
    ``stale_s`` is that of a dead launcher, and taken over; so long does the caller wait. Raises
    ValueError, too, at the end of a hold that another launcher took over.
    """
    mine = _own_lease()
    with open(out / "launcher.lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = True
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise ValueError(f"--out {out} is in use by {holder}") from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            locked = False
        path = out / "launcher.lease"
        _take(path, mine, locked=locked, stale_s=stale_s)
        try:
            file.truncate(0)
            file.write(f"{mine}\n")
            file.flush()
            with _touched(path, mine, beat_s) as lost:
                try:
                    yield
                except KeyboardInterrupt:
                    if not lost.is_set():
                        raise
            if lost.is_set():
                raise ValueError(
                    f"--out {out} was taken over by {_parse(_look(path)) or 'another launcher'} "
                    f"while this one did not run for {stale_s:.0f} s"
                )
        finally:
            if (lease := _parse(_look(path))) and lease.token == mine.token:
                path.unlink(missing_ok=True)


def _own_lease() -> Lease:
    # The kernel's start, and the container: process numbers mean nothing outside of them.
    machine = socket.gethostname()
    with suppress(OSError):
        machine += " " + Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        machine += " " + os.readlink("/proc/self/ns/pid")
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without a name
        user = str(os.getuid())
    return Lease(
        host=socket.gethostname(),
        machine=machine,
        pid=os.getpid(),
        user=user,
        since=time.strftime("%Y-%m-%d %H:%M:%S %z"),
        token=token_hex(8),
    )


def _take(path: Path, mine: Lease, *, locked: bool, stale_s: float) -> None:
    """Make the lease ours; raises ValueError where its holder lives."""
    while True:
        with suppress(FileExistsError), open(path, "x") as file:
            json.dump(asdict(mine), file)
            return
        seen = _look(path)
        if seen is None:
            continue  # released meanwhile
        holder = _parse(seen)
        here = holder is not None and holder.machine == mine.machine
        if not (here and (locked or not _is_alive(holder))):
            _log.warning(
                "%s is leased by %s: waiting up to %.0f s for a sign of life",
                path.parent,
                holder or "an unknown launcher",
                stale_s,
            )
            if _changes(path, seen, stale_s):
                raise ValueError(
                    f"--out {path.parent} is in use by {_parse(_look(path)) or 'another launcher'}"
                )
        _remove(path, seen[0], mine)


def _is_alive(holder: Lease | None) -> bool:
    try:
        os.kill(holder.pid if holder else 0, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _changes(path: Path, seen: _Seen, stale_s: float) -> bool:
    """Return whether a lease is touched or replaced within some seconds; released is no change."""
    end = time.monotonic() + stale_s
    while time.monotonic() < end:
        time.sleep(min(0.5, stale_s / 10))
        now = _look(path)
        if now != seen:
            return now is not None
    return False


def _remove(path: Path, content: bytes, mine: Lease) -> None:
    """Remove a dead launcher's lease; what another one has put in its place is put back."""
    aside = path.with_name(f".{path.name}.{mine.token}.tmp")
    with suppress(FileNotFoundError):
        os.rename(path, aside)
        if aside.read_bytes() != content:
            with suppress(FileExistsError):
                os.link(aside, path)
        aside.unlink()


def _look(path: Path) -> _Seen | None:
    # Opened anew each time, because a shared disk's client asks the server only then.
    try:
        with open(path, "rb") as file:
            return file.read(), os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None


def _parse(seen: _Seen | None) -> Lease | None:
    try:
        return Lease(**json.loads(seen[0])) if seen else None
    except (TypeError, ValueError):
        return None


@contextmanager
def _touched(path: Path, mine: Lease, beat_s: float) -> Iterator[threading.Event]:
    """Touch the lease as long as the body runs; if it is another's, interrupt and set the event."""
    ended, lost = threading.Event(), threading.Event()

    def touch() -> None:
        misses = 0
        while not ended.wait(beat_s):
            try:
                lease = _parse(_look(path))
                misses = 0 if lease and lease.token == mine.token else misses + 1
                if misses == 0:
                    os.utime(path)
            except OSError as error:
                _log.warning("%s cannot be touched: %s", path, error)
            # Once may be the moment in which somebody looks whose it is.
            if misses > 1:
                lost.set()
                interrupt_main_thread()
                return

    thread = threading.Thread(target=touch, name="lease", daemon=True)
    thread.start()
    try:
        yield lost
    finally:
        ended.set()
        thread.join()
