"""Tables beside the ablation's: all other metrics, what n does to the distance, and L x T."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from ablations import quoted
from ablations.presentation import (
    conditions,
    dataset_order,
    distance_text,
    joined,
    number,
    step_rules,
    text_or_empty,
    variant_order,
    yes_no,
)
from ablations.results import METRICS, Results
from ablations.tables import Table

_KEYS = ["dataset", "variant", "weights", "denoise"]


def quality_table(results: Results) -> Table:
    """Inception score, KID, precision and recall of the final samples, and the distance at n.

    Over several seeds: the mean, and the sample standard deviation. The distance at n stands with
    its bootstrap interval and beside its extrapolation to infinite n, both of the first seed.
    """
    records = []
    for key in _groups(results.qualities, results):
        rows = _where(results.qualities, key)
        record: dict[str, Any] = dict(zip(_KEYS, key, strict=True))
        record |= {"n": joined(rows["n"].dropna()), "n_seeds": rows["seed"].nunique()}
        record |= {"reference": _against(rows)}
        for metric in METRICS:
            record |= _metric_columns(rows[rows["metric"] == metric], metric)
        record["feature_space"] = joined(rows["feature_space"].dropna())
        record["note"] = _notes(rows)
        records.append(record)
    columns = [*_KEYS, "n", "n_seeds", "reference", "feature_space"]
    for metric in METRICS:
        columns += [f"{metric}_{part}" for part in ("label", "mean", "std", "low", "high")]
    raw = pd.DataFrame(records, columns=[*columns, "note"])
    display = pd.DataFrame(
        {
            "Dataset": raw["dataset"],
            "Variant": raw["variant"],
            "Denoised": [yes_no(value) for value in raw["denoise"]],
            "IS ↑": [_cell(r, "IS") for r in records],
            "KID ↓": [_cell(r, "KID") for r in records],
            "Precision ↑": [_cell(r, "precision") for r in records],
            "Recall ↑": [_cell(r, "recall") for r in records],
            "F ↑": [_cell(r, "f_score") for r in records],
            "Distance at n ↓": [_interval_cell(r) for r in records],
            "At infinite n": [_named(r, "infinite n", _cell(r, "infinite n")) for r in records],
            "Feature space": raw["feature_space"],
            "n": raw["n"],
            "Reference": raw["reference"],
            "Note": raw["note"],
        },
        dtype="str",
    )
    return Table(
        name="quality",
        title="Other metrics, and what n does to the distance",
        caption=(
            "Of the same final samples and features as the ablation's distance; in Inception's "
            "features alone do they compare with published ones. IS, the Inception score: mean "
            "over its splits; KID: mean over subsets; ± is the standard deviation over seeds, with "
            "one seed over splits or subsets. Precision and recall (Kynkäänniemi et al. 2019, 3 "
            "neighbours) compare equally many real images where there are so many. In brackets: a "
            "95 % bootstrap interval for other images of the same model at this n. At infinite n: "
            "the intercept of a line in 1/n (Chong & Forsyth 2020), at least 0, ± its standard "
            "error, which allows for other images of the same model. "
            f"{conditions(results)}"
        ),
        raw=raw.assign(budget=str(results.run["budget"])),
        display=display,
        kinds=("ours",) * len(raw),
        numeric=tuple(display.columns[3:11]),
    )


def steps_table(results: Results) -> Table | None:
    """Distance against score evaluations: every row of a dataset where sampling differs.

    None where no variant of the grid was sampled in two ways. Published figures of the authors'
    checkpoints stand beside, marked, on the data set that they are of.
    """
    final = results.distances[results.distances["purpose"] == "final"]
    trainings, several = _trainings(results), _several(results)
    rows_of = list(zip(final["dataset"], final["variant"], strict=True))
    final = final[[(row[0], trainings.get(row)) in several for row in rows_of]]
    if final.empty:
        return None
    spent = results.timings.dropna(subset=["score_evaluations_per_sample"])
    evaluations = dict(
        zip(
            zip(spent["dataset"], spent["variant"], strict=True),
            spent["score_evaluations_per_sample"],
            strict=True,
        )
    )
    sampled = results.hyperparameters.dropna(subset=["L", "T"])
    samplers = {
        (row["dataset"], row["variant"]): {
            "ladder": f"{row['L']}×{row['T']}",
            "epsilon": row["epsilon"],
            "step_rule": row["step_rule"],
        }
        for row in sampled.to_dict("records")
    }
    records: list[dict[str, Any]] = []
    for key in _groups(final, results):
        rows = _where(final, key)
        values = rows["distance"].astype(float)
        record = dict(zip(_KEYS, key, strict=True)) | {"kind": "ours", "source": "this run"}
        records.append(
            record
            | samplers.get((key[0], key[1]), {"ladder": ""})
            | {
                "score_evaluations": evaluations.get((key[0], key[1])),
                "training": trainings[key[0], key[1]],
                "label": joined(rows["label"].dropna()),
                "distance_mean": values.mean(),
                "distance_std": values.std(ddof=1) if len(values) > 1 else np.nan,
                "n": joined(rows["n"].dropna()),
            }
        )
    for dataset in dataset_order(results):
        for row in quoted.step_rows(dataset):
            records.append({"kind": "paper", "dataset": dataset} | row)
    columns = [*_KEYS, "training", "ladder", "epsilon", "step_rule", "score_evaluations"]
    columns += ["label", "distance_mean", "distance_std", "n", "source"]
    raw = pd.DataFrame(records, columns=[*columns, "kind"])
    display = pd.DataFrame(
        {
            "Dataset": raw["dataset"],
            "Variant": raw["variant"],
            "Training": [text_or_empty(value) or "—" for value in raw["training"]],
            "Denoised": [yes_no(value) for value in raw["denoise"]],
            "L×T": raw["ladder"],
            "ε": [number(value) for value in raw["epsilon"]],
            "Rule of ε": [text_or_empty(value) or "—" for value in raw["step_rule"]],
            "Score evaluations": [number(value) for value in raw["score_evaluations"]],
            "Distance ↓": [
                f"{r['label']} {distance_text(r['distance_mean'], r['distance_std'])}"
                for r in raw.to_dict("records")
            ],
            "n": raw["n"],
            "Source": raw["source"],
        },
        dtype="str",
    )
    published = f"Rows that are not this run's are quoted: {quoted.STEPS_SOURCE}. "
    return Table(
        name="steps",
        title="Distance against score evaluations",
        caption=(
            f"{_whose(raw)} sampled with L noise scales of T steps each (L×T), or by consistent "
            f"annealed sampling. {step_rules(raw['step_rule'])}"
            f"{published if 'paper' in set(raw['kind']) else ''}{conditions(results)}"
        ),
        raw=raw.assign(budget=str(results.run["budget"])),
        display=display,
        kinds=tuple(raw["kind"]),
        numeric=("L×T", "ε", "Score evaluations", "n"),
    )


def _trainings(results: Results) -> dict[tuple[str, str], str]:
    """The training that the rows of a data set and variant are sampled from."""
    cells = results.cells.dropna(subset=["training"])
    keys = zip(cells["dataset"], cells["variant"], strict=True)
    return dict(zip(keys, cells["training"], strict=True))


def _several(results: Results) -> set[tuple[str, str]]:
    """Data set and training of what the grid samples in more than one way with the same weights."""
    cells = results.cells.drop_duplicates(["dataset", "variant"])
    ways = cells.groupby(["dataset", "training", "weights"])["variant"].nunique()
    return {(dataset, training) for dataset, training, _ in ways[ways > 1].index}


def _whose(raw: pd.DataFrame) -> str:
    """Whether our rows of each data set are of one trained network."""
    ours = raw[raw["kind"] == "ours"]
    one = (ours.groupby("dataset")[["training", "weights"]].nunique() <= 1).all(axis=None)
    seeds = "The same trained network (of each seed)"
    return seeds if one else "Trained networks, each named in its row,"


def _groups(frame: pd.DataFrame, results: Results) -> list[tuple[Any, ...]]:
    there = {(d, v, w, bool(n)) for d, v, w, n in frame[_KEYS].itertuples(index=False, name=None)}
    order = variant_order(variant for _, variant, _, _ in there)
    datasets = dataset_order(results)
    return sorted(there, key=lambda k: (datasets.index(k[0]), order.index(k[1]), k[2], k[3]))


def _where(frame: pd.DataFrame, key: tuple[Any, ...]) -> pd.DataFrame:
    chosen = np.ones(len(frame), dtype=bool)
    for column, value in zip(_KEYS, key, strict=True):
        chosen &= (frame[column] == value).to_numpy(dtype=bool)
    return frame[chosen]


def _against(rows: pd.DataFrame) -> str:
    at = rows[rows["metric"] == "KID"]
    return f"{joined(at['n_reference'].dropna())} {joined(at['reference'].dropna())}"


def _metric_columns(rows: pd.DataFrame, metric: str) -> dict[str, Any]:
    rows = rows.sort_values("seed")
    values = rows["value"].dropna().astype(float)
    first = rows.iloc[0] if len(rows) else None
    return {
        f"{metric}_label": joined(rows["label"].dropna()),
        f"{metric}_mean": values.mean() if len(values) else np.nan,
        f"{metric}_std": values.std(ddof=1) if len(values) > 1 else _own(first, "std"),
        f"{metric}_low": _own(first, "low"),
        f"{metric}_high": _own(first, "high"),
    }


def _own(row: pd.Series | None, column: str) -> float:
    return np.nan if row is None or pd.isna(row[column]) else float(row[column])


def _notes(rows: pd.DataFrame) -> str:
    """What a number was taken over, and why one is not there."""
    named = rows.dropna(subset=["note"]).drop_duplicates(["metric", "note"])
    return "; ".join(f"{row['metric']}: {row['note']}" for row in named.to_dict("records"))


def _cell(record: dict[str, Any], metric: str) -> str:
    mean, std = record[f"{metric}_mean"], record[f"{metric}_std"]
    if pd.isna(mean):
        return "—"
    return f"{mean:.3g}" if pd.isna(std) else f"{mean:.3g} ± {std:.2g}"


def _named(record: dict[str, Any], metric: str, text: str) -> str:
    """A distance, with its feature space in the same cell."""
    return text if text == "—" else f"{record[f'{metric}_label']} {text}"


def _interval_cell(record: dict[str, Any]) -> str:
    mean = record["interval_mean"]
    if pd.isna(mean):
        return "—"
    low, high = record["interval_low"], record["interval_high"]
    return _named(record, "interval", f"{mean:.3g} [{low:.3g}, {high:.3g}]")
