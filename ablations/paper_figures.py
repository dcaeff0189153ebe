"""The paper's figures that the report has as well, each with the data that it shows."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np

from ablations.artefacts import Artefact
from ablations.context_tables import held_out_table
from ablations.figures import (
    distance_curves,
    ema_curves,
    held_out_losses,
    loss_curves,
    selection_distances,
    training_losses,
)
from ablations.presentation import dataset_order, file_slug, variant_order
from ablations.results import Results
from ablations.sample_figures import grid_keys, sample_grid, sample_overview
from ablations.sample_sets import read_images, shown_set

_SHEET = 64
_OVERVIEW = 25


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


def overview_artefact(results: Results, *, denoise: bool) -> Artefact:
    """Samples of all variants side by side, the same indices (Figs. 13, 14)."""
    arrays: dict[str, np.ndarray] = {}
    for dataset in dataset_order(results):
        if dataset in results.real:
            _add(arrays, f"{dataset}, real", read_images(results.real[dataset], _OVERVIEW))
        names = {s.variant for s in results.samples if s.dataset == dataset}
        for variant in variant_order(names):
            which = {"dataset": dataset, "variant": variant, "denoise": denoise}
            images = _shown_images(results, _OVERVIEW, **which)
            _add(arrays, f"{dataset}, {variant}", images)
    return Artefact(shown=sample_overview(results, denoise=denoise), arrays=arrays)


def sheet_artefacts(
    results: Results, *, snapshot: str, variants: Collection[str] | None = None
) -> list[Artefact]:
    """A sheet of uncurated samples for every variant, the same indices (Figs. 1, 7, 10, 25-30).

    Of those `variants` alone where they are named. While nothing has been sampled, the overview
    that says so.
    """
    sheets = []
    for dataset, variant, denoise in grid_keys(results):
        if variants is not None and variant not in variants:
            continue
        arrays: dict[str, np.ndarray] = {}
        which = {"dataset": dataset, "variant": variant, "denoise": denoise}
        _add(arrays, "samples", _shown_images(results, _SHEET, **which, snapshot=snapshot))
        picture = sample_grid(results, dataset, variant, denoise=denoise, snapshot=snapshot)
        sheets.append(Artefact(shown=picture, arrays=arrays))
    return sheets or [overview_artefact(results, denoise=True)]


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


def _shown_images(results: Results, count: int, **which: Any) -> np.ndarray | str:
    shown = shown_set(results, **which)
    return "no samples" if shown is None else read_images(shown.path, count)


def _add(arrays: dict[str, np.ndarray], name: str, images: np.ndarray | str) -> None:
    """Add images that are there; the picture itself says of others what is wrong with them."""
    if not isinstance(images, str):
        arrays[file_slug(name)] = np.asarray(images)
