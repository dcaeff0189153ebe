"""The sampler benchmark: what is planned, how it is wired, and what its table and words say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ablations.engine.stages import StageStore
from ablations.pipeline.data import DataFacts, data_facts
from ablations.reporting.artefacts import save_artefacts
from ablations.studies.ncsnv2 import benchmark
from ablations.studies.ncsnv2.benchmark import (
    EVALUATIONS,
    WAYS,
    Benchmark,
    Point,
    Way,
    ladder_for,
    run_benchmark,
)
from ablations.studies.ncsnv2.sections.benchmark import (
    MEASURES,
    benchmark_artefacts,
    benchmark_table,
)
from scorekit.data.store import Dataset, open_store
from scorekit.metrics.exact_score import ImageMixture, moments
from scorekit.metrics.features import extract_features
from scorekit.metrics.frechet import feature_statistics, frechet_distance
from scorekit.sampling.heun import Heun
from scorekit.sampling.registry import SAMPLERS, sampler_evaluations
from scorekit.techniques.step_size import (
    consistent_step_size,
    langevin_step_size,
    steady_state_step_size,
)

HEUN = next(way for way in WAYS if way.churn)
TITLES = [way.title for way in WAYS]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[DataFacts, Dataset]:
    root = tmp_path_factory.mktemp("data")
    facts = data_facts("digits", root, image_size=None, inception_weights=None)
    return facts, open_store(root / facts.store)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        *(("EVALUATIONS", (6, 12)), ("N_COMPONENTS", 20), ("N_SAMPLES", 70), ("N_DRAWS", 3)),
    ):
        monkeypatch.setattr(benchmark, name, value)


def test_every_sampler_is_in_it_and_every_rule_of_langevin_dynamics() -> None:
    assert {way.sampler for way in WAYS} == set(SAMPLERS)
    assert {w.rule for w in WAYS if w.sampler == "annealed"} == {
        "Technique 4",
        "steady state",
        "snr",
    }
    assert len(set(TITLES)) == len(WAYS)


@pytest.mark.parametrize("way", WAYS, ids=TITLES)
def test_ways_keep_to_equal_evaluations(way: Way) -> None:
    for dim, distance, own in ((64, 4.8, 21), (3072, 50.0, 219)):
        for budget in EVALUATIONS:
            ladder = ladder_for(way, budget, max_distance=distance, dim=dim)
            levels, steps = ladder.n_levels, ladder.n_steps_each
            assert sampler_evaluations(way.sampler, levels, steps) <= budget
            if way.sampler in ("annealed", "predictor_corrector"):
                assert levels <= own
                assert sampler_evaluations(way.sampler, levels, steps + 1) > budget
                assert levels == own or steps == 1
            else:
                assert sampler_evaluations(way.sampler, levels + 1, 1) > budget and steps == 1
            assert (ladder.sigma_begin, ladder.sigma_end) == (distance, 0.01)
            assert ladder.schedule == ("rho" if "ρ" in way.title else "geometric")


def test_each_rule_of_epsilon_reaches_its_ladder() -> None:
    rules = {
        "annealed, Technique 4": langevin_step_size,
        "annealed, steady state": steady_state_step_size,
        "consistent": consistent_step_size,
    }
    for way in WAYS:
        ladder = ladder_for(way, 250, max_distance=4.8, dim=64)
        expected = 0.0
        if way.title in rules:
            expected = rules[way.title](ladder.gamma, 0.01, ladder.n_steps_each)
        assert ladder.step_size == expected
        assert ladder.snr == (0.16 if way.title == "annealed, snr" else None)


def test_a_point_is_what_its_sampler_gives(digits: Any, small: None, tmp_path: Path) -> None:
    facts, dataset = digits
    found = run_benchmark(facts, dataset, StageStore(tmp_path))
    assert [(p.way.title, p.budget) for p in found.points] == [
        (title, budget) for title in TITLES for budget in (6, 12)
    ]
    (point,) = [p for p in found.points if p.way == HEUN and p.budget == 12]
    order = np.random.Generator(np.random.Philox(key=0)).permutation(len(dataset.train))[:20]
    images = np.asarray(dataset.train)[order]
    mixture = ImageMixture(images)
    sigmas = torch.from_numpy(np.geomspace(facts.max_distance, 0.01, 6)).float()
    sampler = Heun(
        mixture.score,
        sigmas,
        churn=40.0,
        takes_sigma=True,
        start="gaussian",
        start_mean=torch.from_numpy(images / 255).float().mean(0),
    )
    samples = sampler.sample(torch.arange(70), (1, 8, 8))
    drawn, off = samples.denoised, mixture.quality(samples.last).off
    assert point.measured is not None
    assert point.measured["variance"] == pytest.approx((off / 0.01) ** 2, rel=1e-6)
    quality = mixture.quality(drawn)
    assert point.evaluations == sampler.score_evaluations == 11
    for name in ("distance", "covered", "entropy"):
        assert point.measured[name] == pytest.approx(getattr(quality, name), rel=1e-6)
    pixels = (drawn.clamp(0, 1) * 255).round().byte()
    own = feature_statistics(extract_features(pixels, "digits-cnn"))
    to = moments(extract_features(images, "digits-cnn"))
    assert point.measured["components"] == pytest.approx(frechet_distance(own, to), rel=1e-5)
    to = feature_statistics(extract_features(np.asarray(dataset.test), "digits-cnn"))
    assert point.measured["held_out"] == pytest.approx(frechet_distance(own, to), rel=1e-5)
    # True samples are nearer than so few evaluations come.
    assert found.true is not None and len(found.true) == 3
    assert point.measured["distance"] > max(draw["distance"] for draw in found.true)
    assert len({draw["distance"] for draw in found.true}) == 3


def test_a_killed_run_goes_on_and_gives_the_same_files(
    digits: Any, small: None, tmp_path: Path
) -> None:
    whole, store = StageStore(tmp_path / "whole"), StageStore(tmp_path / "killed")

    def killed(fraction: float, text: str) -> None:
        if "snr, 12" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_benchmark(*digits, store, progress=killed)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "killed").rglob("result.json")}
    assert len(before) == 1 + 2 + 2 + 1  # true samples, and each point by itself
    half = run_benchmark(*digits, store, run=False)
    assert [p.measured is not None for p in half.points] == [True] * 5 + [False] * 15
    shares: list[float] = []
    again = run_benchmark(*digits, store, progress=lambda share, _: shares.append(share))
    assert shares == sorted(shares) and shares[-1] == 1
    assert all(p.stat().st_mtime_ns == at for p, at in before.items())
    files = []
    for name, made in (("a", again), ("b", run_benchmark(*digits, whole))):
        paths = save_artefacts(benchmark_artefacts(made), tmp_path / name)
        files.append([path.read_bytes() for path in paths])
    assert files[0] == files[1]
    half_table = benchmark_table(half)
    assert half_table.kinds == ("ours",) * 5 + ("pending",) * 15 + ("reference",)


def made_up(digits: Any, values: dict[str, tuple[float, ...]]) -> Benchmark:
    """A benchmark whose distances are given; the true samples' is 1 +- 0.1."""
    facts, _ = digits
    points = []
    for way in (w for w in WAYS if w.title in values):
        for budget, value in zip((25, 100), values[way.title], strict=True):
            measured = dict.fromkeys(MEASURES, value) | {"distance": None}
            ladder = ladder_for(way, budget, max_distance=4.8, dim=64)
            points.append(Point(way=way, budget=budget, ladder=ladder, measured=measured))
    true = [dict.fromkeys(MEASURES, v) | {"distance": None} for v in (0.9, 1.0, 1.1)]
    return Benchmark(facts=facts, seed=0, n_components=300, n_samples=600, points=points, true=true)


def test_the_words_follow_from_the_rows(digits: Any) -> None:
    values = {
        **{"annealed, snr": (1.0, 1.3), "consistent": (5.0, 1.19), "ancestral": (9.0, 1.21)},
        "Heun": (1.1, 1.2),
    }
    caption = benchmark_table(made_up(digits, values)).caption
    assert (
        "as the budget grows: consistent from 100 on; Heun from 25 on; never annealed, snr, "
        "ancestral." in caption
    )
    assert "600 samples are too few for 64 dimensions" in caption
    assert "300 training images of digits (of 1,500, drawn at random)" in caption
    assert "consistent: 1.4" in caption and "Technique 4:" not in caption
    half = replace(made_up(digits, values), true=None)
    assert "as the budget grows" not in benchmark_table(half).caption


def test_the_table_says_true_samples_last_and_has_no_column_of_nothing(digits: Any) -> None:
    table = benchmark_table(made_up(digits, {"Heun": (5.0, 1.0), "consistent": (3.0, 2.0)}))
    headings = [column.heading for column in table.columns]
    assert not any("pixels" in heading for heading in headings)
    at = headings.index("FD[digits-cnn] to the mixture ↓")
    assert [row[at] for row in table.rows] == ["3", "2", "5", "1", "1 ± 0.1"]
    assert "share of components met ↑" in headings
    assert list(table.raw["evaluations"].dropna()) == [25, 100, 25, 99]
    assert table.rows[-1][1] == "true samples, mean of 3 draws"
