"""Figures beside the ablation's: distance against n, and against score evaluations."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from ablations.pictures import FAINT, Picture, dress, new_panels, shared_legend, spans_decades
from ablations.presentation import (
    base_variant,
    conditions,
    dataset_order,
    for_figure,
    joined,
    number,
    variant_colour,
    variant_marker,
    variant_order,
)
from ablations.results import Results
from ablations.tables import Table


def distance_against_n(results: Results, *, denoise: bool) -> Picture:
    """Distance of subsets of the final samples over 1/n, with the line to infinite n."""
    points = results.extrapolations[results.extrapolations["denoise"] == denoise]
    datasets = [name for name in dataset_order(results) if name in set(points["dataset"])]
    figure, panels = new_panels(results, datasets, "distance at several n")
    for dataset, axes in zip(datasets, panels, strict=False):
        data = points[points["dataset"] == dataset]
        for variant in variant_order(data["variant"]):
            of_variant = data[data["variant"] == variant]
            for i, (_, curve) in enumerate(of_variant.groupby("seed")):
                _line_to_infinity(axes, curve, variant, label=variant if i == 0 else "")
        dress(axes, _labels(data), logarithmic=spans_decades(data["distance"]), empty=data.empty)
        axes.set_title(for_figure(dataset), loc="left", fontsize=10.5)
        axes.set_xlabel("1 / n")
        ticks = np.unique(data["n"].to_numpy(int))[[0, -1]]
        axes.set_xticks([0, *(1 / ticks)], ["n = ∞", *(f"n = {number(n)}" for n in ticks)])
    shared_legend(figure, panels)
    how = "with" if denoise else "without"
    return Picture(
        name=f"distance_against_n_{'denoised' if denoise else 'not_denoised'}",
        title=f"Distance against n, {how} the denoising step",
        caption=(
            f"Fréchet distance of random subsets of the final samples, {how} the denoising step, "
            "over 1/n: its bias falls as 1/n, so the line's end at n = ∞ estimates the distance "
            "without it (Chong & Forsyth 2020); where the line ends below 0 the estimate is 0. The "
            f"bias of the reference's own n stays. One line per seed. {conditions(results)}"
        ),
        alt=f"Lines of Fréchet distance over 1/n, {how} denoising, extrapolated to infinite n",
        figure=figure,
    )


def steps_curve(results: Results, table: Table) -> Picture | None:
    """Distance over score evaluations, from :func:`ablations.quality_tables.steps_table`.

    None where no sampler of the table stands at more than one number of evaluations.
    """
    raw = table.raw[table.raw["denoise"].astype(bool)]
    raw = raw.assign(consistent=raw["variant"].str.contains("consistent"))
    spent = raw.groupby(["dataset", "source", "consistent"])["score_evaluations"].nunique()
    if not (spent > 1).any():
        return None
    datasets = [name for name in dataset_order(results) if name in set(raw["dataset"])]
    figure, panels = new_panels(results, datasets, "distance against score evaluations")
    for dataset, axes in zip(datasets, panels, strict=False):
        data = raw[raw["dataset"] == dataset]
        for source, rows in data.groupby("source"):
            for sampler, curve in rows.groupby("consistent"):
                _steps_line(axes, curve, str(source), consistent=bool(sampler))
        dress(axes, _labels(data), logarithmic=True, empty=data.empty)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
        axes.set_title(for_figure(dataset), loc="left", fontsize=10.5)
        axes.set_xlabel("score evaluations per image")
    shared_legend(figure, panels)
    return Picture(
        name="steps",
        title="Distance against score evaluations",
        caption=(
            "Fréchet distance with the denoising step over the score evaluations of a sample, for "
            f"the L×T at each point. {table.caption}"
        ),
        alt="Fréchet distance over score evaluations per image, for several L×T",
        figure=figure,
    )


def _line_to_infinity(axes: Axes, curve: pd.DataFrame, variant: str, label: str) -> None:
    colour = variant_colour(variant)
    inverse = 1 / curve["n"].to_numpy(float)
    axes.plot(
        inverse,
        curve["distance"].to_numpy(float),
        linestyle="",
        marker=variant_marker(variant),
        markersize=4,
        color=colour,
        label=for_figure(label) or None,
    )
    ends = np.array([0, inverse.max()])
    line = curve.iloc[0]
    # Through the points' mean, as every least-squares line: the intercept may be bounded at 0.
    heights = curve["distance"].mean() + line["slope"] * (ends - inverse.mean())
    axes.plot(ends, heights, color=colour, linewidth=1.2)
    axes.errorbar(0, line["intercept"], 1.96 * line["standard_error"], color=colour, capsize=3)


def _steps_line(axes: Axes, curve: pd.DataFrame, source: str, *, consistent: bool) -> None:
    curve = curve.sort_values("score_evaluations")
    x, y = (curve[c].to_numpy(float) for c in ("score_evaluations", "distance_mean"))
    base = base_variant(str(curve["variant"].iloc[0]))
    how = "consistent" if consistent else "annealed Langevin"
    axes.plot(
        x,
        y,
        color="#7d838c" if source == "published" else variant_colour(base),
        linestyle="--" if consistent or source == "published" else "-",
        marker="s" if consistent else "D",
        markersize=4,
        label=f"{for_figure(base)}, {how}, {source}",
    )
    below = consistent or source == "published"
    for ladder, at, height in zip(curve["ladder"], x, y, strict=True):
        axes.annotate(
            str(ladder),
            (at, height),
            xytext=(-4, -12) if below else (4, 5),
            textcoords="offset points",
            ha="right" if below else "left",
            fontsize=8,
            color=FAINT,
        )


def _labels(data: pd.DataFrame) -> str:
    return joined(data["label"].dropna()) or "Fréchet distance"
