"""The grid finite-difference as a user meets it: every part, tiny; interruptions and bad input."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from places import ROOT
from resolved import facts
from scipy import stats
from tiny_trials import command, wine

from ablations import report
from ablations.launch import main
from ablations.reporting.paired import (
    comparison,
    mean_and_spread,
    paired_difference,
    paired_ratio,
)
from ablations.studies.finite_difference.budgets import BUDGETS, Effort
from ablations.studies.finite_difference.experiments import cost
from ablations.studies.finite_difference.experiments import toy as experiments_toy
from ablations.studies.finite_difference.experiments.cost import peak_bytes
from ablations.studies.finite_difference.experiments.learning import Learner, evaluation_iterations
from ablations.studies.finite_difference.jobs import trial_jobs
from ablations.studies.finite_difference.results import collect_trials
from ablations.studies.finite_difference.sections.curves import at_equal_time
from ablations.studies.finite_difference.trials import PARTS, build_trials
from scorekit.models.energy import MLPEnergy
from scorekit.runtime.compilation import compiled


def run(out: Path, *flags: str, **settings: object) -> int:
    return main(command(out, *flags, **settings))


@pytest.fixture(scope="module")
def tiny_run(finished_trials, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finite-difference")
    shutil.copytree(finished_trials, folder, dirs_exist_ok=True)
    return folder / "out"


def table(out: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(out / "report" / "tables" / f"{name}.csv", keep_default_na=False)


@pytest.mark.slow
def test_every_part_ends_in_tables_and_pictures(tiny_run):
    page = (tiny_run / "report" / "index.html").read_text()
    for anchor in PARTS:
        assert f'<h2 id="{anchor}">' in page
    pictures = {path.stem for path in (tiny_run / "report" / "figures").glob("*.png")}
    expected = {"toy_fields", "loss_over_time", "dkef_epsilon", "deep_epsilon", "cost"}
    expected |= {"distance_over_time", "flow_over_time", "implicit_samples"}
    assert pictures == expected
    assert set(table(tiny_run, "toy")["seed"]) == {0, 1}
    methods = table(tiny_run, "loss")["method"]
    assert set(methods) == {"DSM", "FD-DSM", "SSM", "FD-SSM"} and len(methods) == 8
    assert set(table(tiny_run, "gradient")["kind"]) == {"ours"}


@pytest.mark.slow
def test_the_sources_numbers_stand_marked_and_absent_data_is_said(tiny_run):
    dkef = table(tiny_run, "dkef")
    quoted = dkef[dkef["kind"] == "paper"]
    assert list(quoted["nll_broad"].astype(float)) == [14.17, 13.51, 14.03, 14.00]
    assert quoted["status"].str.startswith("quoted").all()
    skipped = dkef[dkef["status"].str.startswith("skipped")]
    assert set(skipped["group"]) == {"Parkinsons", "WhiteWine"}
    assert skipped["status"].str.contains("UCI Machine Learning Repository").all()
    ours = dkef[dkef["kind"] == "ours"]
    assert list(ours["method"]) == ["FD-SSM, ε = 0.1", "FD-SSM, ε = 0.01", "SSM"]
    assert (ours["ess_broad_min"].astype(float) >= 1).all()
    memory = table(tiny_run, "cost").query("kind == 'paper'")["peak_bytes"].astype(float)
    assert list(memory) == [6.3e9, 5.4e9]


@pytest.mark.slow
def test_cost_has_every_objective_and_way_against_one_pass(tiny_run):
    rows = table(tiny_run, "cost")
    mlp = rows[rows["group"].str.startswith("MLP")]
    assert len(mlp) == 14
    reference = mlp[mlp["kind"] == "reference"]
    assert list(reference["ratio"].astype(float)) == [1.0]
    left_out = rows[rows["status"].str.startswith("left out")]
    assert set(left_out["method"]) == {"exact SM"} and len(left_out) == 2
    conv = rows[rows["group"].str.startswith("Conv")].set_index(["method", "way"])["peak_bytes"]
    finite = float(conv["FD-SSM", "finite difference"])
    # Twice and more at sizes where activations outweigh weights and scratch space.
    assert float(conv["SSM", "double backward"]) > 1.5 * finite


@pytest.mark.slow
def test_cost_of_ncsn_is_that_of_whole_training_steps(monkeypatch, tmp_path) -> None:
    settings = {"model": "ncsn", "width": 2, "batch_size": 2, "rounds": 2, "device": "cpu"}
    trained, steps = [], []
    of_model, step = cost._model, torch.optim.Adam.step
    monkeypatch.setattr(cost, "_model", lambda s: trained.append(of_model(s)) or trained[-1])
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: (steps.append(1), step(self)))
    found, _ = cost.cost(settings | {"compile": False}, tmp_path, lambda *a: None)
    ((network, _, _),) = trained
    assert network.conditional and network.n_levels == 10
    assert [(row["objective"], row["way"]) for row in found["rows"]] == [
        (None, None),
        ("ssm", "double_backward"),
        ("ssm", "forward_mode"),
        ("fd_ssm", "finite_difference"),
        ("fd_ssm", "finite_difference_sequential"),
    ]
    assert all(row["peak_bytes"] > 0 and row["seconds"] > 0 for row in found["rows"])
    assert len(steps) >= 5 * 4  # twice for memory and in each round


@pytest.mark.slow
def test_comparisons_are_paired_over_seeds(tiny_run):
    for part in PARTS[:-1]:
        comparisons = table(tiny_run, f"comparisons_{part}")
        # A slow seed may have been judged first after the faster one's end, at which it is none.
        at_equal_time = comparisons["quantity"].str.endswith("at equal time")
        assert (comparisons["n"][~at_equal_time] == 2).all()
        assert (comparisons["n"] <= 2).all()
        comparisons = comparisons[comparisons["n"] == 2]
        low, mean, high = (comparisons[name].astype(float) for name in ("low", "mean", "high"))
        assert ((low <= mean) & (mean <= high)).all()
    results = collect_trials(tiny_run)
    for objective in ("dsm", "ssm"):
        for result in results.done("loss", objective=objective).values():
            starts = {curve["exact_sm"][0] for curve in result["curves"].values()}
            assert len(starts) == 1  # the same weights, judged on the same images


@pytest.mark.slow
def test_the_same_command_again_does_nothing_and_the_report_needs_files_alone(tiny_run, capsys):
    results = list((tiny_run / "stages" / "trial").rglob("result.json"))
    before = {path: path.stat().st_mtime_ns for path in results}
    data = str(tiny_run.parent / "data")
    assert run(tiny_run, "--data-root", data) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in results}
    assert run(tiny_run, "--data-root", data, "--status") == 0
    lines = capsys.readouterr().out.splitlines()
    trainings = len(list((tiny_run / "stages" / "train").glob("*/result.json")))
    assert sum(line.startswith("DONE") for line in lines) == len(results) + trainings
    page = tiny_run / "report" / "index.html"
    page.unlink()
    assert report.main([str(tiny_run)]) == 0
    assert page.exists()


def test_an_interrupted_run_goes_on_at_the_trial(tmp_path, monkeypatch, capsys):
    toy, calls = experiments_toy.toy, []

    def interrupted(settings, directory, progress):
        calls.append(settings["seed"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return toy(settings, directory, progress)

    monkeypatch.setattr(experiments_toy, "toy", interrupted)
    flags = ("--grid", "fd-toy", "--seeds", "3")
    assert run(tmp_path / "out", *flags) == 130
    assert "continues" in capsys.readouterr().err
    assert run(tmp_path / "out", *flags) == 0
    assert calls == [0, 1, 1, 2]


def numbers(out: Path) -> dict[str, object]:
    """What the trials found, by name, without what depends on times."""

    def timeless(value: object) -> object:
        if not isinstance(value, dict):
            return value
        timed = ("conditions", "trial_s", "seconds")
        return {key: timeless(one) for key, one in value.items() if key not in timed}

    return {entry.trial.name: timeless(entry.result) for entry in collect_trials(out).trials}


@pytest.mark.slow
def test_local_processes_that_are_killed_end_with_the_numbers_of_this_one(tmp_path):
    out, alone = tmp_path / "out", tmp_path / "alone"
    grid = ("--grid", "fd-toy,fd-distance", "--seeds", "1", "--only", "toy/*,distance/dsm/*")
    flags = command(out, *grid, "--executor", "local", "--workers", "2", toy_iterations=400)
    process = subprocess.Popen(
        [sys.executable, "-m", "ablations.launch", *flags],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 240
    while not list(out.glob("stages/trial/*/result.json")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = {path: path.read_bytes() for path in out.glob("stages/trial/*/result.json")}
    assert kept
    assert main(flags) == 0
    assert all(path.read_bytes() == content for path, content in kept.items())
    assert run(alone, *grid, toy_iterations=400) == 0
    assert numbers(out) == numbers(alone)
    assert set(table(out, "toy")["status"]) == {"done"}
    # The score network was trained by the pipeline's own job, of which the trial is made.
    assert len(list((out / "stages" / "train").glob("*/result.json"))) == 1


def test_a_diverged_trial_has_a_row_and_the_others_go_on(tmp_path, capsys):
    out = tmp_path / "out"
    flags = ("--grid", "fd-toy,fd-loss", "--seeds", "1", "--only", "toy/*,loss/dsm/*")
    assert run(out, *flags, toy_learning_rate=1e30) == 1
    toy = table(out, "toy")
    assert list(toy["kind"]) == ["problem"]
    assert toy["status"].str.match(r"diverged: .*SSM diverged: its loss is (nan|inf)").all()
    assert list(table(out, "loss")["status"].head(2)) == ["done", "done"]
    assert "SSM diverged" in (out / "report" / "index.html").read_text()
    capsys.readouterr()
    assert run(out, *flags, toy_learning_rate=1e30) == 1
    assert "failed before: toy/seed0" in capsys.readouterr().out


def test_an_epsilon_that_is_too_small_is_warned_of_and_said(tmp_path, caplog):
    out = tmp_path / "out"
    assert run(out, "--grid", "fd-toy", "--seeds", "1", toy_epsilon=2e-4) == 0
    assert "rounding errors dominate" in caplog.text
    assert table(out, "toy")["status"].str.contains("rounding dominates").all()


def test_an_epsilon_that_moves_nothing_fails_in_one_line(tmp_path):
    out = tmp_path / "out"
    assert run(out, "--grid", "fd-toy", "--seeds", "1", toy_epsilon=1e-9) == 1
    assert table(out, "toy")["status"].str.startswith("failed: epsilon = 1e-09 moves").all()


def test_a_wrong_shaped_table_is_one_line_before_any_work(tmp_path, capsys):
    data = wine(tmp_path / "data", n_columns=11)
    assert run(tmp_path / "out", "--data-root", str(data)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "winequality-red.csv: wrong columns" in lines[0] and "12" in lines[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--grid", "fd-toy,fd-toys"],
            "grid 'fd-toys' is unknown, did you mean 'fd-toy'?; known: paper, factorial,",
        ),
        (["--datasets", "digits"], "--datasets means nothing to the study finite-difference"),
        (["--budget", "night"], "--budget night: unknown; known: auto, paper, hour, quick"),
        (["--set", "toy_width=x"], "toy_width = 'x' is not a whole number"),
        (["--set", "toy_epsilon=0"], "toy_epsilon = 0.0 must be a positive number"),
        (["--set", "width=8"], "setting 'width' is unknown"),
        (["--grid", "fd-toy", "--only", "toy/seed9"], "matches no trial"),
        (["--seeds", "0"], "--seeds 0: must be at least 1"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, flags, message):
    out = tmp_path / "out"
    assert main(["--grid", "finite-difference", "--out", str(out), *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not out.exists()


def test_a_folder_holds_one_budget_and_one_set_of_settings(tmp_path, capsys):
    out = tmp_path / "out"
    flags = ("--grid", "fd-toy", "--seeds", "1")
    assert run(out, *flags) == 0
    assert run(out, *flags, toy_width=9) == 2
    assert "holds overrides" in capsys.readouterr().err
    assert main(["--grid", "paper", "--out", str(out), "--device", "cpu"]) == 2
    assert "holds the study finite-difference" in capsys.readouterr().err
    # What it holds it says itself.
    assert main(["--out", str(out), "--status"]) == 0
    assert "toy/seed0" in capsys.readouterr().out
    assert main(["--out", str(out), "--device", "cpu", "--executor", "inline"]) == 0
    assert "nothing to do" in capsys.readouterr().out
    # More seeds and more parts may come.
    assert run(out, "--grid", "fd-toy", "--seeds", "2") == 0
    assert list(table(out, "toy")["seed"]) == [0, 1]


def test_trials_differ_in_what_their_results_depend_on():
    place = {"device": "cpu", "threads": 1}
    images = {"digits": None, "mnist": "2" * 64}
    files = dict.fromkeys(("parkinsons", "redwine", "whitewine"), "0" * 64)
    for effort in (budget.settings for budget in BUDGETS.values()):
        trials = build_trials(effort, PARTS, seeds=None, files=files, images=images, place=place)
        assert len({trial.stage.digest for trial in trials}) == len(trials)
        assert len({trial.name for trial in trials}) == len(trials)
    found = {}
    for name, red, mnist in (("same", "0", "2"), ("red", "1", "2"), ("mnist", "0", "3")):
        files["redwine"], images["mnist"] = red * 64, mnist * 64
        found[name] = build_trials(
            Effort(), PARTS, seeds=1, files=dict(files), images=dict(images), place=place
        )
    for name, prefixes in (
        ("red", ("dkef/redwine/",)),
        ("mnist", ("flow/mnist", "implicit/mnist")),
    ):
        pairs = zip(found[name], found["same"], strict=True)
        changed = {a.name for a, b in pairs if a.stage != b.stage}
        assert changed == {t.name for t in found["same"] if t.name.startswith(prefixes)} != set()


def test_a_network_is_trained_once_for_the_trials_of_it_and_weighs_like_them():
    place = {"device": "cpu", "threads": 1}
    given = {"files": {}, "images": {}, "place": place}
    trials = build_trials(Effort(), ("toy", "distance"), seeds=2, facts=facts(), **given)
    jobs = trial_jobs(trials)
    by_name = {job.name: job for job in jobs}
    assert len(jobs) == len(by_name) == 2 + 2 * 3 * 2
    assert {job.effort for job in jobs} == {1.0}  # FLOPs beside them would be all of the progress
    for job in jobs:
        trained = getattr(job, "trial", None) is not None and job.trial.kind == "distance"
        assert len(job.needs) == trained
        assert all(
            by_name[need].alone and jobs.index(by_name[need]) < jobs.index(job)
            for need in job.needs
        )
        assert job.alone == ("toy" not in job.title)


def test_paired_intervals_are_students():
    rng = np.random.default_rng(0)
    first = rng.normal(10, 3, 6)
    second = first + rng.normal(0.5, 0.1, 6)
    interval = stats.ttest_rel(second, first).confidence_interval(0.95)
    paired = paired_difference(list(first), list(second))
    assert (paired.low, paired.high) == pytest.approx((interval.low, interval.high))
    assert paired.n == 6
    assert np.isnan(mean_and_spread([1.0, None])).all()
    ratio = paired_ratio([1.0, 2.0, 5.0], [2.0, 4.0, 10.0])
    assert (ratio.low, ratio.mean, ratio.high) == pytest.approx((2, 2, 2))
    assert np.isnan(paired_difference([1.0], [2.0]).low)


def test_a_comparison_counts_the_pairs_that_have_both_values():
    first, second = [1.0, math.nan, 3.0, 4.0], [2.0, 5.0, math.inf, 6.0]
    for sort, paired in (("difference", paired_difference), ("ratio", paired_ratio)):
        found = comparison("b against a", "loss", sort, ("a", first), ("b", second))
        whole = paired([1.0, 4.0], [2.0, 6.0])
        assert {key: found[key] for key in vars(whole)} == vars(whole)
        assert found["n"] == 2
        assert found["first"] == ("a", [1.0, 4.0]) and found["second"] == ("b", [2.0, 6.0])
        none = comparison("b against a", "loss", sort, ("a", [math.nan]), ("b", [1.0]))
        assert none["n"] == 0 and math.isnan(none["mean"])


def test_equal_time_is_the_faster_ones_end():
    curves = {
        "SSM": {"seconds": [0.0, 10.0], "exact_sm": [0.0, -100.0]},
        "FD-SSM": {"seconds": [0.0, 4.0], "exact_sm": [0.0, -90.0]},
    }
    assert at_equal_time(curves) == {"SSM": -40.0, "FD-SSM": -90.0}
    curves["SSM"]["seconds"] = [5.0, 10.0]  # nothing is known of it by then
    assert np.isnan(at_equal_time(curves)["SSM"])


def test_evaluations_begin_and_end_with_training():
    judged = evaluation_iterations(240, 9)
    assert min(judged) == 0 and max(judged) == 240 and len(judged) == 9
    assert evaluation_iterations(1, 9) == {0, 1}


def test_peak_memory_is_what_was_allocated_at_once():
    x, device = torch.ones(1000), torch.device("cpu")

    def work():
        for _ in range(3):
            y = torch.exp(x)  # 4000 bytes, freed each time the name is taken again
            y.view(10, 100).t()  # no memory of its own
        torch.sin_(x)  # in place

    assert peak_bytes(work, device) == 8000
    assert peak_bytes(lambda: x.sin_(), device) == 0


@pytest.mark.slow
def test_peak_memory_of_compiled_code_is_seen():
    x = torch.ones(300, 300)
    fused = compiled(lambda x: (x @ x).exp().sum(), enable=True, device="cpu")
    with torch.no_grad():
        found = peak_bytes(lambda: fused(x), torch.device("cpu"))
    assert 360_000 <= found < 2 * 360_000


def test_a_learner_names_the_iteration_that_diverged():
    learner = Learner(MLPEnergy(2, 4), 1e-3, "cpu")
    x = torch.ones(3, 2)
    for factor in (1.0, float("nan"), 1.0):
        learner.step(lambda model, factor=factor: factor * model(x))
    with pytest.raises(FloatingPointError, match="SSM diverged: its loss is nan at iteration 19"):
        learner.check("SSM", 20)


def test_what_cannot_be_compiled_is_a_row_that_says_so(tmp_path, monkeypatch):
    out = tmp_path / "out"
    flags = ("--grid", "fd-cost", "--only", "cost/mlp")
    made = 0

    def failing(function, *, enable, device):
        nonlocal made
        if not enable:
            return function
        made += 1
        if made > 1:
            return function  # one in place of many slow compilations

        def fail():
            raise RuntimeError("no graph of this\nand more")

        return fail

    monkeypatch.setattr(cost, "compiled", failing)
    assert run(out, *flags, compile="true") == 0
    rows = table(out, "cost").query("group.str.startswith('MLP')", engine="python")
    failed = rows[rows["status"].str.contains("fails compiled")]
    assert list(failed["status"]) == ["left out: fails compiled (RuntimeError: no graph of this)"]
    assert list(failed["mode"]) == ["compiled"]
    others = rows.drop(failed.index)
    assert (others["status"] == "done").sum() == len(others) - 1  # exact SM is not unrolled
    assert set(others["mode"]) == {"eager", "compiled"}


def test_a_machine_without_a_compiler_has_no_compiled_rows(tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr(cost, "compile_unavailable_reason", lambda: "no g++")
    assert run(out, "--grid", "fd-cost", "--only", "cost/mlp", compile="true") == 0
    rows = table(out, "cost").query("mode == 'compiled'")
    assert set(rows["kind"]) == {"pending"}
    assert set(rows["seconds"]) == {""}
    assert (rows["status"] == "left out: no g++").sum() == len(rows) - 1


def test_results_are_json_without_nan(tmp_path):
    out = tmp_path / "out"
    assert run(out, "--grid", "fd-toy", "--seeds", "1") == 0
    (path,) = out.glob("stages/trial/*/result.json")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    found = json.loads(path.read_text(), parse_constant=refuse)["result"]
    assert found["conditions"]["device"].endswith("1 thread(s)")
