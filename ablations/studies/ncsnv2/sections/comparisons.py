"""What seeds say of the differences between rows: paired, with intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import pandas as pd

from ablations.reporting.paired import Paired, paired_difference
from ablations.reporting.table import Column, Table
from ablations.reporting.wording import distance_text, joined, number, yes_no
from ablations.studies.ncsnv2.results import Results
from ablations.studies.ncsnv2.sections.style import conditions, dataset_order, variant_order

#: Columns that must agree where distances are compared.
_MEASURE = ("label", "n", "n_reference", "reference")
#: The technique groups of a factorial.
_GROUPS = ("1,2,4", "3", "5")
METHOD = "the mean over seeds, with a 95 % interval by Student's t for pairs of equal seeds"


@dataclass(frozen=True, kw_only=True)
class Comparisons:
    """The final distances of a data set and denoising setting, by row and seed."""

    dataset: str
    denoise: bool
    by_row: dict[str, dict[int, float]]  # in the order of the table, the first is the base

    @property
    def base(self) -> str:
        """The row that others are compared with: the table's first."""
        return next(iter(self.by_row))

    @property
    def n_seeds(self) -> int:
        """The most seeds that a row shares with the base."""
        shared = [len(self._pairs(self.base, row)[0]) for row in self.by_row]
        return max([n for n in shared[1:]] or shared)

    @property
    def best(self) -> str:
        """The row of the smallest mean distance."""
        means = {row: sum(of.values()) / len(of) for row, of in self.by_row.items()}
        return min(means, key=means.__getitem__)

    def difference(self, first: str, second: str) -> Paired:
        """Return second - first over the seeds that both have."""
        return paired_difference(*self._pairs(first, second))

    def standing(self, row: str) -> str:
        """Return "best", "as good" where no difference from the best is seen, or nothing."""
        if row == self.best:
            return "best"
        apart = self.difference(self.best, row)
        return "as good" if apart.n > 1 and apart.low <= 0 else ""

    def _pairs(self, first: str, second: str) -> tuple[list[float], list[float]]:
        one, other = self.by_row[first], self.by_row[second]
        seeds = sorted(one.keys() & other.keys())
        return [one[seed] for seed in seeds], [other[seed] for seed in seeds]


def comparisons(results: Results, dataset: str, *, denoise: bool) -> Comparisons | None:
    """The final distances of a data set by row and seed; None where none can be compared.

    Rows that were measured otherwise than the first, at another n say, are left out.
    """
    final = results.distances[
        (results.distances["dataset"] == dataset)
        & (results.distances["purpose"] == "final")
        & (results.distances["denoise"] == denoise)
    ]
    final = final[final["distance"].notna()]
    by_row: dict[str, dict[int, float]] = {}
    measure = None
    for variant in variant_order(results, final["variant"]):
        rows = final[final["variant"] == variant]
        how = set(rows[list(_MEASURE)].itertuples(index=False, name=None))
        measure = how if measure is None else measure
        if how == measure and len(how) == 1:
            seeds, values = rows["seed"].astype(int), rows["distance"].astype(float)
            by_row[variant] = dict(zip(seeds, values, strict=True))
    return Comparisons(dataset=dataset, denoise=denoise, by_row=by_row) if by_row else None


def against_base(found: Comparisons | None, variant: str) -> Paired | None:
    """The paired difference of a row from the base row; None for the base, and where there is none.

    One seed has a difference and no interval: none is given.
    """
    if found is None or variant == found.base or variant not in found.by_row:
        return None
    difference = found.difference(found.base, variant)
    return difference if difference.n > 1 else None


def difference_text(mean: float | None, low: float | None, high: float | None) -> str:
    """A difference with its interval, "−3.21 [−4.03, −2.39]"; a dash for none."""
    if mean is None or low is None or high is None:
        return "—"
    return f"{_signed(mean)} {_between(low, high)}"


def seeds_table(results: Results) -> Table:
    """The final distance of every row, denoising setting and seed: what the means are of."""
    final = results.distances[results.distances["purpose"] == "final"]
    keys = ["dataset", "variant", "denoise", "seed", "weights", "iteration"]
    raw = final[[*keys, "distance", *_MEASURE]].reset_index(drop=True)
    columns = (
        Column("Dataset", raw["dataset"]),
        Column("Variant", raw["variant"]),
        Column("Denoised", map(yes_no, raw["denoise"])),
        Column("Seed", map(number, raw["seed"]), number=True),
        Column("Distance ↓", map(distance_text, raw["distance"]), number=True, by="distance"),
        Column("n", map(number, raw["n"]), number=True),
    )
    return Table(
        name="distances_by_seed",
        title="Final distances by seed",
        caption=f"What the ablation's means are of. {conditions(results)}",
        raw=raw.assign(budget=str(results.run["budget"])),
        columns=columns,
        kinds=("ours",) * len(raw),
    )


def effects_table(results: Results) -> Table | None:
    """Main effects and interactions of the technique groups; None without a whole factorial.

    Of the eight variants of a seed, the mean distance of the four with a group less that of the
    four without it; an interaction is half the difference between a group's effect with another
    and without it, and so on (Yates' contrasts).
    """
    records: list[dict[str, Any]] = []
    for dataset in dataset_order(results):
        for denoise in (False, True):
            found = comparisons(results, dataset, denoise=denoise)
            records += [] if found is None else _effects(results, found)
    if not records:
        return None
    raw = pd.DataFrame(records)
    columns = (
        Column("Dataset", raw["dataset"]),
        Column("Denoised", map(yes_no, raw["denoise"])),
        Column("Groups", raw["groups"]),
        Column("Effect on the distance", map(_signed, raw["mean"]), number=True, by="mean"),
        Column("95 %", [_between(r["low"], r["high"]) for r in records], number=True, by="low"),
        Column("Seeds", map(number, raw["n"]), number=True),
    )
    return Table(
        name="effects",
        title="Effects of the technique groups",
        caption=(
            "Of the distances of all eight variants of a seed: a group's effect is the mean of the "
            "four with it less that of the four without; an interaction, of groups joined by ×, is "
            "what the one does to the other's effect, halved. Below 0 is better. "
            f"{METHOD[0].upper()}{METHOD[1:]}; a dash: one seed has none. {conditions(results)}"
        ),
        raw=raw.assign(budget=str(results.run["budget"])),
        columns=columns,
        kinds=("ours",) * len(raw),
    )


def _effects(results: Results, found: Comparisons) -> list[dict[str, Any]]:
    facts = results.cells[results.cells["row"].fillna("") == ""]
    techniques = dict(zip(facts["variant"], facts["techniques"].fillna(""), strict=True))
    groups = {
        row: frozenset(g for g in _GROUPS if set(g.split(",")) <= set(techniques[row].split(",")))
        for row in found.by_row
        if row in techniques
    }
    if len(set(groups.values())) < 2 ** len(_GROUPS):
        return []
    seeds = sorted(set.intersection(*(set(found.by_row[row]) for row in groups)))
    subsets = [c for size in (1, 2, 3) for c in combinations(_GROUPS, size)]
    records = []
    for subset in subsets if seeds else []:
        sides: tuple[list[float], list[float]] = ([], [])
        for seed in seeds:
            halves: tuple[list[float], list[float]] = ([], [])
            for row, there in groups.items():
                even = (len(subset) - len(there & set(subset))) % 2 == 0
                halves[even].append(found.by_row[row][seed])
            for side, half in zip(sides, halves, strict=True):
                side.append(sum(half) / len(half))
        effect = paired_difference(*sides)
        records.append(
            {"dataset": found.dataset, "denoise": found.denoise}
            | {"groups": " × ".join(f"({group})" for group in subset)}
            | vars(effect)
        )
    return records


def finding(results: Results) -> str:
    """What the grid found, in a sentence for each data set: what seeds tell apart, and what not."""
    return " ".join(filter(None, (_finding(results, d) for d in dataset_order(results))))


def _finding(results: Results, dataset: str) -> str:
    found = comparisons(results, dataset, denoise=True)
    if found is None or len(found.by_row) < 2:
        return ""
    if found.n_seeds < 2:
        best = found.by_row[found.best]
        return (
            f"With one seed on {dataset}, {found.best} has the smallest distance, "
            f"{distance_text(next(iter(best.values())))}; seeds were not varied, so how much of a "
            "difference is chance of training is not known."
        )
    apart, alike = [], []
    for row in list(found.by_row)[1:]:
        difference = found.difference(found.base, row)
        if difference.n < 2 or difference.low <= 0 <= difference.high:
            alike.append(row)
        else:
            verb = "lowers" if difference.mean < 0 else "raises"
            size = f"{distance_text(abs(difference.mean))} {_absolute(difference)}"
            apart.append(f"{row} {verb} the distance of {found.base} by {size}")
    parts = [joined(apart, "; ")] if apart else []
    if alike:
        parts.append(f"{joined(alike)} cannot be told apart from {found.base}")
    return f"With {found.n_seeds} seeds on {dataset}, {'; '.join(parts)}."


def _absolute(difference: Paired) -> str:
    low, high = sorted((abs(difference.low), abs(difference.high)))
    return f"[{distance_text(low)}, {distance_text(high)}]"


def _signed(value: float) -> str:
    if not math.isfinite(value):
        return "—"
    text = distance_text(abs(value))
    return f"{'−' if value < 0 else '+'}{text}"


def _between(low: float, high: float) -> str:
    return f"[{_signed(low)}, {_signed(high)}]" if math.isfinite(low) else "—"
