"""Distance and coverage against evaluations, of every sampler with the exact score of a mixture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ablations.reporting.artefacts import Artefact
from ablations.reporting.pictures import FAINT, Picture, dress_frame, shared_legend
from ablations.reporting.table import Column, Table
from ablations.reporting.wording import file_slug, for_figure, joined, number, step_rules
from ablations.studies.ncsnv2.benchmark import WAYS, Benchmark, Way
from ablations.studies.ncsnv2.sections.style import sampler_style
from scorekit.metrics.spaces import distance_label

#: Each measure with its heading, and an arrow to what is better.
MEASURES: Mapping[str, tuple[str, str]] = {
    "components": ("{space} to the mixture", " ↓"),
    "held_out": ("{space} to test images", " ↓"),
    "distance": ("Fréchet distance of pixels to the mixture", " ↓"),
    "covered": ("share of components met", " ↑"),
    "entropy": ("entropy of components, nats", " ↑"),
    "variance": ("variance at σ_L over σ_L²", ""),
}
#: Those that the picture shows, a panel each.
_PANELS = ("components", "held_out", "distance", "covered")
_OF_RULES = {"steady state": "#12906b", "snr": "#e08e0b", "Technique 4": "#23449b"}


def benchmark_artefacts(benchmark: Benchmark) -> list[Artefact]:
    """Return curves over evaluations, and the table that they are of."""
    table = benchmark_table(benchmark)
    return [Artefact(shown=benchmark_curves(benchmark, table)), Artefact(shown=table)]


def benchmark_table(benchmark: Benchmark) -> Table:
    """Every way at every number of evaluations, by way; the last row is of true samples."""
    facts = benchmark.facts
    rows: list[dict[str, Any]] = []
    for point in benchmark.points:
        ladder = point.ladder
        row: dict[str, Any] = {"dataset": facts.name, "way": point.way.title}
        row |= {"budget": point.budget, "evaluations": point.evaluations}
        row |= {"L": ladder.n_levels, "T": ladder.n_steps_each, "step_rule": ladder.step_rule}
        row |= {"epsilon": ladder.step_size or None, "schedule": ladder.schedule}
        row |= {"churn": point.way.churn, "status": "not sampled yet", "kind": "pending"}
        if point.measured is not None:
            row |= point.measured | {"status": "done", "kind": "ours"}
        rows.append(row)
    true = pd.DataFrame(benchmark.true or [], columns=list(MEASURES))
    row = {"dataset": facts.name, "way": f"true samples, mean of {len(true)} draws"}
    row |= {"status": "done" if len(true) else "not drawn yet", "kind": "reference"}
    for name in MEASURES:
        values = true[name].dropna().astype(float)
        if len(values):
            row |= {name: values.mean(), f"{name}_std": values.std(ddof=1)}
    rows.append(row)
    spreads = [f"{name}_std" for name in MEASURES]
    names = ["dataset", "way", "budget", "evaluations", "L", "T", "epsilon", "step_rule"]
    names += ["schedule", "churn", *MEASURES, *spreads, "sampling_s", "status", "kind"]
    raw = pd.DataFrame(rows, columns=names)
    shown = [name for name in MEASURES if raw[name].notna().any()]
    columns = (
        Column("Dataset", raw["dataset"]),
        Column("Sampler", raw["way"]),
        Column("Budget", map(number, raw["budget"]), number=True),
        Column("Evaluations", map(number, raw["evaluations"]), number=True),
        Column("L", map(number, raw["L"]), number=True),
        Column("T", map(number, raw["T"]), number=True),
        Column("ε", map(number, raw["epsilon"]), number=True, by="epsilon"),
        *(
            Column(
                f"{_heading(name, benchmark)}{MEASURES[name][1]}",
                [
                    number(value) + ("" if pd.isna(std) else f" ± {number(std, 2)}")
                    for value, std in zip(raw[name], raw[f"{name}_std"], strict=True)
                ],
                by=name,
            )
            for name in shown
        ),
        Column("Status", raw["status"]),
    )
    return Table(
        name=f"sampler_benchmark_{file_slug(facts.name)}_table",
        title=f"Samplers with the exact score of a mixture: {facts.name}",
        caption=_caption(benchmark, raw),
        raw=raw.drop(columns="sampling_s"),
        columns=columns,
        kinds=tuple(raw["kind"]),
    )


def benchmark_curves(benchmark: Benchmark, table: Table) -> Picture:
    """The table's measures over evaluations, with true samples as a band."""
    raw = table.raw
    drawn = [name for name in _PANELS if raw[name].notna().any()] or ["components"]
    figure = Figure(figsize=(10, 3.7 * -(-len(drawn) // 2) + 1.0), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(-(-len(drawn) // 2), 2, squeeze=False).flat)
    for axes in panels[len(drawn) :]:
        axes.set_axis_off()
    for name, axes in zip(drawn, panels, strict=False):
        for way in WAYS:
            rows = raw[(raw["way"] == way.title) & raw[name].notna()]
            if len(rows):
                _curve(axes, rows, name, way)
        _band(axes, raw.iloc[-1], name)
        axes.set_xscale("log")
        if name != "covered":
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
            axis.set_minor_formatter(NullFormatter())
        dress_frame(axes, "score evaluations per image", for_figure(_heading(name, benchmark)))
    if not raw["evaluations"][raw["kind"] == "ours"].any():
        panels[0].text(0.5, 0.5, "not sampled yet", transform=panels[0].transAxes, color=FAINT)
    shared_legend(figure, panels)
    return Picture(
        name=table.name.removesuffix("_table"),
        title=table.title,
        caption="The grey band is true samples, ± one standard deviation of their draws. "
        f"{table.caption}",
        alt="Distance to the distribution, and share of its components met, over evaluations",
        figure=figure,
    )


def _curve(axes: Axes, rows: pd.DataFrame, name: str, way: Way) -> None:
    _, colour, marker = sampler_style(way.sampler)
    if way.sampler == "annealed":
        colour = _OF_RULES[way.rule]
    axes.plot(
        rows["evaluations"].to_numpy(float),
        rows[name].to_numpy(float),
        color=colour or "#4ba3d9",
        linestyle="--" if way.churn else ":" if way.schedule != "geometric" else "-",
        marker=marker,
        markersize=4,
        label=way.title,
    )


def _band(axes: Axes, row: pd.Series, name: str) -> None:
    if pd.isna(row[name]):
        return
    mean, spread = float(row[name]), float(row[f"{name}_std"])
    axes.axhspan(max(mean - spread, mean / 2), mean + spread, color="#d5d8dd", zorder=0)
    axes.axhline(mean, color=FAINT, linewidth=0.8, zorder=0, label="true samples")


def _heading(name: str, benchmark: Benchmark) -> str:
    return MEASURES[name][0].format(space=distance_label(benchmark.facts.extractor))


def _caption(benchmark: Benchmark, raw: pd.DataFrame) -> str:
    facts, n = benchmark.facts, benchmark.n_components
    which = "all" if n == facts.n_train else f"of {facts.n_train:,}, drawn at random"
    rules = [step_rules([rule for rule in raw["step_rule"].dropna() if rule != "none"])]
    pixels = ""
    if raw["distance"].isna().all() and (raw["kind"] == "ours").any():
        pixels = (
            f"Pixels have no distance of their own: {benchmark.n_samples:,} samples are too few "
            f"for {facts.dim:,} dimensions. "
        )
    return (
        f"{benchmark.n_samples:,} samples of each sampler from a mixture of Gaussians at {n:,} "
        f"training images of {facts.name} ({which}), with its exact score, from σ₁ = "
        f"{number(facts.max_distance, 4)} (Technique 1) to σ_L = 0.01 and with the denoising step, "
        "which counts as an evaluation; all begin at a Gaussian of variance σ₁² around the mean "
        "image. Annealed Langevin dynamics and predictor-corrector sampling have L of Technique 2 "
        "(C = 0.5), or what the budget allows if less, and T steps at each scale; the others have "
        "as many scales as it allows. Distances are to the mixture itself, whose mean and "
        f"covariance are known, and to {facts.n_test:,} test images; a component is met where it "
        f"is the nearest to a sample; the entropy is at most ln {n:,} = {math.log(n):.3f}. The "
        "variance at σ_L is around the nearest component and before the denoising step: 1 is "
        "right. True samples say what the number of samples alone leaves. "
        f"{pixels}{_finding(raw)}{joined(rules)}Seed {benchmark.seed}; nothing is trained, so "
        "there is no budget of training."
    )


def _finding(raw: pd.DataFrame) -> str:
    """From which number of evaluations on each sampler is as close as true samples are."""
    done, true = raw[raw["kind"] == "ours"], raw.iloc[-1]
    if done.empty or pd.isna(true["components"]):
        return ""
    bound = float(true["components"] + 2 * true["components_std"])
    since: dict[str, int | None] = {}
    for way, rows in done.sort_values("budget").groupby("way", sort=False):
        far = rows["components"] > bound
        within = rows["budget"][~far[::-1].cummax()[::-1]]
        since[str(way)] = None if within.empty else int(within.iloc[0])
    order = [way.title for way in WAYS if way.title in since]
    reached = [f"{way} from {number(since[way])} on" for way in order if since[way] is not None]
    never = [way for way in order if since[way] is None]
    said = "; ".join([*reached, *([f"never {joined(never)}"] if never else [])])
    return (
        "Distance to the mixture within two standard deviations of true samples, as the budget "
        f"grows: {said}. "
    )
