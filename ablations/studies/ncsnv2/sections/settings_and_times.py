"""The tables around the ablation: settings, times, and the paper's own numbers, marked as its."""

from __future__ import annotations

import pandas as pd

from ablations.engine.frames import make_frame
from ablations.reporting.table import Column, Table
from ablations.reporting.wording import duration, memory, number, step_rules, text_or_empty, yes_no
from ablations.studies.ncsnv2 import quoted
from ablations.studies.ncsnv2.results import HYPERPARAMETER_COLUMNS, TIMING_COLUMNS, Results
from ablations.studies.ncsnv2.sections.style import conditions, dataset_order


def hyperparameter_table(results: Results) -> Table:
    """Noise levels, sampler and training settings, ours and the paper's (Table 4)."""
    given = results.hyperparameters
    ours = given[~given["source"].str.startswith("paper", na=False)]
    extra = _missing(results, ours, ["dataset", "variant"], HYPERPARAMETER_COLUMNS)
    raw = _stacked(HYPERPARAMETER_COLUMNS, given, extra.assign(note="settings not known yet"))
    columns = (
        Column("Dataset", raw["dataset"]),
        Column("Variant", raw["variant"]),
        Column("Source", map(text_or_empty, raw["source"])),
        Column("σ₁", [number(value, 4) for value in raw["sigma_1"]], number=True, by="sigma_1"),
        Column("L", map(number, raw["L"]), number=True),
        Column("T", map(number, raw["T"]), number=True),
        Column("ε", map(number, raw["epsilon"]), number=True, by="epsilon"),
        Column("Rule of ε", [text_or_empty(value) or "—" for value in raw["step_rule"]]),
        Column("Batch", map(number, raw["batch_size"]), number=True, by="batch_size"),
        Column("Iterations", map(number, raw["iterations"]), number=True),
        Column("Learning rate", map(number, raw["learning_rate"]), number=True),
        Column("EMA", map(number, raw["ema_momentum"]), number=True, by="ema_momentum"),
        Column("Note", map(text_or_empty, raw["note"])),
    )
    return Table(
        name="hyperparameters",
        title="Hyperparameters",
        caption=(
            "σ₁ and L set the noise levels, T and ε the annealed Langevin dynamics. "
            f"{step_rules(raw['step_rule'])}Rows marked “paper” are quoted from Song & Ermon "
            f"2020. {conditions(results)}"
        ),
        raw=raw.assign(budget=str(results.run["budget"])),
        columns=columns,
        kinds=_source_kinds(raw),
    )


def settings_table(results: Results) -> Table:
    """Every resolved setting of every row; rows of a data set that agree share a line."""
    records: list[dict[str, str]] = []
    for (dataset, setting), rows in results.settings.groupby(["dataset", "setting"], sort=False):
        for value, of_value in rows.groupby("value", sort=False):
            variants = "all" if len(of_value) == len(rows) else "; ".join(of_value["variant"])
            record = {"dataset": dataset, "setting": setting, "value": value}
            records.append(record | {"variants": variants})
    raw = pd.DataFrame(records, columns=["dataset", "setting", "value", "variants"])
    return Table(
        name="settings",
        title="Every setting",
        caption=(
            "All that a row's results depend on, as resolved from budget, grid, data and "
            f"techniques. {conditions(results)}"
        ),
        raw=raw.assign(budget=str(results.run["budget"])),
        columns=tuple(Column(name.capitalize(), raw[name]) for name in raw.columns),
        kinds=("ours",) * len(raw),
    )


def held_out_table(results: Results) -> Table | None:
    """Each training's loss on training and test images at its last snapshot; None without one."""
    found = results.held_out_losses
    if found.empty:
        return None
    keys = ["dataset", "training", "weights", "seed"]
    raw = found.loc[found.groupby(keys, sort=False)["iteration"].idxmax()]
    raw = raw.sort_values(keys, kind="stable").reset_index(drop=True)
    shown = {
        name: [
            f"{mean:.4g} ± {1.96 * error:.2g}"
            for mean, error in zip(raw[name], raw[f"{name}_error"], strict=True)
        ]
        for name in ("train", "test", "gap")
    }
    columns = (
        Column("Dataset", raw["dataset"]),
        Column("Training", raw["training"]),
        Column("Variants", raw["variants"]),
        Column("Objective", raw["objective"]),
        Column("Weights", raw["weights"]),
        Column("Seed", map(number, raw["seed"]), number=True),
        Column("Iteration", map(number, raw["iteration"]), number=True),
        Column(
            "n × draws",
            [
                f"{number(n)} × {number(draws)}"
                for n, draws in zip(raw["n"], raw["draws"], strict=True)
            ],
            number=True,
        ),
        Column("Train images", shown["train"], number=True),
        Column("Test images", shown["test"], number=True),
        Column("Test − train", shown["gap"], number=True),
    )
    return Table(
        name="held_out_losses",
        title="Loss on training and on test images",
        caption=(
            "The objective that was trained, of the same weights on n images of either split with "
            "so many draws of noise each, at the last snapshot; ± is a 95 % interval over images. "
            "Image by image the two splits have the same noise, so that their difference is known "
            f"better than either loss. {conditions(results)}"
        ),
        raw=raw.assign(budget=str(results.run["budget"])),
        columns=columns,
        kinds=("ours",) * len(raw),
    )


def timing_table(results: Results) -> Table:
    """Training and sampling times per cell, with the paper's own (Table 6) below them, marked."""
    given = results.timings
    is_paper = given["source"].str.startswith("paper", na=False)
    ours, paper = given[~is_paper], given[is_paper]
    if paper.empty:
        paper = make_frame(TIMING_COLUMNS, quoted.speed_rows())
    extra = _missing(results, ours, ["dataset", "variant", "seed"], TIMING_COLUMNS)
    raw = _stacked(TIMING_COLUMNS, ours, extra, paper)
    sampled = [
        duration(seconds) + ("" if pd.isna(n) else f" for {number(n)}")
        for seconds, n in zip(raw["sampling_s"], raw["n_sampled"], strict=True)
    ]
    columns = (
        Column("Dataset", raw["dataset"]),
        Column("Variant", raw["variant"]),
        Column("Seed", map(number, raw["seed"]), by="seed"),
        Column("Source", map(text_or_empty, raw["source"])),
        Column("Device", [text_or_empty(value) or "—" for value in raw["device"]]),
        Column(
            "Training",
            map(duration, raw["training_s"]),
            number=True,
            by="training_s",
        ),
        Column("Sampling (images)", sampled, number=True, by="sampling_s"),
        Column(
            "Compiling",
            map(duration, raw["compile_s"]),
            number=True,
            by="compile_s",
        ),
        Column(
            "Score evaluations per image",
            map(number, raw["score_evaluations_per_sample"]),
            number=True,
            by="score_evaluations_per_sample",
        ),
        Column("Images per s", map(number, raw["images_per_s"]), number=True),
        *(
            Column(f"Peak memory, {of}", map(memory, raw[by]), number=True, by=by)
            for of in ("training", "sampling")
            for by in [f"{of}_peak_bytes"]
        ),
        Column("Status", _timing_status(results, raw)),
    )
    return Table(
        name="timings",
        title="Time and memory",
        caption=(
            "Variants that differ only by technique 5 share one training run, and both denoising "
            "settings share one trajectory. Compiling is counted apart. Peak memory is that of "
            "each stage alone: on a GPU what was allocated, on a CPU what the process held, its "
            "libraries among it; a dash where the system does not say. Rows marked “paper” are "
            "quoted from Song & Ermon 2020 "
            "(full-size networks; the number of images sampled is not stated there). "
            f"{_SEVERAL if _of_several(raw) else ''}"
            f"{conditions(results)}"
        ),
        raw=raw.assign(budget=[_budget_of(source, results) for source in raw["source"]]),
        columns=columns,
        kinds=_source_kinds(raw),
    )


_SEVERAL = (
    "Where several devices worked together (“2 × …”), training is the time that passed, sampling "
    "the sum of their times, images per second those of one, and peak memory that of the first. "
)


def _of_several(raw: pd.DataFrame) -> bool:
    return bool(raw["device"].str.contains(r"(?:^|; )\d+ × ", na=False).any())


def quoted_scores_table(results: Results) -> Table | None:
    """The paper's own NCSN and NCSNv2 scores (Table 1) for its data sets; None without one."""
    families = dict.fromkeys(filter(None, map(quoted.family, dataset_order(results))))
    rows = [
        (name, *score, quoted.SCORE_CONDITIONS[name])
        for name in families
        for score in quoted.SCORES[name]
    ]
    if not rows:
        return None
    names = ["dataset", "variant", "denoise", "inception_score", "fid", "conditions"]
    raw = pd.DataFrame(rows, columns=names).assign(source=quoted.TABLE_1)
    columns = (
        Column("Dataset", raw["dataset"]),
        Column("Variant", raw["variant"]),
        Column("Denoised", map(yes_no, raw["denoise"])),
        Column(
            "Inception ↑",
            [value or "—" for value in raw["inception_score"]],
            number=True,
            by="inception_score",
        ),
        Column("Distance ↓", [f"FID {value:.2f}" for value in raw["fid"]], by="fid"),
        Column("Conditions", raw["conditions"]),
        Column("Source", raw["source"]),
    )
    return Table(
        name="paper_scores",
        title="The paper's own scores",
        caption=(
            "Quoted from Song & Ermon 2020, Table 1: the authors' networks, data and Inception "
            "features, at the paper's budget. None of these numbers was measured here."
        ),
        raw=raw,
        columns=columns,
        kinds=("paper",) * len(raw),
    )


def _stacked(columns: dict[str, str], *frames: pd.DataFrame) -> pd.DataFrame:
    # Not pd.concat: what type a column has that is empty in one frame depends on pandas' version.
    rows = [row for frame in frames for row in frame[list(columns)].to_dict("records")]
    return make_frame(columns, rows)


def _missing(
    results: Results, given: pd.DataFrame, keys: list[str], columns: dict[str, str]
) -> pd.DataFrame:
    """Rows for the cells that `given` says nothing of: a table must not drop them."""
    known = set(given[keys].itertuples(index=False, name=None))
    cells = results.cells[keys].drop_duplicates().itertuples(index=False, name=None)
    rows = [dict(zip(keys, cell, strict=True)) for cell in cells if cell not in known]
    return make_frame(columns, [row | {"source": "this run"} for row in rows])


def _timing_status(results: Results, raw: pd.DataFrame) -> list[str]:
    keys = ["dataset", "variant", "seed"]
    cells = results.cells
    status = dict(zip(cells[keys].itertuples(index=False, name=None), cells["status"], strict=True))
    return [
        "quoted" if kind == "paper" else status.get(key, "—")
        for kind, key in zip(
            _source_kinds(raw), raw[keys].itertuples(index=False, name=None), strict=True
        )
    ]


def _source_kinds(raw: pd.DataFrame) -> tuple[str, ...]:
    sources = (text_or_empty(source) for source in raw["source"])
    return tuple("paper" if source.startswith("paper") else "ours" for source in sources)


def _budget_of(source: object, results: Results) -> str:
    return "paper's own" if text_or_empty(source).startswith("paper") else results.run["budget"]
