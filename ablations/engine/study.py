"""A study: what a paper brings to the launcher, as data."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ablations.engine.context import Context
from ablations.engine.job import Job
from ablations.engine.manifest import Manifest, ManifestFile
from ablations.engine.plugins import Plugin
from ablations.engine.settings import Budget


@dataclass(frozen=True, kw_only=True)
class Request:
    """The flags of a command line and what they come to whatever the study."""

    args: argparse.Namespace
    out: Path
    existing: Manifest | None  # what ``out`` holds
    device: str
    threads: int
    gpus: int
    plugins: tuple[Plugin, ...] = ()  # of ``out`` and of the command line, loaded

    @property
    def begun(self) -> Manifest | None:
        """What ``out`` holds, where nothing but that is asked for: it goes on as it was."""
        asks_more = (self.args.grid, self.args.datasets, self.args.seeds) != (None, None, None)
        return None if asks_more else self.existing

    @property
    def data_root(self) -> Path:
        """Where prepared data are kept."""
        below = self.existing.data_root if self.existing else "data"
        root: Path = self.args.data_root or self.out / below
        return root.resolve()


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """What a study makes of a request."""

    manifest: Manifest  # of all that the folder will hold
    units: list[Any]  # those that were asked for, and chosen by --only
    context: Context
    notes: tuple[str, ...] = ()  # lines that a person is told before work starts


@dataclass(frozen=True, kw_only=True)
class Run:
    """What items are made from: an output folder and, where one needs them, its units.

    With `sample` False, nothing is computed that is not there. `snapshot`, "last" or "selected",
    takes the place of the one that an item shows by itself.
    """

    out: Path
    units: tuple[Any, ...] = ()
    context: Context | None = None
    sample: bool = True
    snapshot: str | None = None


@dataclass(frozen=True, kw_only=True)
class Item:
    """A table or figure of a paper: what it shows, what it takes, and how it is made.

    `needs` is "grid" (the grid is run first), "data" (the data sets are prepared) or "none".
    `grid` names one that is run besides, `more` gives jobs that are run besides, of units and a
    snapshot. `aliases` are figures of the paper that this one shows as well.
    `snapshot`, "last" or "selected", is what an item that can show either shows unless told.
    """

    name: str
    shows: str
    needs: Literal["grid", "data", "none"]
    make: Callable[..., Sequence[Any]]
    grid: str | None = None
    more: Callable[[Sequence[Any], str], Sequence[Job]] | None = None
    aliases: tuple[str, ...] = ()
    snapshot: str | None = None

    def artefacts(self, run: Run) -> Sequence[Any]:
        """Make it: the artefacts of :mod:`ablations.reporting`."""
        if self.snapshot is None:
            return self.make(run)
        return self.make(run, snapshot=run.snapshot or self.snapshot)


@dataclass(frozen=True, kw_only=True)
class Study:
    """Everything that the launcher, Slurm, --status, reports and reproduce need of a paper."""

    name: str
    title: str
    #: What --grid takes, in a line each.
    grids: Mapping[str, str]
    #: What its units are called, in the plural.
    units: str
    #: The class whose fields --set takes, and the profiles of it.
    settings: type
    budgets: Mapping[str, Budget]
    file: ManifestFile
    #: Flags of the launcher that mean nothing here.
    foreign: tuple[str, ...] = ()
    #: Settings of Slurm that the grid itself brings.
    slurm: Callable[[argparse.Namespace], Mapping[str, Any]] = lambda args: {}
    #: Files of the user's code that the grid itself brings.
    plugins: Callable[[argparse.Namespace], Sequence[Path]] = lambda args: ()
    #: The name of the grid that a command line asks for; ValueError for none.
    grid_name: Callable[[argparse.Namespace], str]
    #: The plan of a request; ValueError or OSError, in one line, for bad input.
    resolve: Callable[[Request], Resolved]
    #: The units that --only chooses; ValueError where it matches none.
    select: Callable[[Sequence[Any], str], list[Any]]
    #: The jobs of units, in an order that respects their needs.
    jobs: Callable[[Sequence[Any]], Sequence[Job]]
    #: Whether a budget was changed, and how, as reports name it.
    budget_label: Callable[[Manifest], str]
    #: What --dry-run prints of units.
    describe: Callable[[Resolved, Sequence[Job]], list[str]]
    #: Warnings before work starts.
    warnings: Callable[[Sequence[Any]], list[str]] = lambda units: []
    #: Raises ValueError for what would fail after days of pending jobs; True: only look.
    check: Callable[[Sequence[Job], Context, bool], list[str]] = lambda jobs, context, look: []
    #: Lines about what is done, after the work.
    summary: Callable[[Sequence[Any], Context], list[str]] = lambda units, context: []
    #: Makes the report of an output folder from its files; returns its page.
    report: Callable[[Path], Path]
    #: The table that sums a report up: a file in its folder of tables.
    headline: str | None = None
    #: What ``reproduce`` makes, and the class of what it is made from.
    exhibits: Callable[[], tuple[Sequence[Item], type[Run]]]
