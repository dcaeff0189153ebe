"""The colour shift of samples as a number (Song & Ermon 2020, Sec. 5, Figs. 4, 8, 11, 12).

The paper sees it by eye: samples of one snapshot tend to share a tint. Here it is the mean of each
colour channel over the samples of a snapshot, less that of the data.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from ablations.reporting.artefacts import Artefact
from ablations.reporting.image_grids import Panel, draw_panels, enlargement, tile
from ablations.reporting.pictures import FAINT, Picture, dress, shared_legend
from ablations.reporting.table import Column, Table
from ablations.reporting.wording import (
    file_slug,
    for_figure,
    joined,
    number,
    shorten,
    text_or_empty,
    yes_no,
)
from ablations.studies.ncsnv2.results import Results, SampleSet
from ablations.studies.ncsnv2.sample_sets import read_images, selected_set, sets_of
from ablations.studies.ncsnv2.sections.curves import ema_pairs
from ablations.studies.ncsnv2.sections.style import (
    conditions,
    dataset_order,
    new_panels,
    run_note,
    variant_colour,
    variant_marker,
    variant_order,
)

#: Real images that the data's mean is taken over, evenly spaced.
MAX_REAL = 50_000
CHANNELS = {1: ("grey",), 3: ("red", "green", "blue")}
_MAX_ROWS, _STRIP = 6, 8
_COLUMNS = [
    *("dataset", "variant", "weights", "denoise", "seed", "iteration", "n", "n_real"),
    *("red", "green", "blue", "grey", "norm", "norm_of_real", "note"),
]


def colour_shifts(results: Results, *, denoise: bool) -> pd.DataFrame:
    """The colour shift of every sampled snapshot: a row each.

    `red`, `green`, `blue` or `grey` is the mean over samples and pixels less the training images',
    in units of pixels in [0, 1]; `norm` the Euclidean norm over channels; `norm_of_real` what n
    real images drawn at random would have (root mean square). `note` says why a row has no number.
    """
    rows: list[dict[str, Any]] = []
    for dataset in dataset_order(results):
        real = _channel_means(results, dataset)
        for variant in _variants(results, dataset):
            for sample in sets_of(results, dataset=dataset, variant=variant, denoise=denoise):
                rows.append(_key(sample) | _shift(sample, real))
    return pd.DataFrame(rows, columns=_COLUMNS).astype({"denoise": "bool"})


def _key(sample: SampleSet) -> dict[str, Any]:
    keys = ("dataset", "variant", "weights", "denoise", "seed", "iteration")
    return {key: getattr(sample, key) for key in keys}


def _channel_means(results: Results, dataset: str) -> np.ndarray | str:
    """Channel means of the training images, float64 (N, C), or why there are none."""
    if dataset not in results.real:
        return "no real images"
    images = read_images(results.real[dataset])
    if isinstance(images, str):
        return images
    step = max(1, -(-len(images) // MAX_REAL))
    return _means(images[::step])


def _means(images: np.ndarray) -> np.ndarray:
    parts = [images[i : i + 1024].mean(axis=(2, 3)) for i in range(0, len(images), 1024)]
    return np.concatenate(parts) / 255


def _shift(sample: SampleSet, real: np.ndarray | str) -> dict[str, Any]:
    images = read_images(sample.path)
    for problem in (real, images):
        if isinstance(problem, str):
            return {"note": problem}
    assert isinstance(real, np.ndarray) and isinstance(images, np.ndarray)
    if images.shape[1] != real.shape[1]:
        return {"note": f"{images.shape[1]} channels, the data {real.shape[1]}"}
    shift = _means(images).mean(axis=0) - real.mean(axis=0)
    row: dict[str, Any] = dict(zip(CHANNELS[len(shift)], shift, strict=True))
    variance = real.var(axis=0, ddof=1).sum() if len(real) > 1 else np.nan
    return row | {
        "n": len(images),
        "n_real": len(real),
        "norm": float(np.linalg.norm(shift)),
        "norm_of_real": float(np.sqrt(variance / len(images))),
    }


def _variants(results: Results, dataset: str) -> list[str]:
    return variant_order(results, (s.variant for s in results.samples if s.dataset == dataset))


def shift_curves(results: Results, *, denoise: bool) -> Artefact:
    """The norm of the colour shift over training, one panel per data set."""
    frame = colour_shifts(results, denoise=denoise)
    datasets = dataset_order(results)
    figure, panels = new_panels(results, datasets, "colour shift")
    for dataset, axes in zip(datasets, panels, strict=False):
        here = frame[(frame["dataset"] == dataset) & frame["norm"].notna()]
        for variant in variant_order(results, here["variant"]):
            rows = here[here["variant"] == variant]
            seeds = rows.groupby("iteration")["norm"].agg(["mean", "min", "max"]).sort_index()
            x, colour = seeds.index.to_numpy(float), variant_colour(variant)
            axes.plot(
                x,
                seeds["mean"].to_numpy(float),
                color=colour,
                linewidth=1.6,
                marker=variant_marker(variant),
                markersize=4,
                label=for_figure(f"{variant} ({joined(rows['weights'].unique())})"),
            )
            if rows["seed"].nunique() > 1:
                low, high = seeds["min"].to_numpy(float), seeds["max"].to_numpy(float)
                axes.fill_between(x, low, high, color=colour, alpha=0.14, linewidth=0)
        for yardstick in sorted(set(here["norm_of_real"].dropna())):
            axes.axhline(
                yardstick, color=FAINT, linewidth=1, linestyle=(0, (2, 2)), label="real images"
            )
        axes.set_title(for_figure(shorten(dataset, 52)), loc="left", fontsize=10.5)
        dress(axes, "norm of the colour shift", logarithmic=False, empty=here.empty)
        if not here.empty:
            axes.set_ylim(bottom=0)
    shared_legend(figure, panels)
    how = "with" if denoise else "without"
    picture = Picture(
        name=f"colour_shift_{_suffix(denoise)}",
        title=f"Colour shift over training, {how} the denoising step",
        caption=f"{_meaning(frame, denoise=denoise)} {conditions(results)}",
        alt="Curves of the norm of the colour shift over training iterations",
        figure=figure,
    )
    return Artefact(shown=picture, frames={picture.name: frame})


def shift_table(results: Results, *, denoise: bool) -> Artefact:
    """The colour shift of every snapshot, channel by channel."""
    raw = colour_shifts(results, denoise=denoise)
    channels = [c for c in ("red", "green", "blue", "grey") if raw[c].notna().any()]
    columns = (
        Column("Dataset", raw["dataset"]),
        Column("Variant", raw["variant"]),
        Column("Weights", raw["weights"]),
        Column("Denoised", map(yes_no, raw["denoise"])),
        Column("Seed", map(number, raw["seed"]), number=True),
        Column("Iteration", map(number, raw["iteration"]), number=True),
        *(Column(c.capitalize(), map(_signed, raw[c]), number=True, by=c) for c in channels),
        Column("Norm", map(_unsigned, raw["norm"]), number=True),
        Column("Real images", map(_unsigned, raw["norm_of_real"]), number=True),
        Column("n", map(number, raw["n"]), number=True),
        Column("Note", map(text_or_empty, raw["note"])),
    )
    how = "with" if denoise else "without"
    table = Table(
        name=f"colour_shift_table_{_suffix(denoise)}",
        title=f"Colour shift, {how} the denoising step",
        caption=f"{_meaning(raw, denoise=denoise)} {conditions(results)}",
        raw=raw.assign(budget=str(results.run["budget"])),
        columns=columns,
        kinds=("ours",) * len(raw),
    )
    return Artefact(shown=table)


def shift_strips(results: Results, *, denoise: bool) -> Artefact:
    """The same samples at several snapshots, raw weights left and averaged weights right."""
    frame = colour_shifts(results, denoise=denoise)
    norms = frame.set_index(["dataset", "variant", "seed", "iteration"])["norm"].to_dict()
    rows: list[list[Panel]] = []
    arrays: dict[str, np.ndarray] = {}
    for dataset, raw, averaged in ema_pairs(results, frame):
        pair = [_snapshots(results, dataset, variant, denoise) for variant in (raw, averaged)]
        iterations = sorted({iteration for sets in pair for iteration in sets})
        for place in np.unique(np.linspace(0, len(iterations) - 1, _MAX_ROWS).round().astype(int)):
            iteration = iterations[place]
            panels = []
            for variant, sets in zip((raw, averaged), pair, strict=True):
                panel, images = _strip(sets.get(iteration), variant, iteration, norms)
                panels.append(panel)
                if images is not None:
                    arrays[file_slug(f"{dataset}, {variant}, {iteration}")] = images
            rows.append(panels)
    how = "with" if denoise else "without"
    picture = Picture(
        name=f"colour_strips_{_suffix(denoise)}",
        title=f"Samples over training, {how} the denoising step",
        caption=(
            f"The same {_STRIP} sample indices at snapshots over training, {how} the denoising "
            "step: raw weights left, their exponential moving average right, both of one training "
            "run (first seed). Above each strip the norm of the colour shift of all samples of "
            f"that snapshot, in units of pixels in [0, 1]. {conditions(results)}"
        ),
        alt="Strips of generated images at several training iterations, raw and EMA weights",
        figure=draw_panels(
            rows,
            run_note(results),
            what="pair of variants that differ by technique 5 alone",
        ),
    )
    return Artefact(shown=picture, arrays=arrays)


def _snapshots(results: Results, dataset: str, variant: str, denoise: bool) -> dict[int, SampleSet]:
    first = selected_set(
        results, sets_of(results, dataset=dataset, variant=variant, denoise=denoise)
    )
    seed = None if first is None else first.seed
    sets = sets_of(results, dataset=dataset, variant=variant, denoise=denoise, seed=seed)
    return {sample.iteration: sample for sample in sets}


def _strip(
    sample: SampleSet | None, variant: str, iteration: int, norms: dict[Any, float]
) -> tuple[Panel, np.ndarray | None]:
    heading = f"{variant}, iteration {iteration:,}"
    if sample is None:
        return Panel(heading=heading, absent="not sampled"), None
    images = read_images(sample.path, _STRIP)
    if isinstance(images, str):
        return Panel(heading=heading, absent=images), None
    norm = norms[sample.dataset, variant, sample.seed, iteration]
    note = f"{sample.dataset}, {sample.weights}, seed {sample.seed}, shift {_unsigned(norm)}"
    factor = enlargement(images.shape[-1], 56)
    return Panel(heading=heading, note=note, image=tile(images, _STRIP, factor=factor)), images


def _suffix(denoise: bool) -> str:
    return "denoised" if denoise else "not_denoised"


def _signed(value: float) -> str:
    return "—" if pd.isna(value) else f"{value:+.4f}"


def _unsigned(value: float) -> str:
    return "—" if pd.isna(value) else f"{value:.4f}"


def _meaning(frame: pd.DataFrame, *, denoise: bool) -> str:
    how = "with" if denoise else "without"
    counts = joined(sorted(set(frame["n"].dropna())))
    real = joined(sorted(set(frame["n_real"].dropna())))
    measured = f"n = {counts} samples, {real} training images. " if counts else "None yet. "
    return (
        "Mean of a colour channel over the samples of a snapshot, less its mean over the training "
        "images, in units of pixels in [0, 1]; the norm is Euclidean over the channels. Samples "
        f"are those the snapshot was judged by, {how} the denoising step, clamped to [0, 1]. As "
        "yardstick (“real images”) the norm that n real ones, drawn at random, have (root mean "
        "square). "
        f"{measured}With several seeds curves are means, with a band from the smallest to the "
        "largest."
    )
