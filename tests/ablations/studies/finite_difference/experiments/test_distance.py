"""Trials of distance: the ordinary stages within a trial, resumed where they were."""

from pathlib import Path

import pandas as pd
import pytest
from fake_results import finished_trials

from ablations.launch import main
from ablations.pipeline.measuring import Measuring
from ablations.studies.finite_difference.results import collect_trials
from ablations.studies.finite_difference.sections.comparisons import comparison_table

TINY = (
    *("distance_iterations=4", "distance_snapshots=2", "distance_batch_size=2"),
    *("distance_width=2", "distance_n_steps_each=1", "distance_samples=4"),
)


def launch(out, *more):
    flags = ["--grid", "finite-difference", "--budget", "quick", "--device", "cpu", "--seeds", "1"]
    places = ["--threads", "1", "--out", str(out), "--grid", "fd-distance"]
    return main([*flags, *places, *[f"--set={pair}" for pair in TINY], *more])


def test_a_killed_trial_goes_on_after_its_training(tmp_path, monkeypatch):
    out, only = tmp_path / "out", ("--only", "distance/dsm/*")

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Measuring, "distance", interrupted)
        assert launch(out, *only) == 130
    (trained,) = out.glob("stages/train/*/result.json")
    before = trained.stat().st_mtime_ns
    assert launch(out, *only) == 0
    assert trained.stat().st_mtime_ns == before
    (result,) = collect_trials(out).done("distance", objective="dsm").values()
    curve = result["curve"]
    assert curve["iteration"] == [2, 4]
    assert 0 < curve["seconds"][0] < curve["seconds"][1] == result["seconds"]
    assert all(distance > 0 for distance in curve["distance"])


@pytest.mark.slow
def test_objectives_are_compared_at_the_end_and_at_equal_time(tmp_path):
    out = tmp_path / "out"
    assert launch(out) == 0
    table = pd.read_csv(out / "report" / "tables" / "distance.csv")
    assert list(table["method"]) == ["DSM", "SSM-VR", "FD-SSM-VR"]
    fastest = table["seconds"].idxmin()
    assert table["equal_time"][fastest] == table["distance"][fastest]
    groups = set(pd.read_csv(out / "report" / "tables" / "comparisons_distance.csv")["group"])
    assert "FD-SSM-VR against SSM-VR" in groups
    # The same noise, images and first weights: the objectives alone differ.
    train = {path.parent for path in out.glob("stages/train/*/result.json")}
    assert len(train) == 3


def finished(*curves):
    """Results of (objective, seed, seconds, distances), as if trained."""
    trials = []
    for objective, seed, seconds, distances in curves:
        curve = {"seconds": seconds, "distance": distances}
        settings = {"objective": objective, "seed": seed}
        trials.append((settings, {"seconds": seconds[-1], "curve": curve}, Path()))
    return finished_trials("distance", trials)


def at_equal_time(results):
    table = comparison_table(results, "distance")
    rows = table.raw.assign(shown=table.display["Second against first"])
    return rows[rows["quantity"] == "distance at equal time"].set_index("group")


def test_equal_time_is_the_pair_s_own():
    results = finished(
        ("dsm", 0, [1, 2], [60.0, 40.0]),
        ("ssm_vr", 0, [4, 8], [80.0, 50.0]),
        ("fd_ssm_vr", 0, [2, 6], [90.0, 46.0]),
        ("fd_ssm_vr", 1, [2, 6], [90.0, 46.0]),
    )
    rows = at_equal_time(results)
    pair = rows.loc["FD-SSM-VR against SSM-VR"]
    assert (pair["first_value"], pair["second_value"], pair["n"]) == (65.0, 46.0, 1)
    pair = rows.loc["FD-SSM-VR against DSM"]
    assert (pair["first_value"], pair["second_value"], pair["n"]) == (40.0, 90.0, 1)


def test_a_seed_without_a_snapshot_by_then_is_no_pair_and_none_is_a_dash():
    results = finished(
        ("dsm", 0, [1, 2], [60.0, 40.0]),
        ("dsm", 1, [1, 5], [60.0, 40.0]),
        ("ssm_vr", 0, [4, 8], [80.0, 50.0]),
        ("ssm_vr", 1, [4, 8], [80.0, 50.0]),
        ("fd_ssm_vr", 0, [3, 6], [90.0, 46.0]),
    )
    rows = at_equal_time(results)
    assert rows.loc["SSM-VR against DSM", "n"] == 1
    assert rows.loc["SSM-VR against DSM", "second_value"] == 72.5
    none = rows.loc["FD-SSM-VR against DSM"]
    assert none["n"] == 0 and none["shown"] == "—"
    assert rows.loc["FD-SSM-VR against SSM-VR", "n"] == 1


def test_a_network_that_diverges_is_a_row(tmp_path):
    out = tmp_path / "out"
    only = ("--only", "distance/fd_ssm_vr/*")
    assert launch(out, *only, "--set", "distance_learning_rate=1e30") == 1
    table = pd.read_csv(out / "report" / "tables" / "distance.csv").set_index("method")
    assert table["status"]["FD-SSM-VR"].startswith("diverged: training diverged")
    assert table["kind"]["FD-SSM-VR"] == "problem"
    assert table["status"]["DSM"] == "planned"
