"""Fig. 2: the exact score, the distances, and a run that can be killed at any instant."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist

from ablations.engine.stages import StageStore
from ablations.pipeline.data import DataFacts
from ablations.reporting.artefacts import save_artefacts
from ablations.studies.ncsnv2 import mixture
from ablations.studies.ncsnv2.mixture import (
    Mixture,
    arms,
    component_index,
    mean_pairwise_distance,
    sample_mixture,
)
from ablations.studies.ncsnv2.sections.mixture import PAPER_DISTANCES, mixture_artefact
from scorekit.data.store import Dataset
from scorekit.sampling.langevin import AnnealedLangevin
from scorekit.techniques.noise_scales import geometric_sigmas

CORNERS = (10, 245)  # grey levels of the two test images


def two_points(name: str = "points") -> tuple[DataFacts, Dataset]:
    """A data set whose test images are one dark and one bright image of 1 x 4 x 4 pixels."""
    test = np.array(CORNERS, np.uint8)[:, None, None, None] * np.ones((1, 1, 4, 4), np.uint8)
    facts = DataFacts(
        name=name,
        store="points",
        fingerprint="f" * 64,
        channels=1,
        image_size=4,
        n_train=2,
        n_test=2,
        flip=False,
        max_distance=4 * (CORNERS[1] - CORNERS[0]) / 255,
        extractor="digits-cnn",
        extractor_fingerprint="",
    )
    return facts, Dataset(name=name, train=test, test=test, flip=False, fingerprint="f" * 64)


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> tuple[StageStore, Mixture]:
    """The two points sampled with every arm, and where the samples are."""
    store = StageStore(tmp_path_factory.mktemp("sampled"))
    return store, sample_mixture(*two_points(), store)


def score_of_two_points(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """grad log p by the formula: the responsibility of the bright point is a logistic function."""
    dark, bright = (level / 255 for level in CORNERS)
    flat = x.flatten(1).double()
    to_dark, to_bright = ((flat - point).square().sum(1) for point in (dark, bright))
    share = torch.sigmoid((to_dark - to_bright) / (2 * sigma**2))[:, None]
    score = (share * bright + (1 - share) * dark - flat) / sigma**2
    return score.float().reshape(x.shape)


def test_samples_are_those_of_the_exact_score(sampled: tuple[StageStore, Mixture]) -> None:
    _, drawn = sampled
    ladder, samples = drawn.arms[0].ladder, drawn.samples[0]
    assert samples is not None
    assert (ladder.sigma_begin, ladder.n_levels, ladder.n_steps_each) == (1, 10, 100)
    assert ladder.step_size == 2e-5
    sigmas = geometric_sigmas(1.0, 0.01, 10)
    sampler = AnnealedLangevin(
        lambda x, level: score_of_two_points(x, float(sigmas[level[0]])),
        sigmas,
        step_size=2e-5,
        n_steps_each=100,
    )
    expected = sampler.sample(torch.arange(100), (1, 4, 4)).last
    assert torch.allclose(samples, expected, atol=1e-3)
    # At sigma = 0.01 every sample is next to one of the two points.
    distances = [(samples.flatten(1) - level / 255).norm(dim=1) for level in CORNERS]
    assert torch.stack(distances).amin(0).max() < 0.01 * 2 * math.sqrt(16)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_the_mean_pairwise_distance_is_that_of_all_pairs(dtype: type) -> None:
    rng = np.random.default_rng(0)
    images = (255 * rng.random((23, 3, 4, 4))).astype(dtype)
    expected = pdist(images.reshape(23, -1).astype(np.float64)).mean()
    scale = 255 if dtype is np.uint8 else 1
    for block_size in (5, 23, 1024):
        value = mean_pairwise_distance(torch.from_numpy(images), block_size=block_size)
        assert value == pytest.approx(expected / scale, rel=1e-12)
    with pytest.raises(ValueError, match="at least 2"):
        mean_pairwise_distance(torch.from_numpy(images[:1]))


def test_equal_images_have_no_distance() -> None:
    images = torch.rand(1, 3, 4, 4).expand(5, 3, 4, 4)
    assert mean_pairwise_distance(images) == pytest.approx(0, abs=1e-6)


def test_cifar10_has_the_papers_ladder_and_others_their_own() -> None:
    for name in ("cifar10", "cifar10-jpeg", "imagefolder:cifar10-jpeg"):
        _, techniques, control = (arm.ladder for arm in arms(two_points(name)[0]))
        assert (techniques.sigma_begin, techniques.n_levels) == (50, 232)
        assert (techniques.n_steps_each, techniques.step_size) == (5, 6.2e-6)
        assert (control.sigma_begin, control.n_levels, control.step_size) == (1, 232, 6.2e-6)
    facts, _ = two_points()
    own = arms(facts)[1].ladder
    assert own.sigma_begin == facts.max_distance
    assert own.n_steps_each == 232 * 5 // own.n_levels  # Table 4's evaluations at the nearest size


def test_components_are_all_test_images_up_to_the_papers_number() -> None:
    assert sorted(component_index(300, seed=0)) == list(range(300))
    many = component_index(20_000, seed=0)
    assert len(set(many)) == 10_000 and many.max() > 15_000
    assert (component_index(300, 0) == component_index(300, 0)).all()
    assert (component_index(300, 0) != component_index(300, 1)).any()


def test_a_killed_run_continues_to_the_same_samples(
    sampled: tuple[StageStore, Mixture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts, dataset = two_points()
    _, expected = sampled
    seen: list[float] = []
    kills = (700, 1040)

    def killed(fraction: float, text: str) -> None:
        seen.append(fraction)
        saved_next = len(seen) + 1 in kills
        monkeypatch.setattr(mixture, "_CHECKPOINT_EVERY_S", 0.0 if saved_next else math.inf)
        if len(seen) in kills:
            raise KeyboardInterrupt

    store = StageStore(tmp_path / "killed")
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            sample_mixture(facts, dataset, store, progress=killed)
    again = sample_mixture(facts, dataset, store, progress=killed)
    for one, other in zip(expected.samples, again.samples, strict=True):
        assert one is not None and other is not None and torch.equal(one, other)
    # Begun again rather than continued, the shares would fall.
    assert seen == sorted(seen) and seen[-1] == pytest.approx(1.0)
    assert not list((tmp_path / "killed").rglob("trajectory.pt"))


def test_a_finished_run_is_not_run_again(
    sampled: tuple[StageStore, Mixture], tmp_path: Path
) -> None:
    facts, dataset = two_points()
    absent = sample_mixture(facts, dataset, StageStore(tmp_path / "stages"), run=False)
    figure = mixture_artefact(absent).shown.figure
    words = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert words == ["not sampled yet"] * 3
    store, _ = sampled

    def never(fraction: float, text: str) -> None:
        raise AssertionError("sampled again")

    drawn = sample_mixture(facts, dataset, store, progress=never)
    files = [save_artefacts([mixture_artefact(drawn)], tmp_path / name) for name in ("a", "b")]
    assert [p.read_bytes() for p in files[0]] == [p.read_bytes() for p in files[1]]


def test_the_papers_distances_stand_beside_cifar10_alone(tmp_path: Path) -> None:
    facts, dataset = two_points("imagefolder:cifar10-jpeg")
    artefact = mixture_artefact(sample_mixture(facts, dataset, StageStore(tmp_path), run=False))
    (frame,) = artefact.frames.values()
    assert frame.loc[0, "mean_pairwise_distance"] == pytest.approx(facts.max_distance)
    assert frame.loc[0, "paper"] == PAPER_DISTANCES["a"] == 17.78
    assert "Table 4" in artefact.shown.caption
    artefact = mixture_artefact(sample_mixture(*two_points(), StageStore(tmp_path), run=False))
    (frame,) = artefact.frames.values()
    assert frame["paper"].isna().all()
    assert "paper" not in artefact.shown.caption
