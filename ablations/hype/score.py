"""HYPE∞ from saved ratings, and the table that sets it beside the paper's (Table 5)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ablations.engine.frames import make_frame
from ablations.hype.dumps import HypeDump
from ablations.hype.ratings import N_EACH, rater_files, read_rounds
from ablations.reporting.table import Column, Table
from ablations.reporting.wording import number, yes_no

_LABEL_COLUMNS = {
    **dict.fromkeys(("dump", "name", "model", "dataset"), "string"),
    "seed": "Int64",
    "denoise": "boolean",
}
RATING_COLUMNS: dict[str, str] = {
    "rater": "string",
    **_LABEL_COLUMNS,
    **dict.fromkeys(("n_fakes", "n_reals", "fakes_wrong", "reals_wrong", "n_answers"), "Int64"),
    "complete": "bool",
}
SCORE_COLUMNS: dict[str, str] = {
    **_LABEL_COLUMNS,
    **dict.fromkeys(("hype", "fakes_error", "reals_error", "std"), "float64"),
    **dict.fromkeys(("n_raters", "n_answers", "n_incomplete"), "Int64"),
}


def read_ratings(directories: Sequence[Path]) -> pd.DataFrame:
    """One row for each rater and dump in the ratings folders, finished or not (RATING_COLUMNS).

    `fakes_wrong` counts fakes called real, `reals_wrong` reals called fake. Raises ValueError
    where a folder is absent or two hold the same rater, CorruptFile for a damaged file.
    """
    records: list[dict[str, Any]] = []
    found: dict[str, Path] = {}
    for directory in directories:
        if not directory.is_dir():
            raise ValueError(f"{directory}: no such folder of ratings")
        for path in rater_files(directory):
            if path.stem in found:
                raise ValueError(f"{path}: the same rater as in {found[path.stem]}")
            found[path.stem] = path
            for r in read_rounds(path):
                truths = [truth for truth, _, _ in r.images]
                records.append(
                    r.label
                    | {"rater": path.stem, "complete": r.complete, "n_answers": len(r.answers)}
                    | {"n_fakes": truths.count("fake"), "n_reals": truths.count("real")}
                    | {"fakes_wrong": r.n_wrong("fake"), "reals_wrong": r.n_wrong("real")}
                )
    return make_frame(RATING_COLUMNS, records)


def hype_scores(
    ratings: pd.DataFrame,
    dumps: Sequence[HypeDump] = (),
    *,
    n_bootstrap: int = 10_000,
    seed: int = 0,
) -> pd.DataFrame:
    """HYPE∞ of each rated dump, in percent, then the unrated ones of `dumps` (SCORE_COLUMNS).

    The error on fakes is the share of fakes called real, the error on reals that of reals called
    fake, HYPE∞ their mean; `std` is that of HYPE∞ over `n_bootstrap` draws of as many raters with
    replacement, missing with fewer than two raters (Zhou et al. 2019). Only rounds answered to
    the end count; the others are in `n_incomplete`. Raises ValueError for fewer than two draws.
    """
    if n_bootstrap < 2:
        raise ValueError(f"bootstrap = {n_bootstrap} must be at least 2")
    records = []
    for _, group in ratings.groupby("dump", sort=False):
        label = {column: group[column].iloc[0] for column in _LABEL_COLUMNS}
        whole = group[group["complete"]]
        counts = {
            "n_raters": len(whole),
            "n_answers": int(whole["n_answers"].sum()),
            "n_incomplete": len(group) - len(whole),
        }
        fakes, reals = (
            100 * whole[f"{kind}_wrong"].to_numpy(float) / whole[f"n_{kind}"].to_numpy(float)
            for kind in ("fakes", "reals")
        )
        errors = {}
        if len(whole):
            each = (fakes + reals) / 2
            errors = {
                "hype": each.mean(),
                "fakes_error": fakes.mean(),
                "reals_error": reals.mean(),
                "std": bootstrap_std(each, n_bootstrap, seed),
            }
        records.append(label | counts | errors)
    rated = {record["dump"] for record in records}
    nothing = dict.fromkeys(("n_raters", "n_answers", "n_incomplete"), 0)
    records += [dump.label | nothing for dump in dumps if dump.digest not in rated]
    return make_frame(SCORE_COLUMNS, records)


def bootstrap_std(values: np.ndarray, n_bootstrap: int, seed: int) -> float:
    """Standard deviation of the mean over draws with replacement; NaN for fewer than two values."""
    n = len(values)
    if n < 2:
        return np.nan
    generator = np.random.Generator(np.random.Philox(key=seed))
    # How often each value is drawn is all that a mean needs to know.
    drawn = generator.multinomial(n, np.full(n, 1 / n), size=n_bootstrap)
    return float((drawn @ values / n).std(ddof=1))


def hype_table(scores: pd.DataFrame) -> Table:
    """Table 5: a row for each dump, rated or not, then the paper's rows, marked as the paper's."""
    ours = scores.sort_values(["dataset", "name"], kind="stable").to_dict("records")
    types = {"kind": "string", **SCORE_COLUMNS, "source": "string"}
    rows = [
        row | {"kind": "ours" if row["n_raters"] else "pending", "source": _source(row)}
        for row in ours
    ]
    for model, *values in HYPE:
        named = dict(zip(("hype", "fakes_error", "reals_error", "std"), values, strict=True))
        of_paper = {"kind": "paper", "dataset": "CelebA 64", "source": TABLE_5}
        rows.append({"model": model} | named | of_paper)
    raw = make_frame(types, rows)
    models = pd.Series([_model(row) for row in raw.to_dict("records")], dtype="str")
    # Two runs of the same settings, say under two budgets: told apart by what they sampled.
    alike = models.duplicated(keep=False) & raw["dump"].notna()
    models[alike] += " (" + raw["dump"][alike].str[:8] + ")"
    columns = (
        Column("Dataset", raw["dataset"]),
        Column("Model", models),
        Column("HYPE∞(%)", _decimals(raw["hype"]), number=True),
        Column("Fakes Error(%)", _decimals(raw["fakes_error"]), number=True),
        Column("Reals Error(%)", _decimals(raw["reals_error"]), number=True),
        Column("Std.", _decimals(raw["std"]), number=True),
        Column("Raters", map(number, raw["n_raters"]), number=True),
        Column("Answers", map(number, raw["n_answers"]), number=True),
        Column("Source", raw["source"]),
    )
    caption = (
        "HYPE∞, higher is better: the mean of the share of fakes called real and the share of "
        "reals called fake. Std.: standard deviation over raters drawn with replacement. "
        f"Each rater saw {N_EACH} fakes and {N_EACH} reals, without a time limit. Ratings not "
        "finished are left out and counted; no finished one is left out for what was answered, "
        "and raters took no qualification test. Rows marked “paper” are quoted from Song & Ermon "
        "2020, who have those of the GANs from Zhou et al. 2019: other raters, data and samples."
    )
    return Table(
        name="table5",
        title="Human evaluation (HYPE∞)",
        caption=caption,
        raw=raw,
        columns=columns,
        kinds=tuple(raw["kind"]),
    )


def _model(row: dict[str, Any]) -> str:
    details = []
    if pd.notna(row["seed"]):
        details.append(f"seed {row['seed']}")
    if pd.notna(row["denoise"]):
        details.append({"yes": "denoised", "no": "not denoised"}[yes_no(row["denoise"])])
    return ", ".join([str(row["model"]), *details])


def _decimals(values: pd.Series) -> list[str]:
    return ["—" if pd.isna(value) else f"{value:.1f}" for value in values]


def _source(row: dict[str, Any]) -> str:
    left_out = f"{row['n_incomplete']} unfinished left out" if row["n_incomplete"] else ""
    state = "rated here" if row["n_raters"] else "not rated yet"
    return "; ".join(filter(None, [state, left_out]))


TABLE_5 = "paper (Table 5)"

# Model, HYPE∞, error on fakes, error on reals, standard deviation, all in percent, on CelebA 64
# (Table 5; the paper has all but NCSN and NCSNv2 from Zhou et al. 2019).
HYPE: list[tuple[str, float, float, float, float]] = [
    ("StyleGAN (with truncation tricks)", 50.7, 62.2, 39.3, 1.3),
    ("ProgressiveGAN", 40.3, 46.2, 34.4, 0.9),
    ("BEGAN", 10.0, 6.2, 13.8, 1.6),
    ("WGAN-GP", 3.8, 1.7, 5.9, 0.6),
    ("NCSN", 19.8, 22.3, 17.3, 0.4),
    ("NCSNv2", 37.3, 49.8, 24.8, 0.5),
]
