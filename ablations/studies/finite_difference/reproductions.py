"""The source's figures and tables by name: what each shows, which grid it needs, how it is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from ablations.engine.study import Item, Run
from ablations.reporting.artefacts import Artefact
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
from ablations.studies.finite_difference.sections.dkef import dkef_picture, dkef_table
from ablations.studies.finite_difference.sections.flow import flow_picture, flow_table
from ablations.studies.finite_difference.sections.implicit import implicit_picture, implicit_table
from ablations.studies.finite_difference.sections.loss import loss_picture, loss_table
from ablations.studies.finite_difference.sections.toy import field_picture, toy_table

_Show = Callable[[TrialResults], Table | Picture | None]


@dataclass(frozen=True, kw_only=True)
class TrialRun(Run):
    """What items of this study are made from."""

    @cached_property
    def results(self) -> TrialResults:
        """What the trials in `out` have given so far."""
        return collect_trials(self.out)


def _item(name: str, shows: str, part: str, *shown: _Show, aliases: tuple[str, ...] = ()) -> Item:
    def make(run: TrialRun) -> list[Artefact]:
        blocks = [show(run.results) for show in shown]
        blocks.append(comparison_table(run.results, part))
        return [Artefact(shown=block) for block in blocks if block is not None]

    return Item(name=name, shows=shows, needs="grid", make=make, grid=f"fd-{part}", aliases=aliases)


ITEMS = (
    _item(
        "fd-a",
        "Fig. A(a), (b): exact score matching against seconds of training",
        "loss",
        loss_picture,
        loss_table,
        aliases=("fd-b",),
    ),
    _item(
        "fd-c",
        "Fig. A(c): samples of score networks against seconds of training",
        "distance",
        distance_picture,
        distance_table,
    ),
    _item(
        "fd-d",
        "Fig. A(d): score fields of a two-dimensional toy",
        "toy",
        field_picture,
        toy_table,
    ),
    _item(
        "fd-dkef",
        "the table of DKEF on UCI tables by epsilon",
        "epsilon",
        dkef_picture,
        dkef_table,
    ),
    _item(
        "fd-epsilon",
        "not in the source: what epsilon does to deep energies and to gradients",
        "epsilon",
        epsilon_picture,
        deep_table,
        gradient_table,
    ),
    _item(
        "fd-memory",
        "time and memory of a step, the source's row beside",
        "cost",
        cost_picture,
        cost_table,
    ),
    _item(
        "fd-flow",
        "a flow's likelihood by every objective",
        "flow",
        flow_picture,
        flow_table,
    ),
    _item(
        "fd-implicit",
        "auto-encoders with implicit encoders",
        "implicit",
        implicit_picture,
        implicit_table,
    ),
)
