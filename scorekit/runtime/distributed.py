"""Several processes that work as one: who each is, how they add up and agree, who notices a death.

The processes ("ranks") are started by something else, which tells each of them its place by the
environment variables that torchrun sets. :func:`process_group` brings them together.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from scorekit.runtime.watch import Watch

_log = logging.getLogger("scorekit")
_T = TypeVar("_T")

#: How long ranks may take to start: they are started together, but import from a shared disk.
MEETING_S = 120.0
#: How long a rank may wait for the others. Only a hang takes as long: a death is seen at once, and
#: ranks do wait for hours where rank 0 measures or another one draws a large batch.
TIMEOUT_S = 12 * 3600.0


class RankDied(RuntimeError):
    """Another process of the group is gone, so that this one cannot go on."""


@dataclass(frozen=True, kw_only=True)
class World:
    """A process's place among those that work as one; alone, all methods return at once.

    The methods that involve the others are to be called by all ranks in the same order, within
    :func:`process_group`; they raise RankDied where another rank is gone.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among the processes of this machine: the number of its device

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"WORLD_SIZE = {self.size} must be at least 1")
        for name, rank in (("RANK", self.rank), ("LOCAL_RANK", self.local_rank)):
            if not 0 <= rank < self.size:
                raise ValueError(f"{name} = {rank} must lie in [0, WORLD_SIZE = {self.size})")

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which alone writes results."""
        return self.rank == 0

    def share(self, n: int) -> tuple[int, int]:
        """Return first and last (exclusive) of this rank's indices of n; shares differ by one."""
        return self.rank * n // self.size, (self.rank + 1) * n // self.size

    def add_(self, tensor: Tensor) -> None:
        """Put the sum over all ranks into ``tensor``, the same bits on each."""
        if self.size > 1:
            with _together():
                dist.all_reduce(tensor, dist.ReduceOp.SUM)

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Return each flag as true where it is true on any rank; does not wait for a device."""
        if self.size == 1:
            return flags
        values = torch.tensor(flags, dtype=torch.uint8)
        with _together():
            dist.all_reduce(values, dist.ReduceOp.MAX)
        return tuple(map(bool, values.tolist()))

    def broadcast(self, value: _T) -> _T:
        """Return rank 0's value, pickled on the way."""
        if self.size == 1:
            return value
        values = [value]
        with _together():
            dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        return values[0]

    def gather(self, value: _T) -> list[_T] | None:
        """Return every rank's value, by rank, on rank 0 and None elsewhere."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.is_main else None
        with _together():
            dist.gather_object(value, values, dst=0)
        return values


def current_world() -> World:
    """Return the place that the variables of torchrun give, or that of a process alone.

    RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT come together; ValueError where only
    some are set, or where a number is none or out of range.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    given = {name: os.environ[name] for name in names if os.environ.get(name)}
    if "RANK" not in given and "WORLD_SIZE" not in given:
        return World()
    if missing := [name for name in names if name not in given]:
        raise ValueError(f"{', '.join(missing)} must be set where {', '.join(given)} are")
    for name in set(names) - {"MASTER_ADDR"}:
        if not given[name].isdecimal():
            raise ValueError(f"{name} = {given[name]!r} must be a whole number")
    return World(
        rank=int(given["RANK"]),
        size=int(given["WORLD_SIZE"]),
        local_rank=int(given["LOCAL_RANK"]),
    )


def leave(message: str) -> NoReturn:
    """End this process at once: it may be waiting, in compiled code, for one that is gone."""
    _log.error("%s; this rank ends too", message)
    os._exit(1)


@contextmanager
def process_group(
    world: World,
    device: str,
    *,
    lost: Callable[[str], None] = leave,
    together: tuple[type[Exception], ...] = (),
    timeout_s: float = TIMEOUT_S,
) -> Iterator[None]:
    """Bring the ranks together for the time of the context; a process alone needs nothing.

    Tensors on the CPU go through gloo, those on CUDA through NCCL, on the device of the local rank.
    A rank that dies, or leaves by an exception, ends the group: ``lost`` is then called with a
    message, in a thread of each other rank, within a second or so, whatever that rank is doing; it
    is meant to end the process. Exceptions ``together`` are those that all ranks raise alike, and
    part in peace. Raises RankDied where the ranks do not meet within ``MEETING_S``.
    """
    if world.size == 1:
        yield
        return
    cuda = torch.device(device).type == "cuda"
    if cuda:
        # A task may see all devices of its machine or only its own.
        torch.cuda.set_device(world.local_rank % torch.cuda.device_count())
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        store = dist.TCPStore(
            host, port, world.size, world.is_main, timeout=timedelta(seconds=MEETING_S)
        )
        watch = Watch(world.rank, world.size, store, host, lost, timeout_s=MEETING_S)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            store=store,
            rank=world.rank,
            world_size=world.size,
            timeout=timedelta(seconds=timeout_s),
        )
    except (RuntimeError, OSError) as error:
        raise RankDied(
            f"rank {world.rank} did not meet the other ranks of {world.size} at {host}:{port}: "
            f"{_first_line(error)}"
        ) from error
    try:
        yield
        world.any(False)  # rank 0 has the store, and is not to leave while others need it
    except together:
        world.any(False)
        watch.part()
        raise
    except BaseException:
        watch.abandon()
        raise
    else:
        watch.part()
    finally:
        dist.destroy_process_group()


@contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        # Gloo has no exception of its own; it names its sources.
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise RankDied(f"a rank died or does not answer: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
