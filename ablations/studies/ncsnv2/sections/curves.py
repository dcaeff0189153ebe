"""The report's curves: distance, EMA against raw weights, and loss, over training."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ablations.reporting.artefacts import Artefact
from ablations.reporting.pictures import FAINT, INK, Picture, dress, shared_legend, spans_decades
from ablations.reporting.wording import for_figure, joined, number, shorten
from ablations.studies.ncsnv2.results import Results
from ablations.studies.ncsnv2.sections.settings_and_times import held_out_table
from ablations.studies.ncsnv2.sections.style import (
    conditions,
    dataset_order,
    new_panels,
    variant_colour,
    variant_marker,
    variant_order,
    without_ema,
)

TRAIN, TEST = "#23449b", "#c8501e"
SMOOTHING = 0.9
# More points than a figure is wide in pixels only make the SVG heavy.
MAX_POINTS = 2000


def selection_distances(results: Results, *, denoise: bool) -> pd.DataFrame:
    """The rows of `results.distances` that the curves over training are drawn from."""
    chosen = results.distances[results.distances["denoise"] == denoise]
    return chosen[chosen["purpose"] == "selection"].dropna(subset=["distance", "iteration"])


def ema_pairs(results: Results, frame: pd.DataFrame) -> list[tuple[str, str, str]]:
    """(data set, variant, the same with technique 5) of all pairs that both have rows in `frame`.

    The two share one training run, of which raw and averaged weights are sampled.
    """
    return [
        (dataset, raw, averaged)
        for dataset in dataset_order(results)
        for there in [_rows_there(results, dataset, frame)]
        for averaged in variant_order(results, there.values())
        for base, row in [key for key, label in there.items() if label == averaged]
        if (raw := there.get((without_ema(base) or "", row))) is not None
    ]


def _rows_there(results: Results, dataset: str, frame: pd.DataFrame) -> dict[tuple[str, str], str]:
    """The names of the rows with values, by variant and what sets the row apart."""
    named = set(frame[frame["dataset"] == dataset]["variant"])
    cells = results.cells[results.cells["dataset"] == dataset]
    facts = cells[["base", "row", "variant"]].itertuples(index=False, name=None)
    return {(base, row): label for base, row, label in facts if label in named}


def smoothed(losses: pd.Series) -> pd.Series:
    """The losses smoothed by the exponential moving average of momentum SMOOTHING (App. B.2)."""
    return losses.astype(float).ewm(alpha=1 - SMOOTHING, adjust=False).mean()


def training_losses(results: Results, variants: Collection[str] | None = None) -> pd.DataFrame:
    """The finite rows of `results.losses`; with `variants`, of their training runs alone."""
    losses = results.losses.dropna(subset=["loss", "iteration"])
    losses = losses[np.isfinite(losses["loss"].astype(float))]
    return losses if variants is None else _trained_for(results, losses, variants)


def held_out_losses(results: Results, variants: Collection[str] | None = None) -> pd.DataFrame:
    """The rows of `results.held_out_losses`; with `variants`, of their training runs alone."""
    losses = results.held_out_losses
    return losses if variants is None else _trained_for(results, losses, variants)


def _trained_for(results: Results, losses: pd.DataFrame, variants: Collection[str]) -> pd.DataFrame:
    cells = results.cells[results.cells["base"].isin(list(variants))]
    trainings = set(zip(cells["dataset"], cells["training"], strict=True))
    keys = zip(losses["dataset"], losses["training"], strict=True)
    return losses[np.fromiter((key in trainings for key in keys), bool, len(losses))]


def distance_curves(results: Results, *, denoise: bool) -> Picture:
    """Distance at the selection snapshots over training (the paper's Fig. 5, or 9 undenoised).

    One panel per data set, one curve per variant: the mean over seeds with a band from the
    smallest to the largest. Rings mark the snapshots that were selected.
    """
    selection = selection_distances(results, denoise=denoise)
    chosen = results.distances[results.distances["denoise"] == denoise]
    final = chosen[chosen["purpose"] == "final"].dropna(subset=["iteration"])
    datasets = dataset_order(results)
    logarithmic = spans_decades(selection["distance"])
    figure, panels = new_panels(results, datasets, "distance")
    for dataset, axes in zip(datasets, panels, strict=False):
        data = selection[selection["dataset"] == dataset]
        for variant in variant_order(results, data["variant"]):
            for weights, curve in data[data["variant"] == variant].groupby("weights"):
                several = data[data["variant"] == variant]["weights"].nunique() > 1
                label = f"{variant} ({weights})" if several else variant
                _distance_line(axes, curve, variant, label, dashed=several and weights == "raw")
                of_curve = (final["dataset"] == dataset) & (final["variant"] == variant)
                _rings(axes, curve, final[of_curve & (final["weights"] == weights)], variant)
        _finish_distance(axes, dataset, data, logarithmic=logarithmic)
    shared_legend(figure, panels)
    how = "with" if denoise else "without"
    return Picture(
        name=f"distance_curves_{'denoised' if denoise else 'not_denoised'}",
        title=f"Distance over training, {how} the denoising step",
        caption=(
            f"Fréchet distance during training, {how} the denoising step; lower is better. "
            f"{_measured(selection)} A ring marks the snapshot with the smallest distance, from "
            "which the final, larger sample is drawn. With several seeds: mean, and a band from "
            f"the smallest to the largest. {_absent(results, selection)}{conditions(results)}"
        ),
        alt=f"Curves of Fréchet distance over training iterations, {how} denoising",
        figure=figure,
    )


def ema_curves(results: Results, *, denoise: bool) -> Picture:
    """Raw against averaged weights, for variants that differ by technique 5 only (Figs. 4, 8).

    One panel per data set and pair; both curves of a pair come from the same training run.
    """
    selection = selection_distances(results, denoise=denoise)
    pairs = ema_pairs(results, selection)
    figure, panels = new_panels(results, [f"{d}{r}" for d, r, _ in pairs], "pair of variants")
    logarithmic = spans_decades(selection["distance"])
    for (dataset, raw, averaged), axes in zip(pairs, panels, strict=False):
        data = selection[selection["dataset"] == dataset]
        for variant, words in ((raw, "raw weights"), (averaged, "EMA")):
            curve = data[data["variant"] == variant]
            _distance_line(axes, curve, str(variant), f"{variant} ({words})")
        _finish_distance(axes, f"{dataset}: {raw} and {averaged}", data, logarithmic=logarithmic)
    shared_legend(figure, panels)
    how = "with" if denoise else "without"
    return Picture(
        name=f"ema_curves_{'denoised' if denoise else 'not_denoised'}",
        title=f"Raw against averaged weights, {how} the denoising step",
        caption=(
            "The effect of technique 5 alone: the same training run sampled with its raw weights "
            f"and with their exponential moving average, {how} the denoising step. "
            f"{_measured(selection)} {conditions(results)}"
        ),
        alt=f"Distance of raw and EMA weights over training iterations, {how} denoising",
        figure=figure,
    )


def loss_curves(results: Results, variants: Collection[str] | None = None) -> Picture:
    """Losses of every shared training run, or of those of `variants`, one panel each.

    The paper's Fig. 15 is that of NCSNv2. A panel has one training, hence one objective.
    """
    losses = training_losses(results, variants)
    held_out = held_out_losses(results, variants)
    runs = [
        (dataset, training)
        for dataset in dataset_order(results)
        for training in dict.fromkeys(losses[losses["dataset"] == dataset]["training"])
    ]
    figure, panels = new_panels(results, [f"{d}{t}" for d, t in runs], "training run")
    logarithmic = spans_decades(losses["loss"])
    for (dataset, training), axes in zip(runs, panels, strict=False):
        data, snapshots = (
            frame[(frame["dataset"] == dataset) & (frame["training"] == training)]
            for frame in (losses, held_out)
        )
        for index, (_, seed_data) in enumerate(data.groupby("seed", dropna=False)):
            _loss_line(axes, seed_data, first=index == 0)
        for weights, curves in snapshots.groupby("weights"):
            for index, (_, curve) in enumerate(curves.groupby("seed", dropna=False)):
                _held_out_lines(axes, curve, str(weights), first=index == 0)
        users = for_figure(joined(data["variants"].dropna()))
        _title(axes, f"{dataset}: {training}")
        axes.text(
            0.98,
            0.95,
            users,
            transform=axes.transAxes,
            ha="right",
            va="top",
            fontsize=9,
            color=FAINT,
        )
        objective = joined(data["objective"].dropna()) or "loss"
        dress(axes, f"loss: {objective}", logarithmic=logarithmic, empty=data.empty)
    shared_legend(figure, panels)
    return Picture(
        name="loss_curves",
        title="Training and test loss",
        caption=(
            "The objective that was trained. Faint: the batches that were trained on, with the raw "
            "weights of that moment and, where set, flipped; solid: the same smoothed by an "
            f"exponential moving average with momentum {SMOOTHING} over the recorded points. "
            f"Points: a snapshot's weights on {_measured_on(held_out)}, none flipped, the two "
            "splits and all snapshots with the same noise, which is none that was trained with; "
            "bars are 95 % intervals over images. One line per seed. Losses of different noise "
            f"levels or objectives are not comparable. {conditions(results)}"
        ),
        alt="Curves of training and test loss over training iterations",
        figure=figure,
    )


def _distance_line(
    axes: Axes, data: pd.DataFrame, variant: str, label: str, *, dashed: bool = False
) -> None:
    seeds = data.groupby("iteration")["distance"].agg(["mean", "min", "max"]).sort_index()
    x = seeds.index.to_numpy(float)
    colour = variant_colour(variant)
    axes.plot(
        x,
        seeds["mean"].to_numpy(float),
        color=colour,
        linewidth=1.8,
        linestyle="--" if dashed else "-",
        marker=variant_marker(variant),
        markersize=4,
        label=for_figure(label),
    )
    if data["seed"].nunique() > 1:
        low, high = seeds["min"].to_numpy(float), seeds["max"].to_numpy(float)
        axes.fill_between(x, low, high, color=colour, alpha=0.14, linewidth=0)


def _rings(axes: Axes, curve: pd.DataFrame, final: pd.DataFrame, variant: str) -> None:
    selected = curve.merge(final[["seed", "iteration"]].drop_duplicates(), on=["seed", "iteration"])
    axes.scatter(
        selected["iteration"].astype(float),
        selected["distance"].astype(float),
        s=110,
        facecolors="none",
        edgecolors=variant_colour(variant),
        linewidths=1.5,
        zorder=4,
    )


def _loss_line(axes: Axes, losses: pd.DataFrame, *, first: bool) -> None:
    losses = losses.sort_values("iteration")
    x, raw = losses["iteration"].to_numpy(float), losses["loss"].to_numpy(float)
    smooth = smoothed(losses["loss"]).to_numpy()
    step = max(1, len(x) // MAX_POINTS)
    name = "training batches, smoothed" if first else None
    axes.plot(x[::step], raw[::step], color=TRAIN, alpha=0.18, linewidth=0.8)
    axes.plot(x[::step], smooth[::step], color=TRAIN, linewidth=1.6, label=name)


def _held_out_lines(axes: Axes, curve: pd.DataFrame, weights: str, *, first: bool) -> None:
    curve = curve.sort_values("iteration")
    for split, colour, marker in (("train", TRAIN, "o"), ("test", TEST, "s")):
        axes.errorbar(
            curve["iteration"].to_numpy(float),
            curve[split].to_numpy(float),
            1.96 * curve[f"{split}_error"].to_numpy(float),
            color=colour,
            linewidth=1.2,
            linestyle=(0, (4, 2)) if weights == "EMA" else (0, (1, 1.5)),
            marker=marker,
            markersize=4,
            capsize=2,
            label=f"{split} images, {weights} weights" if first else None,
        )


def _measured_on(held_out: pd.DataFrame) -> str:
    parts = [
        f"{number(n)} images of either split with {number(draws)} draw(s) of noise each"
        for n, draws in held_out[["n", "draws"]].drop_duplicates().itertuples(index=False)
    ]
    return joined(parts, " or ") or "images of both splits, not measured yet"


def _finish_distance(axes: Axes, title: str, data: pd.DataFrame, *, logarithmic: bool) -> None:
    _title(axes, title)
    quantity = joined(data["label"].dropna()) or "Fréchet distance"
    dress(axes, quantity, logarithmic=logarithmic, empty=data.empty)


def _title(axes: Axes, title: str) -> None:
    axes.set_title(for_figure(shorten(title, 52)), loc="left", color=INK, fontsize=10.5)


def _absent(results: Results, selection: pd.DataFrame) -> str:
    """Name the variants without a curve: nobody should have to notice that one is not there."""
    drawn = set(zip(selection["dataset"], selection["variant"], strict=True))
    missing = [
        f"{dataset} {variant} ({joined(group['status'])})"
        for (dataset, variant), group in results.cells.groupby(["dataset", "variant"], sort=False)
        if (dataset, variant) not in drawn
    ]
    return f"No values from {joined(missing)}. " if missing else ""


def _measured(selection: pd.DataFrame) -> str:
    if selection.empty:
        return "Nothing measured yet."
    parts = []
    for (label, n, n_reference, reference), _ in selection.groupby(
        ["label", "n", "n_reference", "reference"], dropna=False
    ):
        against = f"{number(n_reference)} {reference} images"
        parts.append(f"{label} with n = {number(n)} against {against}")
    return "; ".join(parts) + "."


def ema_artefact(results: Results, *, denoise: bool) -> Artefact:
    """Distance of raw and averaged weights over training (Figs. 4, 8)."""
    picture = ema_curves(results, denoise=denoise)
    return Artefact(
        shown=picture, frames={picture.name: selection_distances(results, denoise=denoise)}
    )


def group_artefact(results: Results, *, denoise: bool) -> Artefact:
    """Distance of groups of techniques over training (Figs. 5, 9)."""
    picture = distance_curves(results, denoise=denoise)
    return Artefact(
        shown=picture, frames={picture.name: selection_distances(results, denoise=denoise)}
    )


def loss_artefacts(results: Results) -> list[Artefact]:
    """Training and test loss of NCSNv2 (Fig. 15), and in a table at their last snapshot."""
    picture = loss_curves(results, ["NCSNv2"])
    held_out = held_out_losses(results, ["NCSNv2"])
    frames = {
        picture.name: training_losses(results, ["NCSNv2"]),
        "held_out_loss_curves": held_out,
    }
    table = held_out_table(replace(results, held_out_losses=held_out))
    tables = [] if table is None else [Artefact(shown=table)]
    return [Artefact(shown=picture, frames=frames), *tables]
