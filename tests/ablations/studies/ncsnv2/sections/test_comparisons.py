"""Seeds and what they tell apart: recomputed from the distances, and against a known truth."""

from dataclasses import replace

import fake_results
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ablations.engine.frames import make_frame
from ablations.pipeline.variants import ALL_VARIANTS
from ablations.studies.ncsnv2.results import CELL_COLUMNS, DISTANCE_COLUMNS, empty_results
from ablations.studies.ncsnv2.sections.ablation import ablation_table
from ablations.studies.ncsnv2.sections.comparisons import (
    comparisons,
    effects_table,
    finding,
    seeds_table,
)


def made(distances, n_seeds=3, **more):
    """Results of rows with given final distances: (row, seed) -> distance; both denoise alike."""
    variants = {v.name: v for v in ALL_VARIANTS}
    cells, rows = [], []
    for (row, seed), distance in distances.items():
        base = variants[row.partition(", ")[0]]
        key = {"dataset": "digits", "variant": row, "seed": seed, "weights": "EMA"}
        techniques = ",".join(map(str, base.techniques))
        facts = {"base": base.name, "row": row.partition(", ")[2], "techniques": techniques}
        cells.append(key | facts | {"status": "done"})
        measured = {"purpose": "final", "n": 100, "n_reference": 500, "reference": "train"}
        measured |= {"iteration": 10, "feature_space": "digits-cnn", "label": "FD[digits-cnn]"}
        for denoise in (False, True):
            rows.append(key | measured | {"distance": distance, "denoise": denoise} | more)
    return replace(
        empty_results(fake_results.fake_run()),
        cells=make_frame(CELL_COLUMNS, cells),
        distances=make_frame(DISTANCE_COLUMNS, rows),
    )


THREE = {
    **{("NCSN", s): 50.0 + 9 * s for s in range(3)},
    **{("NCSN_5", s): 30.0 + 9 * s + 0.5 * (s - 1) for s in range(3)},
    **{("NCSNv2", s): 29.0 + 9 * s + 4.0 * (s - 1) for s in range(3)},
}


def test_rows_are_compared_over_their_own_seeds():
    raw = ablation_table(made(THREE)).raw
    row = raw[(raw["variant"] == "NCSN_5") & raw["denoise"].astype(bool)].iloc[0]
    # Seeds differ by 9 each; the pairs by 0.5 only.
    differences = np.array([-20.5, -20.0, -19.5])
    half = stats.t.ppf(0.975, 2) * differences.std(ddof=1) / np.sqrt(3)
    assert row["base"] == "NCSN" and row["n_pairs"] == 3
    assert row["difference"] == pytest.approx(-20.0)
    assert [row["difference_low"], row["difference_high"]] == pytest.approx(
        [-20 - half, -20 + half]
    )
    standing = dict(zip(raw["variant"], raw["standing"], strict=True))
    assert standing == {"NCSN": "", "NCSN_5": "as good", "NCSNv2": "best"}
    assert pd.isna(raw[raw["variant"] == "NCSN"].iloc[0]["difference"])


def test_only_equal_seeds_are_pairs_and_only_equal_measures_compared():
    short = {key: value for key, value in THREE.items() if key != ("NCSN_5", 1)}
    found = comparisons(made(short), "digits", denoise=True)
    apart = found.difference("NCSN", "NCSN_5")
    assert (apart.mean, apart.n) == (pytest.approx(-20.0), 2)
    results = made(THREE)
    other = results.distances.copy()
    other.loc[other["variant"] == "NCSN_5", "n"] = 50
    found = comparisons(replace(results, distances=other), "digits", denoise=True)
    assert list(found.by_row) == ["NCSN", "NCSNv2"]


def test_the_finding_says_what_seeds_tell_apart_and_what_not():
    assert finding(made(THREE)) == (
        "With 3 seeds on digits, NCSN_5 lowers the distance of NCSN by 20.00 [18.76, 21.24]; "
        "NCSNv2 lowers the distance of NCSN by 21.00 [11.06, 30.94]."
    )
    noisy = THREE | {("NCSN_5", s): (20.0, 60.0, 90.0)[s] for s in range(3)}
    assert "NCSN_5 cannot be told apart from NCSN" in finding(made(noisy))
    one = {key: value for key, value in THREE.items() if key[1] == 0}
    assert finding(made(one)) == (
        "With one seed on digits, NCSNv2 has the smallest distance, 25.00; seeds were not varied, "
        "so how much of a difference is chance of training is not known."
    )
    assert finding(empty_results(fake_results.fake_run())) == ""


def test_one_seed_has_the_interval_at_n_in_the_main_table(tmp_path):
    table = ablation_table(fake_results.complete(tmp_path))
    headings = [column.heading for column in table.columns]
    assert "95 % at n" in headings and "Against the first row" not in headings
    assert "Seeds were not varied" in table.caption
    row = table.raw[(table.raw["variant"] == "NCSNv2") & table.raw["denoise"].astype(bool)].iloc[0]
    assert row["interval_low"] < row["interval_high"]
    several = ablation_table(fake_results.complete(tmp_path, n_seeds=2))
    headings = [column.heading for column in several.columns]
    assert "Against the first row" in headings and "95 % at n" not in headings
    assert "Seeds were not varied" not in several.caption


def test_every_seed_has_its_row():
    raw = seeds_table(made(THREE)).raw
    denoised = raw[raw["denoise"]]
    found = dict(
        zip(
            zip(denoised["variant"], denoised["seed"], strict=True),
            denoised["distance"],
            strict=True,
        )
    )
    assert found == THREE


def factorial(rng, n_seeds, effects, spread):
    """Distances of all eight variants with known effects, a level of each seed, and noise."""
    distances = {}
    for seed in range(n_seeds):
        level = rng.normal(50, 10)
        for v in ALL_VARIANTS:
            signs = {"1,2,4": v.noise_scales, "3": v.conditioning, "5": v.ema}
            value = level + rng.normal(0, spread)
            for groups, effect in effects.items():
                sign = np.prod([1 if signs[g] else -1 for g in groups])
                value += sign * effect / 2
            distances[v.name, seed] = value
    return distances


EFFECTS = {("5",): -20.0, ("3",): 3.0, ("3", "5"): 5.0, ("1,2,4", "3", "5"): -1.0}


def test_effects_of_a_factorial_are_those_that_were_put_in():
    rng = np.random.default_rng(0)
    raw = effects_table(made(factorial(rng, 2, EFFECTS, spread=0.0))).raw
    raw = raw[raw["denoise"]].set_index("groups")
    assert len(raw) == 7
    for groups, effect in EFFECTS.items():
        assert raw.loc[" × ".join(f"({g})" for g in groups), "mean"] == pytest.approx(effect)
    assert raw.loc["(1,2,4)", "mean"] == pytest.approx(0.0, abs=1e-9)
    fewer = {k: v for k, v in factorial(rng, 2, {}, 1.0).items() if k[0] != "NCSN_3"}
    assert effects_table(made(fewer)) is None


def test_intervals_of_effects_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(1)
    held, n = 0, 150
    for _ in range(n):
        raw = effects_table(made(factorial(rng, 3, EFFECTS, spread=2.0))).raw
        row = raw[raw["denoise"]].set_index("groups").loc["(3) × (5)"]
        held += row["low"] <= 5.0 <= row["high"]
    # 95 %, and four standard errors of 150 trials.
    assert abs(held / n - 0.95) < 4 * np.sqrt(0.95 * 0.05 / n)
