"""The table of the ablation: what every variant scored, or why it has no score."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from ablations.reporting.table import Column, Table
from ablations.reporting.wording import distance_text, joined, number, text_or_empty, yes_no
from ablations.studies.ncsnv2.results import Results
from ablations.studies.ncsnv2.sections.comparisons import (
    METHOD,
    against_base,
    comparisons,
    difference_text,
)
from ablations.studies.ncsnv2.sections.style import (
    apart_columns,
    conditions,
    dataset_order,
    variant_order,
)

_MEASURE = ["label", "feature_space", "n", "n_reference", "reference"]
_ABLATION_COLUMNS = [
    *("kind", "dataset", "variant", "techniques", "weights", "denoise"),
    *("label", "feature_space", "distance_mean", "distance_std", "n_seeds", "n_seeds_planned"),
    *("n", "n_reference", "reference", "iteration", "status", "budget"),
    *("interval_low", "interval_high", "base", "difference", "difference_low", "difference_high"),
    *("n_pairs", "standing"),
]


def ablation_table(results: Results) -> Table:
    """Final distance of every data set, variant, weights and denoising setting, then references.

    The mean over the seeds that have one, with the sample standard deviation when there are
    several (Song & Ermon 2020, Section 6, carries the protocol). A cell without a number has a row
    with its status.
    """
    records: list[dict[str, Any]] = []
    for dataset in dataset_order(results):
        cells = results.cells[results.cells["dataset"] == dataset]
        final = results.distances[
            (results.distances["dataset"] == dataset) & (results.distances["purpose"] == "final")
        ]
        keys = set(zip(cells["variant"], cells["weights"], strict=True))
        keys |= set(zip(final["variant"], final["weights"], strict=True))
        for variant in variant_order(results, (variant for variant, _ in keys)):
            for weights in sorted(w for v, w in keys if v == variant):
                for denoise in (False, True):
                    records += _variant_records(
                        _of(cells, variant, weights),
                        _of(final[final["denoise"] == denoise], variant, weights),
                        {"dataset": dataset, "variant": variant, "weights": weights}
                        | {"denoise": denoise},
                    )
        records += _reference_records(results.references[results.references["dataset"] == dataset])
    every = dict.fromkeys(_ABLATION_COLUMNS) | {"budget": str(results.run["budget"])}
    records = [every | record for record in records]
    seeds = _compare(results, records)
    raw, apart = apart_columns(results, pd.DataFrame(records, columns=_ABLATION_COLUMNS))
    columns = (
        Column("Dataset", raw["dataset"]),
        Column("Variant", raw["variant"]),
        *apart,
        Column("Weights", [text_or_empty(value) or "—" for value in raw["weights"]]),
        Column("Denoised", map(yes_no, raw["denoise"])),
        Column("Distance ↓", [_distance_cell(record) for record in records], by="distance_mean"),
        *_spread_columns(records, several=bool(seeds)),
        Column("n", map(number, raw["n"]), number=True),
        Column(
            "Reference",
            [
                f"{number(r['n_reference'])} {text_or_empty(r['reference'])}".strip()
                for r in records
            ],
            by="n_reference",
        ),
        Column(
            "Checkpoint",
            [_thousands(text_or_empty(value) or "—") for value in raw["iteration"]],
            number=True,
            by="iteration",
        ),
        Column("Status", raw["status"]),
    )
    caption = (
        "Fréchet distance, lower is better, named with its feature space; n generated images "
        "against the reference images. Checkpoint: the training iteration with the smallest "
        f"distance during training{_selection_n(results)}, per seed. {_spread_words(seeds)}"
        "Reference rows are no model: they say what noise, a Gaussian and real images score. "
        f"{conditions(results)}"
    )
    return Table(
        name="ablation",
        title="Ablation",
        caption=caption,
        raw=raw,
        columns=columns,
        kinds=tuple(raw["kind"]),
    )


def _compare(results: Results, records: list[dict[str, Any]]) -> list[str]:
    """Put into records what is known of chance; the base rows of data sets with several seeds.

    With several seeds the paired difference from the base row, with one the interval at n.
    """
    bases = {}
    intervals = results.qualities[results.qualities["metric"] == "interval"]
    for record in records:
        if record["kind"] == "reference":
            continue
        dataset, variant, denoise = record["dataset"], record["variant"], record["denoise"]
        found = comparisons(results, dataset, denoise=denoise)
        if found is None or variant not in found.by_row:
            continue
        if found.n_seeds < 2:
            here = intervals[intervals["dataset"] == dataset]
            here = here[(here["variant"] == variant) & (here["denoise"] == denoise)]
            for row in here.dropna(subset=["low"]).head(1).to_dict("records"):
                record |= {"interval_low": row["low"], "interval_high": row["high"]}
            continue
        bases[dataset] = found.base
        record |= {"base": found.base, "standing": found.standing(variant)}
        if (apart := against_base(found, variant)) is not None:
            record |= {"difference": apart.mean, "n_pairs": apart.n}
            record |= {"difference_low": apart.low, "difference_high": apart.high}
    return [f"{base} on {dataset}" for dataset, base in bases.items()]


def _spread_columns(records: list[dict[str, Any]], *, several: bool) -> list[Column]:
    columns = []
    if any(record.get("interval_low") is not None for record in records):
        texts = [
            f"[{distance_text(r['interval_low'])}, {distance_text(r['interval_high'])}]"
            if r.get("interval_low") is not None
            else "—"
            for r in records
        ]
        columns.append(Column("95 % at n", texts, number=True, by="interval_low"))
    if several:
        texts = [
            difference_text(r.get("difference"), r.get("difference_low"), r.get("difference_high"))
            for r in records
        ]
        columns.append(Column("Against the first row", texts, number=True, by="difference"))
        columns.append(Column("Among the best", [r.get("standing") or "" for r in records]))
    return columns


def _spread_words(bases: list[str]) -> str:
    if not bases:
        return (
            "95 % at n: a bootstrap interval for other images of the same model. Seeds were not "
            "varied: how much of a difference is chance of training is not known. "
        )
    return (
        "With several seeds: mean ± sample standard deviation. Against the first row "
        f"({joined(bases)}): {METHOD}. “As good” is what the same interval of its difference from "
        "the best row does not tell apart from it; each interval is by itself, and among many one "
        "in twenty misses. "
    )


def _of(frame: pd.DataFrame, variant: str, weights: str) -> pd.DataFrame:
    return frame[(frame["variant"] == variant) & (frame["weights"] == weights)]


def _variant_records(
    cells: pd.DataFrame, final: pd.DataFrame, key: dict[str, Any]
) -> list[dict[str, Any]]:
    there = final[np.isfinite(final["distance"].astype(float))]
    base = key | {
        "kind": _kind(cells),
        "techniques": joined(cells["techniques"].dropna()) or "none",
        "n_seeds_planned": cells["seed"].nunique(),
        "n_seeds": 0,
        "state": " / ".join(sorted(set(cells["status"]) - {"done"})) or "not there",
        "status": _status(cells, set(there["seed"])),
    }
    if there.empty:
        return [base | {"distance_mean": np.nan, "distance_std": np.nan}]
    records = []
    for measure, group in there.groupby(_MEASURE, dropna=False, sort=True):
        values = group["distance"].astype(float)
        records.append(
            base
            | dict(zip(_MEASURE, measure, strict=True))
            | {
                "distance_mean": values.mean(),
                "distance_std": values.std(ddof=1) if len(values) > 1 else np.nan,
                "n_seeds": group["seed"].nunique(),
                "iteration": ";".join(str(i) for i in sorted(set(group["iteration"].dropna()))),
            }
        )
    return records


def _reference_records(references: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {
            "kind": "reference",
            "dataset": row["dataset"],
            "variant": row["name"],
            "label": row["label"],
            "distance_mean": row["distance"],
            "n": row["n"],
            "n_reference": row["n_reference"],
            "status": "reference" if pd.notna(row["distance"]) else "reference, not measured",
        }
        for row in references.to_dict("records")
    ]


def _kind(cells: pd.DataFrame) -> str:
    statuses = set(cells["status"])
    if statuses & {"failed", "diverged"}:
        return "problem"
    return "pending" if statuses & {"running", "planned"} else "ours"


def _status(cells: pd.DataFrame, measured: set[Any]) -> str:
    if cells.empty:
        return "not a cell of this grid"
    many = len(cells) > 1
    parts = []
    for row in cells.sort_values("seed").to_dict("records"):
        state, message = row["status"], text_or_empty(row["message"])
        if state == "done" and row["seed"] not in measured:
            state = "done, but no final distance"
        if state != "done":
            which = f"seed {row['seed']} " if many else ""
            parts.append(f"{which}{state}" + (f": {message}" if message else ""))
    n_done = int((cells["status"] == "done").sum())
    if many and n_done < len(cells):
        parts.insert(0, f"{n_done} of {len(cells)} seeds done")
    return "; ".join(parts) or "done"


def _distance_cell(record: dict[str, Any]) -> str:
    if pd.isna(record["distance_mean"]):
        # One word here; the whole reason is in the status column.
        return "—" if record["kind"] == "reference" else record["state"]
    text = distance_text(record["distance_mean"], record["distance_std"])
    seeds = record["n_seeds"] or 0
    return f"{record['label']} {text}" + (f" ({seeds} seeds)" if seeds > 1 else "")


def _thousands(text: str) -> str:
    return " / ".join(f"{int(part):,}" if part.isdigit() else part for part in text.split(";"))


def _selection_n(results: Results) -> str:
    selection = results.distances[results.distances["purpose"] == "selection"]
    counts = joined(sorted(set(selection["n"].dropna())))
    return f" (n = {counts})" if counts else ""
