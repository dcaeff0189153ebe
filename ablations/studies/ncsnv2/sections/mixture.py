"""Fig. 2: what the noise scales alone do to the diversity of samples."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ablations.reporting.artefacts import Artefact
from ablations.reporting.image_grids import Panel, draw_panels, enlargement, tile
from ablations.reporting.pictures import Picture
from ablations.reporting.wording import file_slug, number
from ablations.studies.ncsnv2.mixture import (
    N_SAMPLES,
    Arm,
    Mixture,
    is_cifar10,
    mean_pairwise_distance,
)
from scorekit.data.pixels import to_uint8

#: Average pairwise distances in the paper, on CIFAR-10 (Sec. 3.1), by panel.
PAPER_DISTANCES = {"a": 17.78, "b": 10.12, "c": 18.65}
_COLUMNS = 10


def mixture_artefact(mixture: Mixture) -> Artefact:
    """Grids of the data and of each arm's samples, with the mean pairwise distance of each."""
    facts, components = mixture.facts, mixture.components
    shown = components[:N_SAMPLES]
    factor = enlargement(_COLUMNS * facts.image_size, 330)
    quotes = PAPER_DISTANCES if is_cifar10(facts) else {}
    shared = {"dataset": facts.name, "n_components": len(components), "seed": mixture.seed}
    panels: list[Panel] = []
    rows: list[dict[str, object]] = []
    arrays: dict[str, np.ndarray] = {}

    def add(letter: str, title: str, images: np.ndarray, distance: float) -> None:
        quote = f" (paper {quotes[letter]})" if letter in quotes else ""
        panels.append(
            Panel(
                heading=f"({letter}) {title}",
                note=f"mean pairwise distance {distance:.2f}{quote}",
                image=tile(images, _COLUMNS, factor=factor),
            )
        )
        arrays[letter] = images
        row = shared | {"panel": letter, "what": title, "n": len(images)}
        rows.append(row | {"mean_pairwise_distance": distance, "paper": quotes.get(letter)})

    distance = mean_pairwise_distance(shown)
    add("a", f"{len(shown)} test images", shown.numpy(), distance)
    everything = mean_pairwise_distance(components)
    for arm, samples in zip(mixture.arms, mixture.samples, strict=True):
        if samples is None:
            heading, size = f"({arm.letter}) {arm.title}", (panels[0].width_px, panels[0].height_px)
            panels.append(Panel(heading=heading, absent="not sampled yet", size_px=size))
            rows.append(shared | {"panel": arm.letter, "what": arm.title, "n": 0})
        else:
            distance = mean_pairwise_distance(samples)
            add(arm.letter, arm.title, to_uint8(samples).numpy(), distance)
        ladder = arm.ladder
        rows[-1] |= {"sigma_1": ladder.sigma_begin, "L": ladder.n_levels}
        rows[-1] |= {"T": ladder.n_steps_each, "epsilon": ladder.step_size}
    row = shared | {"panel": "", "what": "all components", "n": len(components)}
    rows.append(row | {"mean_pairwise_distance": everything})
    name = f"mixture_{file_slug(facts.name)}"
    return Artefact(
        shown=Picture(
            name=name,
            title=f"Annealed Langevin dynamics on a mixture of Gaussians: {facts.name}",
            caption=_caption(mixture, everything),
            alt="Grids of test images and of samples from a mixture centred at them, by σ₁",
            figure=draw_panels([panels[:2], panels[2:]], f"{facts.name}, exact score"),
        ),
        frames={name: pd.DataFrame(rows)},
        arrays=arrays,
    )


def _settings(arm: Arm) -> str:
    return (
        f"({arm.letter}) σ₁ = {number(arm.ladder.sigma_begin, 4)}, L = {arm.ladder.n_levels}, "
        f"T = {arm.ladder.n_steps_each}, ε = {number(arm.ladder.step_size)}"
    )


def _caption(mixture: Mixture, everything: float) -> str:
    facts, count = mixture.facts, len(mixture.components)
    which = "all" if count == facts.n_test else f"of {facts.n_test:,}, drawn at random"
    source, quote = f"Techniques 1, 2 (C = 0.5) and 4 on {facts.n_train:,} training images", ""
    if is_cifar10(facts):
        source = "Table 4"
        quote = " In brackets the paper's figures (Sec. 3.1; which images, is not stated)."
    return (
        f"{N_SAMPLES} samples of annealed Langevin dynamics, without the denoising step, from a "
        f"mixture of Gaussians centred at {count:,} test images of {facts.name} ({which}), with "
        "the exact score, begun at uniform noise in [0, 1]; pixels are clamped to [0, 1] for "
        f"display only. {'; '.join(map(_settings, mixture.arms))}; σ_L = 0.01 throughout. (c) is "
        f"by {source}; (d) differs from it in σ₁ alone. Distances are Euclidean, in units of "
        "pixels in [0, 1], and averaged over all pairs of the images shown; over all "
        f"{count:,} components the average is {everything:.2f}.{quote} Seed {mixture.seed}; "
        "nothing is trained, so there is no budget."
    )
