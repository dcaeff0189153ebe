"""Annealed Langevin dynamics with the exact score, where only the noise scales differ.

A mixture of Gaussians centred at the test images has a score in closed form, so what the samples
lack in diversity is not the fault of training (Song & Ermon 2020, Sec. 3.1 and Fig. 2).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ablations.engine.stages import Stage, StageStore
from ablations.pipeline.data import DataFacts
from ablations.studies.ncsnv2 import quoted
from kernels.mixture_score import mixture_score
from scorekit.checkpoints.tensors import find_tensors, save_tensors
from scorekit.data.store import Dataset
from scorekit.files import load_array, save_array
from scorekit.sampling.langevin import AnnealedLangevin
from scorekit.techniques.ladder import Ladder
from scorekit.techniques.table_4 import NCSN_LADDER, published, published_evaluations

N_SAMPLES = 100
#: The paper's test set; larger ones are drawn from.
MAX_COMPONENTS = 10_000
_CHECKPOINT_EVERY_S = 20.0

Progress = Callable[[float, str], None]


def is_cifar10(facts: DataFacts) -> bool:
    """Return whether the data set is CIFAR-10, by its name or that of its folder."""
    return quoted.family(facts.name.removeprefix("imagefolder:")) == "CIFAR-10"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to sample the mixture: the ladder that Algorithm 1 descends."""

    letter: str
    title: str
    ladder: Ladder


def arms(facts: DataFacts) -> list[Arm]:
    """Return NCSN's noise scales (b), Technique 1's (c), and those of c begun at sigma_1 = 1 (d).

    On CIFAR-10 (c) is Table 4's row, elsewhere what Techniques 1, 2 (C = 0.5) and 4 give.
    """
    if is_cifar10(facts):
        techniques = published("NCSNv2", "cifar10").ladder
    else:
        evaluations = published_evaluations(facts.image_size)
        techniques = Ladder.by_techniques(
            facts.max_distance, facts.dim, score_evaluations=evaluations
        )
    begun_at_1 = replace(techniques, sigma_begin=NCSN_LADDER.sigma_begin)
    return [
        Arm(letter="b", title="σ₁ = 1, as NCSN", ladder=NCSN_LADDER),
        Arm(letter="c", title="Techniques 1, 2, 4", ladder=techniques),
        Arm(letter="d", title="(c) but σ₁ = 1", ladder=begun_at_1),
    ]


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """What was drawn: `components` are uint8 (N, C, H, W), the first of them the figure's data.

    `samples` has of every arm float32 images (N_SAMPLES, C, H, W), not clamped, or None where it
    has not been run.
    """

    facts: DataFacts
    seed: int
    components: Tensor
    arms: list[Arm]
    samples: list[Tensor | None]


def sample_mixture(
    facts: DataFacts,
    dataset: Dataset,
    store: StageStore,
    *,
    device: str = "cpu",
    seed: int = 0,
    run: bool = True,
    progress: Progress = lambda fraction, text: None,
) -> Mixture:
    """Sample the mixture of a data set's test images with every arm.

    Samples that the store has are taken from it; others are drawn, or left out where `run` is
    False. A killed run continues from its last checkpoint with the same result.
    """
    index = component_index(len(dataset.test), seed)
    components = torch.from_numpy(np.asarray(dataset.test)[index])
    planned = arms(facts)
    work = [arm.ladder.n_steps for arm in planned]
    samples: list[Tensor | None] = []
    for place, arm in enumerate(planned):
        stage = _stage(arm.ladder, facts, len(index), seed)

        def report(fraction: float, place: int = place, title: str = arm.title) -> None:
            done = (sum(work[:place]) + work[place] * fraction) / sum(work)
            progress(done, f"{facts.name}: {title}")

        def execute(directory: Path, ladder: Ladder = arm.ladder, report: Any = report) -> Any:
            return _sample(ladder, components, directory, device=device, seed=seed, report=report)

        result = store.run(stage, execute) if run else store.result(stage)
        folder = store.directory(stage)
        if result is None:
            samples.append(None)
            continue
        # Only now: a kill before the result was written would have lost it.
        (folder / "trajectory.pt").unlink(missing_ok=True)
        samples.append(torch.from_numpy(load_array(folder / "samples.npy")))
    return Mixture(facts=facts, seed=seed, components=components, arms=planned, samples=samples)


def component_index(n_test: int, seed: int) -> np.ndarray:
    """Return which test images are the mixture's, int64, in an order drawn with `seed`.

    All of them up to MAX_COMPONENTS; the first N_SAMPLES are the figure's data.
    """
    order = np.random.Generator(np.random.Philox(key=seed)).permutation(n_test)
    return order[:MAX_COMPONENTS]


def mean_pairwise_distance(images: Tensor, *, block_size: int = 1024) -> float:
    """Return the mean Euclidean distance over all pairs of different images.

    `images` is (N, ...), N >= 2, uint8 (taken as value / 255) or floating point; the sums are
    float64. Memory is O(block_size (block_size + D)). Raises ValueError for fewer than two.
    """
    if len(images) < 2:
        raise ValueError(f"a mean pairwise distance needs at least 2 images, got {len(images)}")
    rows = images.flatten(1)
    scale = 255.0 if rows.dtype == torch.uint8 else 1.0
    blocks = rows.split(block_size)
    total = 0.0
    for i, left in enumerate(blocks):
        a = left.double()
        for j, right in enumerate(blocks[i:], start=i):
            b = right.double()
            squared = torch.addmm(b.square().sum(1)[None, :], a, b.T, alpha=-2)
            squared += a.square().sum(1)[:, None]
            if i == j:
                squared.fill_diagonal_(0)
            # Within a block every pair is there twice.
            total += float(squared.clamp_(min=0).sqrt_().sum()) / (2 if i == j else 1)
    return total / scale / (len(rows) * (len(rows) - 1) / 2)


def _stage(ladder: Ladder, facts: DataFacts, n_components: int, seed: int) -> Stage:
    return Stage(
        "mixture",
        {
            "data": facts.fingerprint,
            "split": "test",
            "n_components": n_components,
            "n_samples": N_SAMPLES,
            "sigma_1": ladder.sigma_begin,
            "sigma_end": ladder.sigma_end,
            "n_levels": ladder.n_levels,
            "n_steps_each": ladder.n_steps_each,
            "step_size": ladder.step_size,
            "seed": seed,
        },
        code=("ablations.studies.ncsnv2.mixture",),
    )


def _sample(
    ladder: Ladder,
    components: Tensor,
    directory: Path,
    *,
    device: str,
    seed: int,
    report: Callable[[float], None],
) -> tuple[dict[str, Any], list[Path]]:
    """Run the trajectories of all samples at once, from the last checkpoint where there is one."""
    sigmas = ladder.sigmas.to(device)
    # uint8 is converted block by block: no slower than float32 here, in a quarter of the memory.
    centres = components.to(device)
    # Eager: compiling takes half a minute on a CPU and saves nothing, since the time is spent in
    # two matrix products.
    sampler = AnnealedLangevin.along(
        lambda x, level: mixture_score(x, centres, sigmas[level]), ladder, device=device, seed=seed
    )
    index = torch.arange(N_SAMPLES, device=device)
    checkpoint = directory / "trajectory.pt"
    began_at = find_tensors(checkpoint, keys=("x", "step", "seconds"))
    x = sampler.initial(index, tuple(components.shape[1:]))
    state = sampler.start(x if began_at is None else began_at["x"].to(device), index)
    first = 0 if began_at is None else int(began_at["step"])
    spent_before = 0.0 if began_at is None else float(began_at["seconds"])
    state.step.fill_(first)
    began = saved = time.monotonic()
    n_steps = ladder.n_steps
    with torch.no_grad():
        for step in range(first, n_steps):
            state.advance()
            if (now := time.monotonic()) - saved > _CHECKPOINT_EVERY_S:
                saved = now
                seconds = spent_before + now - began
                here = {"x": state.x.cpu(), "step": step + 1, "seconds": seconds}
                save_tensors(checkpoint, here)
            report((step + 1) / n_steps)
    samples = state.x.cpu()
    path = save_array(directory / "samples.npy", samples.numpy())
    return {"sampling_s": spent_before + time.monotonic() - began}, [path]
