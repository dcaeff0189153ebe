"""What a run leaves in its directory, and the state from which it goes on there."""

import logging
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from scorekit.checkpoints.store import CheckpointStore, snapshot_path
from scorekit.checkpoints.tensors import find_tensors, save_tensors
from scorekit.runtime.distributed import World
from scorekit.training.settings import check_settings

log = logging.getLogger("scorekit")

# What a checkpoint holds since its first version.
_STATE = (
    *("iteration", "elapsed_s", "compile_s", "best_test_loss", "raw", "ema", "optimizer"),
    *("losses", "test_losses"),
)


class Resumption:
    """Checkpoints and snapshots of one run: rank 0 writes them, every rank reads.

    ``digest`` is that of the run's settings and data, ``snapshots`` the iterations whose weights
    are kept: a run goes back to the first of them that is lost. ``weights`` are the names of what a
    snapshot holds.
    """

    def __init__(
        self,
        directory: str | Path,
        snapshots: Iterable[int],
        digest: str,
        world: World,
        *,
        weights: tuple[str, ...] = ("raw", "ema"),
    ) -> None:
        self.directory, self.digest, self.world = Path(directory), digest, world
        self.snapshots, self.weights = list(snapshots), weights
        self._checkpoints = CheckpointStore(directory)

    def last_iteration(self) -> int:
        """Return the iteration of the newest checkpoint, 0 where there is none."""
        return self._checkpoints.last_iteration()

    def save(self, state: dict[str, Any], *, is_best: bool = False, passing: bool = False) -> None:
        """Write a checkpoint; the flags are those of :meth:`CheckpointStore.save`."""
        if self.world.is_main:
            content = state | {"settings": self.digest}
            self._checkpoints.save(state["iteration"], content, is_best=is_best, passing=passing)

    def save_snapshot(self, state: dict[str, Any]) -> None:
        """Write the weights of a state, raw and averaged, which stay."""
        if self.world.is_main:
            weights = {key: state[key] for key in self.weights}
            save_tensors(snapshot_path(self.directory, state["iteration"]), weights)

    def load(self, device: str) -> dict[str, Any] | None:
        """Return the state to continue from, or None: rank 0's choice, read by every rank.

        The newest whole one, but none beyond a snapshot that is absent or damaged. Raises
        OtherSettings where it is of another run.
        """
        state = None
        if self.world.is_main:
            missing = self._first_missing_snapshot()
            state = self._checkpoints.load_last(device, at_most=missing, keys=_STATE)
            if state is not None:
                check_settings(state, self.digest, self.directory)
            if state is not None and state["iteration"] == missing:
                self.save_snapshot(state)
        chosen = self.world.broadcast(None if state is None else int(state["iteration"]))
        if self.world.is_main or chosen is None:
            return state
        state = self._checkpoints.load_last(device, at_most=chosen)
        if state is None or state["iteration"] != chosen:
            raise RuntimeError(
                f"rank {self.world.rank} cannot read the checkpoint of iteration {chosen} in "
                f"{self.directory} that rank 0 has read: all ranks need one file system"
            )
        return state

    def _first_missing_snapshot(self) -> int | None:
        """Return the first iteration whose snapshot is absent or damaged, which is set aside."""
        path = partial(snapshot_path, self.directory)
        for iteration in self.snapshots:
            if find_tensors(path(iteration), keys=self.weights) is None:
                return iteration
        return None
