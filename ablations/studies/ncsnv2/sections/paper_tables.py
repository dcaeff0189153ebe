"""Tables 1, 4 and 6 of the paper: its rows, marked as such, and ours in the same columns."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd

from ablations.reporting.artefacts import Artefact
from ablations.reporting.table import Column, Table
from ablations.reporting.wording import distance_text, joined, number, text_or_empty, yes_no
from ablations.studies.ncsnv2 import quoted
from ablations.studies.ncsnv2.results import Results
from ablations.studies.ncsnv2.sections.ablation import ablation_table
from ablations.studies.ncsnv2.sections.settings_and_times import hyperparameter_table, timing_table
from ablations.studies.ncsnv2.sections.style import conditions, dataset_order

_KEY = ["dataset", "variant", "weights", "denoise"]


def table_1(results: Results) -> Artefact:
    """Inception score and distance of our variants, then the paper's rows (all of Table 1)."""
    rows = [*_our_rows(results), *_quoted_rows()]
    raw = pd.DataFrame(rows, columns=list(_EMPTY)).assign(
        budget=[_budget(r, results) for r in rows]
    )
    columns = (
        Column("Dataset", raw["dataset"]),
        Column("Variant", raw["variant"]),
        Column("Weights", [text_or_empty(value) or "—" for value in raw["weights"]]),
        Column("Denoised", map(yes_no, raw["denoise"])),
        Column(
            "Inception score ↑",
            [text_or_empty(value) or "—" for value in raw["inception_text"]],
            by="inception_score",
        ),
        Column(
            "Distance ↓",
            [text_or_empty(value) or "—" for value in raw["distance_text"]],
            by="distance",
        ),
        Column("n", map(number, raw["n"]), number=True),
        Column(
            "Reference",
            [text_or_empty(value) or "—" for value in raw["reference"]],
            by="n_reference",
        ),
        Column("Status", raw["status"]),
        Column("Source", raw["source"]),
    )
    table = Table(
        name="table1",
        title="Inception scores and Fréchet distances (the paper's Table 1)",
        caption=(
            "Higher Inception scores and lower distances are better. A distance is FID in "
            "Inception-v3's feature space only; in any other it bears that space's name, and so "
            "does the score, and neither compares with the paper's. Ours are from the snapshot "
            "with the smallest distance during training, mean ± sample standard deviation where "
            "there are several seeds; an Inception score of one seed has the deviation over its "
            "splits. Rows marked “paper” are quoted from Song & Ermon 2020, Table 1. "
            f"{conditions(results)}"
        ),
        raw=raw.drop(columns=["inception_text", "distance_text"]),
        columns=columns,
        kinds=tuple(str(row["kind"]) for row in rows),
    )
    return Artefact(shown=table)


_EMPTY: dict[str, Any] = dict.fromkeys(
    (
        *("kind", "source", *_KEY, "iteration", "status"),
        *("inception_label", "inception_score", "inception_std", "inception_text"),
        *("distance_label", "feature_space", "distance", "distance_std", "distance_text"),
        *("n", "n_reference", "reference", "n_seeds"),
    )
)


def _our_rows(results: Results) -> list[dict[str, Any]]:
    ablation = ablation_table(results).raw
    rows = []
    for cell in ablation[ablation["kind"] != "reference"].to_dict("records"):
        row = _EMPTY | {key: cell[key] for key in (*_KEY, "kind", "iteration", "status", "n_seeds")}
        row |= {"source": "this run", **_inception(results, cell)}
        if pd.notna(cell["distance_mean"]):
            seen = distance_text(cell["distance_mean"], cell["distance_std"])
            row |= {"distance_label": cell["label"], "distance": cell["distance_mean"]}
            row |= {"distance_std": cell["distance_std"]}
            row |= {"distance_text": f"{cell['label']} {seen}"}
            row |= {key: cell[key] for key in ("feature_space", "n", "n_reference")}
            row |= {"reference": f"{number(cell['n_reference'])} {cell['reference']}"}
        rows.append(row)
    return rows


def _inception(results: Results, cell: dict[str, Any]) -> dict[str, Any]:
    """The Inception score of a variant, over its seeds; nothing where it was not measured."""
    frame = results.qualities
    same = (frame["metric"] == "IS") & frame["value"].notna()
    for key in _KEY:
        same &= frame[key] == cell[key]
    scores = frame[same]
    if scores.empty:
        return {}
    value = float(scores["value"].mean())
    spread = scores["value"].std(ddof=1) if len(scores) > 1 else scores["std"].iloc[0]
    label = joined(scores["label"].unique())
    seen = f"{label} {value:.2f}" + ("" if pd.isna(spread) else f" ± {spread:.2f}")
    if splits := joined(scores["note"].dropna()):
        # The score of few images a split is lower than that of many.
        seen += f" ({splits})"
    return {
        "inception_label": label,
        "inception_score": value,
        "inception_std": float(spread),
        "inception_text": seen,
    }


def _quoted_rows() -> list[dict[str, Any]]:
    base = _EMPTY | {"kind": "paper", "source": quoted.TABLE_1, "status": "quoted"}
    base |= {"distance_label": "FID"}
    rows = [
        base
        | {"dataset": "CIFAR-10", "variant": model, "inception_text": score, "distance": fid}
        | {"reference": "not stated"}
        for model, score, fid in quoted.OTHER_MODELS
    ]
    for family, models in quoted.SCORES.items():
        rows += [
            base
            | {"dataset": family, "variant": model, "denoise": denoise, "distance": fid}
            | {"inception_text": score, "reference": quoted.SCORE_CONDITIONS[family]}
            for model, denoise, score, fid in models
        ]
    for row in rows:
        row["distance_text"] = f"FID {row['distance']:.2f}"
        value, _, spread = row["inception_text"].partition(" ± ")
        row["inception_score"] = float(value) if value else None
        row["inception_std"] = float(spread) if spread else None
    # The paper's order of data sets, with the other models before its own.
    return sorted(rows, key=lambda row: list(quoted.SCORES).index(row["dataset"]))


def _budget(row: dict[str, Any], results: Results) -> str:
    return "paper's own" if row["kind"] == "paper" else str(results.run["budget"])


def table_4(results: Results) -> Artefact:
    """Hyperparameters: ours, all nine rows as published, and what the techniques give for them."""
    table = hyperparameter_table(results)
    known = bool(dataset_order(results))
    caption = table.caption if known else table.caption.removesuffix(conditions(results)) + _NO_GRID
    computed = (
        "Rows marked “computed” are Techniques 2 and 4 applied here to the paper's σ₁ and T; a "
        "note says where the paper's numbers differ from them. "
    )
    return Artefact(
        shown=replace(
            table, name="table4", title="Hyperparameters (Table 4)", caption=computed + caption
        )
    )


_NO_GRID = "No grid has been run into this folder, so none of its rows are ours."


def table_6(results: Results) -> Artefact:
    """Training and sampling times, with the paper's V100 figures below ours."""
    table = timing_table(results)
    return Artefact(
        shown=replace(table, name="table6", title="Training and sampling time (Table 6)")
    )
