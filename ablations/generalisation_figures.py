"""Does a model remember its training images? Nearest neighbours and interpolations (App. C.5)."""

from __future__ import annotations

import numpy as np

from ablations.image_grids import GAP_PX, Panel, draw_panels, enlargement, place_panels, tile
from ablations.pictures import FAINT, Picture, dress, new_panels, shared_legend
from ablations.presentation import (
    conditions,
    file_slug,
    for_figure,
    number,
    run_note,
    variant_colour,
)
from ablations.results import Results

CLOSEST_SHARE = 0.01
_HELD_OUT, _RED = "#7d838c", "#d1242f"
_SPLIT_PX, _TEXT_PX, _TILE_PX = 18, 18, 64


def interpolation_picture(
    results: Results, images: np.ndarray, *, dataset: str, variant: str, details: str
) -> Picture:
    """Interpolations between two samples, one pair a row (Figs. 6, 20-24).

    `images` is uint8 (rows, N + 2, C, H, W): the samples in the first and last column, and between
    them the N whose noise mixes theirs. `details` are sentences on weights, iteration and seeds.
    """
    _check("images", images, 5, np.uint8)
    count, columns = images.shape[:2]
    if columns < 3:
        raise ValueError(f"images has {columns} columns; two samples and one between are needed")
    factor = enlargement(images.shape[-1], _TILE_PX)
    grid = tile(images.reshape(-1, *images.shape[2:]), columns, factor=factor)
    heading = f"{dataset}: {variant}"
    return Picture(
        name=f"interpolation_{file_slug(dataset)}_{file_slug(variant)}",
        title=f"Interpolations between samples: {dataset}, {variant}",
        caption=(
            f"{count} pairs of samples, in the first and the last column, and {columns - 2} "
            "samples between: the same start, and at every step the noise cos(θ) z₁ + sin(θ) z₂, "
            f"θ = kπ/(2(N + 1)), k = 1 … N, N = {columns - 2} (App. B.2). Uncurated. {details} "
            f"{conditions(results)}"
        ),
        alt="Rows of images that change gradually from one sample to another",
        figure=draw_panels([[Panel(heading=heading, image=grid)]], run_note(results)),
    )


def neighbour_picture(
    results: Results,
    samples: np.ndarray,
    neighbours: np.ndarray,
    distances: np.ndarray,
    *,
    dataset: str,
    what: str,
    details: str,
    flipped: np.ndarray | None = None,
) -> Picture:
    """Images left of a red line, their nearest training images right of it (Figs. 16-19).

    `samples` is uint8 (S, C, H, W), `neighbours` uint8 (S, K, C, H, W), nearest first, `distances`
    (S, K) in feature space, written below each. Where `flipped` (S, K) is True the training image
    was nearer when mirrored, and is shown so. `what` names the samples ("NCSNv2", "held-out
    images"); `details` are sentences on feature space, weights, iteration and n.
    """
    _check("samples", samples, 4, np.uint8)
    _check("neighbours", neighbours, 5, np.uint8)
    count, k = neighbours.shape[:2]
    if neighbours.shape != (len(samples), k, *samples.shape[1:]) or distances.shape != (count, k):
        raise ValueError(
            f"samples {samples.shape}, neighbours {neighbours.shape} and distances "
            f"{distances.shape} do not fit: (S, C, H, W), (S, K, C, H, W) and (S, K) are needed"
        )
    if flipped is not None:
        neighbours = np.where(flipped[:, :, None, None, None], neighbours[..., ::-1], neighbours)
    factor = enlargement(samples.shape[-1], _TILE_PX)
    side = samples.shape[-1] * factor
    rows = np.full((count * (side + _TEXT_PX), _SPLIT_PX + (k + 1) * (side + GAP_PX), 3), 255)
    image = rows.astype(np.uint8)
    for row in range(count):
        top = row * (side + _TEXT_PX)
        image[top : top + side, :side] = tile(samples[row][None], 1, factor=factor)
        strip = tile(neighbours[row], k, factor=factor)
        image[top : top + side, side + _SPLIT_PX :][:, : strip.shape[1]] = strip
    panel = Panel(heading=f"{dataset}: {what}", image=image)
    figure, ((axes,),) = place_panels([[panel]], run_note(results))
    middle = side + _SPLIT_PX / 2
    axes.plot([middle, middle], [0, len(image) - _TEXT_PX], color=_RED, linewidth=1.2)
    for row in range(count):
        for column in range(k):
            axes.text(
                side + _SPLIT_PX + column * (side + GAP_PX) + side / 2,
                row * (side + _TEXT_PX) + side + _TEXT_PX / 2,
                number(distances[row, column]) + ("*" if _at(flipped, row, column) else ""),
                ha="center",
                va="center",
                fontsize=5,
                color=FAINT,
            )
    mirrored = (
        ""
        if flipped is None
        else "each image and its mirror image considered and the nearer taken (a star marks a "
        "training image shown mirrored); "
    )
    return Picture(
        name=f"neighbours_{file_slug(dataset)}_{file_slug(what)}",
        title=f"Nearest training images: {dataset}, {what}",
        caption=(
            f"{what}, left of the red line, and the {k} nearest training images in order; "
            f"{mirrored}below each the Euclidean distance in feature space. Uncurated. {details} "
            f"{conditions(results)}"
        ),
        alt="Images beside their nearest neighbours among the training images",
        figure=figure,
    )


def memorisation_summary(fake: np.ndarray, held_out: np.ndarray) -> dict[str, float]:
    """Compare nearest-neighbour distances of samples (S,) with those of held-out images (M,).

    The medians, and the share of samples that lie nearer to a training image than the closest
    CLOSEST_SHARE of held-out images (`threshold`): about CLOSEST_SHARE where a model draws from the
    distribution, more where it copies. Raises ValueError for an empty or not finite input.
    """
    for name, values in (("fake", fake), ("held_out", held_out)):
        if values.ndim != 1 or len(values) == 0 or not np.isfinite(values).all():
            raise ValueError(f"{name} must be finite distances (n,), n >= 1, not {values.shape}")
    threshold = float(np.quantile(held_out, CLOSEST_SHARE))
    return {
        "n_samples": len(fake),
        "n_held_out": len(held_out),
        "median": float(np.median(fake)),
        "median_held_out": float(np.median(held_out)),
        "threshold": threshold,
        "share_nearer": float((fake < threshold).mean()),
    }


def neighbour_distances_picture(
    results: Results,
    fake: np.ndarray,
    held_out: np.ndarray,
    *,
    dataset: str,
    variant: str,
    feature_space: str,
    details: str,
    flip: bool = True,
) -> Picture:
    """Distribution of the distance to the nearest training image, of samples and held-out images.

    `fake` (S,) and `held_out` (M,) are distances in `feature_space`; see `memorisation_summary`.
    """
    summary = memorisation_summary(fake, held_out)
    figure, (axes, *_) = new_panels(results, [dataset], "distances")
    curves = (
        (held_out, _HELD_OUT, "held-out images", "--", summary["median_held_out"]),
        (fake, variant_colour(variant), variant, "-", summary["median"]),
    )
    for values, colour, label, style, median in curves:
        label = for_figure(f"{label}, n = {len(values):,}")
        axes.ecdf(values, color=colour, linewidth=1.8, linestyle=style, label=label)
        axes.plot([median], [0.5], marker="o", markersize=5, color=colour)
    axes.axvline(
        summary["threshold"], color="#d1242f", linewidth=1, label="closest 1 % of held-out"
    )
    axes.set_title(f"{dataset}: {variant}", loc="left", fontsize=10.5)
    dress(axes, "share of images below", logarithmic=False, empty=False)
    axes.set_xlabel(
        for_figure(f"distance to the nearest training image, {feature_space}"), color=FAINT
    )
    axes.set_ylim(0, 1)
    shared_legend(figure, [axes])
    return Picture(
        name=f"neighbour_distances_{file_slug(dataset)}_{file_slug(variant)}",
        title=f"Distance to the nearest training image: {dataset}, {variant}",
        caption=(
            "Cumulative distribution of the Euclidean distance to the nearest training image"
            f"{' or its mirror image' if flip else ''} in the feature space {feature_space}, for "
            "samples and, as yardstick, for held-out test images, which cannot have been "
            "memorised. Medians (dots): "
            f"{number(summary['median'])} and {number(summary['median_held_out'])}. "
            f"{summary['share_nearer']:.1%} of the samples are nearer than the closest "
            f"{CLOSEST_SHARE:.0%} of the held-out images (red line); clearly more than that share "
            f"would speak of memorisation. {details} {conditions(results)}"
        ),
        alt="Cumulative distributions of nearest-neighbour distances of samples and test images",
        figure=figure,
    )


def _at(flags: np.ndarray | None, row: int, column: int) -> bool:
    return flags is not None and bool(flags[row, column])


def _check(name: str, array: np.ndarray, ndim: int, dtype: type) -> None:
    if array.ndim != ndim or array.dtype != dtype or array.shape[-3] not in (1, 3):
        raise ValueError(
            f"{name}: {array.dtype}, shape {array.shape}; {np.dtype(dtype)} with {ndim} "
            "dimensions, the last three 1 or 3 x H x W, is needed"
        )
