"""The losses of a training while it goes on, as lines that other programs follow."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from scorekit.files import write_file

#: Seconds from one writing of a training's lines to the next.
EVERY_S = 5.0


def loss_log_path(out: Path, job_name: str) -> Path:
    """Return the file of a training job's losses."""
    return out / "jobs" / f"{job_name}.losses.jsonl"


class LossLog:
    """Writes ``{"iteration", "loss", "test_loss"}`` lines, one for every ``interval`` iterations.

    "loss" is the mean over the iterations since the line before, "test_loss" is there where it was
    taken. The file is replaced as a whole, so that it never tells of iterations that were lost.
    """

    def __init__(self, path: Path, interval: int) -> None:
        self._path, self._interval, self._written = path, interval, -EVERY_S

    def __call__(
        self,
        losses: Sequence[float],
        test_losses: Sequence[tuple[int, float]],
        *,
        last: bool = False,
    ) -> None:
        """Write what is known, if the last time is long enough ago or it is the last."""
        now = time.monotonic()
        if now - self._written < EVERY_S and not last:
            return
        self._written = now
        tests = dict(test_losses)
        lines = []
        for begin in range(0, len(losses), self._interval):
            part = losses[begin : begin + self._interval]
            iteration = begin + len(part)
            line = {"iteration": iteration, "loss": float(np.mean(part))}
            if iteration in tests:
                line["test_loss"] = tests[iteration]
            lines.append(json.dumps(line))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_file(self._path, "".join(f"{line}\n" for line in lines))
