"""Interpolations and nearest neighbours of a grid, as the paper shows them (App. C.5)."""

from __future__ import annotations

import numpy as np

from ablations.artefacts import Artefact
from ablations.generalisation_figures import (
    interpolation_picture,
    memorisation_summary,
    neighbour_distances_picture,
    neighbour_picture,
)
from ablations.presentation import number
from ablations.results import NeighbourSet, Results, SampleSet
from ablations.sample_sets import snapshot_words

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
        images = np.load(found.path, allow_pickle=False)
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
    train = np.load(results.real[found.dataset], mmap_mode="r", allow_pickle=False)
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
    with np.load(found.path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    for kind, (what, paths) in sources.items():
        index = arrays[f"{kind}_train_index"][:_SHOWN]
        files = [np.load(path, mmap_mode="r", allow_pickle=False) for path in paths]
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
