"""The study's tables and pictures: what the report's sections hold, and ``reproduce`` by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from ablations.engine.study import Item, Run
from ablations.reporting.artefacts import Artefact
from ablations.reporting.page import Collapsed
from ablations.reporting.pictures import Picture
from ablations.reporting.table import Table
from ablations.studies.finite_difference.results import TrialResults, collect_trials
from ablations.studies.finite_difference.sections.comparisons import comparison_table
from ablations.studies.finite_difference.sections.cost import cost_picture, cost_table
from ablations.studies.finite_difference.sections.deep import (
    deep_table,
    epsilon_picture,
    gradient_table,
)
from ablations.studies.finite_difference.sections.distance import distance_picture, distance_table
from ablations.studies.finite_difference.sections.dkef import (
    dkef_picture,
    dkef_table,
    dkef_trials_table,
)
from ablations.studies.finite_difference.sections.flow import flow_picture, flow_table
from ablations.studies.finite_difference.sections.implicit import implicit_picture, implicit_table
from ablations.studies.finite_difference.sections.loss import loss_picture, loss_table
from ablations.studies.finite_difference.sections.toy import field_picture, toy_table

Block = Table | Picture | Collapsed


@dataclass(frozen=True, kw_only=True)
class TrialRun(Run):
    """What items of this study are made from."""

    @cached_property
    def results(self) -> TrialResults:
        """What the trials in `out` have given so far."""
        return collect_trials(self.out)


@dataclass(frozen=True, kw_only=True)
class Exhibit:
    """What is shown of an experiment, whose first name is its folder in ``reproduce``."""

    names: tuple[str, ...]
    part: str
    about: str
    show: tuple[Callable[[TrialResults], Block | None], ...]

    def blocks(self, results: TrialResults) -> list[Block]:
        """Return what there is to show of it."""
        return [block for show in self.show if (block := show(results)) is not None]

    @property
    def item(self) -> Item:
        """It by its name, with the comparisons of its experiment."""

        def make(run: TrialRun) -> list[Artefact]:
            shown = [*self.blocks(run.results), comparison_table(run.results, self.part)]
            return [Artefact(shown=block) for block in shown if isinstance(block, Table | Picture)]

        name, *aliases = self.names
        return Item(
            name=name,
            shows=self.about,
            needs="grid",
            make=make,
            grid=f"fd-{self.part}",
            aliases=tuple(aliases),
        )


def _every_dkef(results: TrialResults) -> Collapsed:
    return Collapsed(summary="Every DKEF that was trained", blocks=[dkef_trials_table(results)])


EXHIBITS = (
    Exhibit(
        names=("fd-d",),
        part="toy",
        about="Fig. A(d): score fields of a two-dimensional toy",
        show=(field_picture, toy_table),
    ),
    Exhibit(
        names=("fd-a", "fd-b"),
        part="loss",
        about="Fig. A(a), (b): exact score matching against seconds of training",
        show=(loss_picture, loss_table),
    ),
    Exhibit(
        names=("fd-c",),
        part="distance",
        about="Fig. A(c): samples of score networks against seconds of training",
        show=(distance_picture, distance_table),
    ),
    Exhibit(
        names=("fd-flow",),
        part="flow",
        about="a flow's likelihood by every objective",
        show=(flow_picture, flow_table),
    ),
    Exhibit(
        names=("fd-implicit",),
        part="implicit",
        about="auto-encoders with implicit encoders",
        show=(implicit_picture, implicit_table),
    ),
    Exhibit(
        names=("fd-dkef",),
        part="epsilon",
        about="the table of DKEF on UCI tables by epsilon",
        show=(dkef_picture, dkef_table, _every_dkef),
    ),
    Exhibit(
        names=("fd-epsilon",),
        part="epsilon",
        about="not in the source: what epsilon does to deep energies and to gradients",
        show=(epsilon_picture, deep_table, gradient_table),
    ),
    Exhibit(
        names=("fd-memory",),
        part="cost",
        about="time and memory of a step, the source's row beside",
        show=(cost_picture, cost_table),
    ),
)
ITEMS = tuple(exhibit.item for exhibit in EXHIBITS)
