"""Progress of a grid: one bar with an estimate on a terminal, plain lines in a log."""

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from tqdm import tqdm

from ablations.engine.context import Context
from ablations.engine.job import Job
from ablations.engine.progress import read_progress

_LINE_EVERY_S = 30


class ProgressReporter:
    """Follows the jobs' progress files; jobs are weighed by their estimated effort."""

    def __init__(self, jobs: Sequence[Job], context: Context, *, terminal: bool) -> None:
        self._jobs, self._context, self._terminal = list(jobs), context, terminal
        self._total = sum(job.effort for job in jobs) or 1.0
        self._settled: set[str] = set()
        self._running: dict[str, Job] = {}
        self._began = self._last_line = time.monotonic()
        self._offset: float | None = None
        self._bar = tqdm(
            total=100.0,
            disable=not terminal,
            bar_format="{percentage:3.0f}%|{bar}| {elapsed}<{remaining} {postfix}",
            dynamic_ncols=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def started(self, job: Job) -> None:
        """Note that a job began."""
        self._running[job.name] = job
        self._say(f"started: {job.title}")

    def finished(self, job: Job) -> None:
        """Note that a job is done."""
        self._settle(job)
        self._say(f"done: {job.title}")

    def failed(self, job: Job, message: str) -> None:
        """Note that a job failed, and why."""
        self._settle(job)
        self._say(f"FAILED: {job.title}: {message}")

    def tick(self) -> None:
        """Look at the running jobs' files and show where the grid is."""
        fraction, texts = self._fraction()
        if self._terminal:
            self._bar.n = 100 * fraction
            self._bar.set_postfix_str("; ".join(texts))
        elif time.monotonic() - self._last_line >= _LINE_EVERY_S:
            self._last_line = time.monotonic()
            elapsed = time.monotonic() - self._began
            eta = f", about {elapsed * (1 - fraction) / fraction:.0f} s left" if fraction else ""
            print(f"[{elapsed:5.0f} s] {100 * fraction:.0f} %{eta}; {'; '.join(texts)}", flush=True)

    def _settle(self, job: Job) -> None:
        self._settled.add(job.name)
        self._running.pop(job.name, None)

    def _fraction(self) -> tuple[float, list[str]]:
        done = sum(job.effort for job in self._jobs if job.name in self._settled)
        texts = []
        for job in self._running.values():
            progress = read_progress(job, self._context)
            if progress is not None:
                done += job.effort * progress["fraction"]
                texts.append(f"{job.title}: {progress['text']}")
        fraction = done / self._total
        # What an interrupted run had done already says nothing about this run's speed.
        if self._offset is None:
            self._offset = fraction
        span = 1 - self._offset
        # Nor may a job that begins again from an earlier checkpoint than its last word seem to go
        # backwards.
        gained = max(0.0, fraction - self._offset)
        return gained / span if span > 0 else 1.0, texts

    def _say(self, text: str) -> None:
        line = f"[{time.monotonic() - self._began:5.0f} s] {text}"
        if self._terminal:
            self._bar.write(line)
        else:
            print(line, flush=True)


class FractionReporter:
    """The same for one piece of work in this process, told its fraction as it goes."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=100.0,
            disable=not self._terminal,
            bar_format="{percentage:3.0f}%|{bar}| {elapsed}<{remaining} {postfix}",
        )
        self._began = self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def __call__(self, fraction: float, text: str) -> None:
        """Show the fraction done, in [0, 1], and what is being done."""
        if self._terminal:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(100 * fraction - self._bar.n)
        elif (now := time.monotonic()) - self._last_line >= _LINE_EVERY_S:
            self._last_line = now
            print(f"[{now - self._began:5.0f} s] {100 * fraction:.0f} %; {text}", flush=True)


def make_reporter(jobs: Sequence[Job], context: Context) -> ProgressReporter:
    """Return a reporter that suits standard error: a bar on a terminal, lines elsewhere."""
    return ProgressReporter(jobs, context, terminal=sys.stderr.isatty())
