"""Does a model remember its training images? Nearest neighbours and interpolations (App. C.5)."""

from __future__ import annotations

import numpy as np

from ablations.reporting.artefacts import Artefact
from ablations.reporting.image_grids import (
    GAP_PX,
    Panel,
    draw_panels,
    enlargement,
    place_panels,
    tile,
)
from ablations.reporting.pictures import FAINT, Picture, dress, shared_legend
from ablations.reporting.wording import file_slug, for_figure, number
from ablations.studies.ncsnv2.results import NeighbourSet, Results, SampleSet
from ablations.studies.ncsnv2.sample_sets import snapshot_words
from ablations.studies.ncsnv2.sections.style import conditions, new_panels, run_note, variant_colour
from scorekit.files import load_array, load_arrays

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


_SHOWN = 8


def interpolation_artefacts(results: Results, *, snapshot: str) -> list[Artefact]:
    """Interpolations of every cell that has them of this snapshot (Figs. 6, 20-24).

    ``snapshot`` is "last" or "selected". ValueError where no cell has any.
    """
    sets = [s for s in results.interpolations if (s.last if snapshot == "last" else s.selected)]
    if not sets:
        raise ValueError(f"no interpolation of {snapshot_words(snapshot)} yet; leave out --no-run")
    artefacts = []
    for found in sets:
        images = load_array(found.path)
        picture = interpolation_picture(
            results,
            images,
            dataset=found.dataset,
            variant=found.variant,
            details=_details(found, snapshot),
        )
        artefacts.append(Artefact(shown=picture, arrays={"images": images}))
    return artefacts


def neighbour_artefacts(results: Results, *, snapshot: str) -> list[Artefact]:
    """Nearest training images of samples and of held-out images, and the distances (Figs. 16-19).

    ``snapshot`` is "last" or "selected". ValueError where no cell has them of it.
    """
    sets = [found for found in results.neighbours if found.snapshot == snapshot]
    if not sets:
        raise ValueError(f"no neighbours of {snapshot_words(snapshot)} yet; leave out --no-run")
    return [artefact for found in sets for artefact in _of_one(results, found)]


def _of_one(results: Results, found: NeighbourSet) -> list[Artefact]:
    train = load_array(results.real[found.dataset], mapped=True)
    sources = {
        "fake": (found.variant, found.samples),
        "held_out": ("held-out images", (results.held_out[found.dataset],)),
    }
    search = (
        f"Feature space {found.feature_space}; searched: {number(found.n_searched)} of "
        f"{number(len(train))} training images."
    )
    details = f"{_details(found, found.snapshot)} {search}"
    artefacts = []
    names = [
        f"{kind}_{what}" for kind in sources for what in ("train_index", "flipped", "distance")
    ]
    arrays = load_arrays(found.path, names)
    for kind, (what, paths) in sources.items():
        index = arrays[f"{kind}_train_index"][:_SHOWN]
        files = [load_array(path, mapped=True) for path in paths]
        shown = np.concatenate([images[: len(index)] for images in files])[: len(index)]
        mirrored = arrays[f"{kind}_flipped"][: len(shown)]
        picture = neighbour_picture(
            results,
            shown,
            train[index],
            arrays[f"{kind}_distance"][: len(shown)],
            dataset=found.dataset,
            what=what,
            # No weights made what is real.
            details=details if kind == "fake" else search,
            flipped=mirrored if found.flip else None,
        )
        saved = {"images": shown, "neighbours": train[index], "train_index": index}
        artefacts.append(Artefact(shown=picture, arrays=saved))
    nearest = {kind: arrays[f"{kind}_distance"][:, 0] for kind in sources}
    picture = neighbour_distances_picture(
        results,
        nearest["fake"],
        nearest["held_out"],
        dataset=found.dataset,
        variant=found.variant,
        feature_space=found.feature_space,
        details=details,
        flip=found.flip,
    )
    summary = memorisation_summary(nearest["fake"], nearest["held_out"])
    numbers = {name: np.asarray(value) for name, value in summary.items()}
    return [*artefacts, Artefact(shown=picture, arrays=nearest | numbers)]


def _details(found: SampleSet | NeighbourSet, snapshot: str) -> str:
    how = "with" if found.denoise else "without"
    return (
        f"{found.weights} weights of {snapshot_words(snapshot)}, {number(found.iteration)}, seed "
        f"{found.seed}, {how} the denoising step."
    )
