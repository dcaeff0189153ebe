"""Finding samples: by variant and snapshot, and which snapshot stands for a variant."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ablations.studies.ncsnv2.results import Results, SampleSet
from scorekit.files import CorruptFile, load_array


def read_images(path: Path, count: int | None = None) -> np.ndarray | str:
    """The first `count` images of a file, uint8 (N, C, H, W), memory-mapped.

    One line that says what is wrong where it cannot be used.
    """
    try:
        images = load_array(path, mapped=True)
    except (OSError, CorruptFile) as error:
        return f"cannot read {path.name}: {type(error).__name__}"
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[1] not in (1, 3):
        return f"{path.name}: {images.dtype}, shape {images.shape}; not (N, 1 or 3, H, W) uint8"
    return images[:count]


def sets_of(
    results: Results, *, dataset: str, variant: str, denoise: bool, seed: int | None = None
) -> list[SampleSet]:
    """The sample sets of a variant, each snapshot of each seed once, by seed and iteration."""
    found = {
        (s.seed, s.iteration): s
        for s in results.samples
        if (s.dataset, s.variant, s.denoise) == (dataset, variant, denoise)
        and seed in (None, s.seed)
    }
    return [found[key] for key in sorted(found)]


def shown_set(
    results: Results, *, dataset: str, variant: str, denoise: bool, snapshot: str = "selected"
) -> SampleSet | None:
    """The set that stands for a variant, of the first seed: "selected", or the "last" iteration's.

    None where it has not been sampled yet.
    """
    sets = sets_of(results, dataset=dataset, variant=variant, denoise=denoise)
    if snapshot == "last":
        return next((s for s in sets if s.last), None)
    return selected_set(results, sets)


def snapshot_words(snapshot: str) -> str:
    """How a caption names the snapshot that it is of."""
    return {"last": "the last iteration", "selected": "the snapshot selected by its distance"}[
        snapshot
    ]


def selected_set(results: Results, sets: Iterable[SampleSet]) -> SampleSet | None:
    """The set of the first seed's selected snapshot, else of its last; None where there is none."""
    final = results.distances[results.distances["purpose"] == "final"]
    keys = ("dataset", "variant", "denoise", "seed", "weights", "iteration")
    chosen = set(final[list(keys)].itertuples(index=False, name=None))

    def order(s: SampleSet) -> tuple[int, bool, int]:
        return (s.seed, tuple(getattr(s, key) for key in keys) not in chosen, -s.iteration)

    return min(sets, key=order, default=None)
