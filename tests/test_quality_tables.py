"""The tables of other metrics and of distance against score evaluations."""

from dataclasses import replace

import fake_results
import pytest

from ablations.quality_tables import quality_table, steps_table
from ablations.results import CELL_COLUMNS, DISTANCE_COLUMNS, TIMING_COLUMNS, make_frame


def test_every_metric_stands_with_its_feature_space_and_spread(tmp_path):
    table = quality_table(fake_results.complete(tmp_path))
    assert len(table.raw) == 8
    row = table.display[
        (table.display["Variant"] == "NCSNv2") & (table.display["Denoised"] == "yes")
    ].iloc[0]
    assert row["Inception score ↑"] == "IS[digits-cnn] 7.3 ± 0.2"
    assert row["KID ↓"] == "KID[digits-cnn] 0.017 ± 0.001"
    assert row["Distance at n ↓"] == "FD[digits-cnn] 17 [16, 18.2]"
    assert row["At infinite n"] == "FD[digits-cnn] 15 ± 0.12"
    assert (row["n"], row["Reference"]) == ("1,000", "1,437 train")
    assert table.raw["IS_mean"].notna().all()


def test_seeds_are_averaged_with_their_spread(tmp_path):
    results = fake_results.complete(tmp_path, n_seeds=2)
    qualities = results.qualities.copy()
    chosen = (qualities["metric"] == "KID") & (qualities["variant"] == "NCSNv2")
    qualities.loc[chosen & (qualities["seed"] == 1), "value"] += 0.002
    row = quality_table(replace(results, qualities=qualities)).raw.iloc[-1]
    assert row["n_seeds"] == 2
    assert row["KID_mean"] == pytest.approx(0.018)
    assert row["KID_std"] == pytest.approx(0.002 / 2**0.5)


def test_a_metric_that_could_not_be_taken_says_why(tmp_path):
    results = fake_results.complete(tmp_path)
    qualities = results.qualities.copy()
    inception = qualities["metric"] == "IS"
    qualities.loc[inception, ["value", "std"]] = float("nan")
    qualities.loc[inception, "note"] = "logits: 6 rows; at least 10 are right"
    table = quality_table(replace(results, qualities=qualities))
    assert set(table.display["Inception score ↑"]) == {"—"}
    assert set(table.display["Note"]) == {"logits: 6 rows; at least 10 are right"}


def stepped(dataset):
    """NCSNv2 sampled in three ways."""
    rows = {"NCSNv2, 25×1": (26, 46.0), "NCSNv2, 100×1": (101, 17.0), "NCSNv2": (1161, 12.0)}
    base = {"dataset": dataset, "seed": 0}
    final = {"weights": "EMA", "denoise": True, "iteration": 5000, "purpose": "final", "n": 1000}
    final |= {"label": "FD[x]", "feature_space": "x", "n_reference": 1437, "reference": "train"}
    return {
        "cells": make_frame(
            CELL_COLUMNS,
            [base | {"variant": v, "slug": v, "weights": "EMA", "status": "done"} for v in rows],
        ),
        "distances": make_frame(
            DISTANCE_COLUMNS,
            [base | final | {"variant": v, "distance": d} for v, (_, d) in rows.items()],
        ),
        "timings": make_frame(
            TIMING_COLUMNS,
            [
                base | {"variant": v, "source": "this run", "score_evaluations_per_sample": n}
                for v, (n, _) in rows.items()
            ],
        ),
    }


def test_distance_against_score_evaluations(tmp_path):
    results = replace(fake_results.complete(tmp_path), **stepped("digits"))
    table = steps_table(results)
    assert table.raw["variant"].tolist() == ["NCSNv2", "NCSNv2, 25×1", "NCSNv2, 100×1"]
    assert table.raw["score_evaluations"].tolist() == [1161, 26, 101]
    assert set(table.kinds) == {"ours"}


def test_published_figures_stand_beside_on_their_own_data_set_only(tmp_path):
    run = fake_results.fake_run(datasets=["cifar10-jpeg"])
    results = replace(fake_results.complete(tmp_path), run=run, **stepped("cifar10-jpeg"))
    raw = steps_table(results).raw
    published = raw[raw["source"] == "published"]
    assert published["distance_mean"].tolist() == [46.8, 17.2, 16.0, 12.8, 12.5]
    assert published["score_evaluations"].tolist() == [26, 101, 233, 697, 1161]
    assert set(published["kind"]) == {"paper"}


def test_a_grid_that_samples_in_one_way_has_no_such_table(tmp_path):
    assert steps_table(fake_results.complete(tmp_path)) is None
