"""The tables of other metrics and of distance against score evaluations."""

from dataclasses import replace

import fake_results
import pandas as pd
import pytest

from ablations.engine.frames import make_frame
from ablations.studies.ncsnv2.results import HYPERPARAMETER_COLUMNS
from ablations.studies.ncsnv2.sections.quality import quality_table
from ablations.studies.ncsnv2.sections.steps import steps_table


def test_every_metric_stands_with_its_feature_space_and_spread(tmp_path):
    table = quality_table(fake_results.complete(tmp_path))
    assert len(table.raw) == 8
    row = table.display[
        (table.display["Variant"] == "NCSNv2") & (table.display["Denoised"] == "yes")
    ].iloc[0]
    assert (row["IS ↑"], row["Feature space"]) == ("7.3 ± 0.2", "digits-cnn")
    assert row["KID ↓"] == "0.017 ± 0.001"
    assert (row["Density ↑"], row["Coverage ↑"]) == ("1.12", "0.25")
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
    assert set(table.display["IS ↑"]) == {"—"}
    (note,) = set(table.display["Note"])
    assert note.startswith("IS: logits: 6 rows; at least 10 are right; KID: 100 subsets of 1000")


def test_what_older_results_lack_is_a_dash(tmp_path):
    results = fake_results.complete(tmp_path)
    there = ~results.qualities["metric"].isin(["density", "coverage"])
    table = quality_table(replace(results, qualities=results.qualities[there]))
    assert set(table.display["Density ↑"]) == set(table.display["Coverage ↑"]) == {"—"}
    assert "—" not in set(table.display["Precision ↑"])


def test_distance_against_score_evaluations(tmp_path):
    results = replace(fake_results.complete(tmp_path), **fake_results.stepped("digits"))
    table = steps_table(results)
    assert table.raw["variant"].tolist() == ["NCSNv2", "NCSNv2, 25×1", "NCSNv2, 100×1"]
    assert table.raw["score_evaluations"].tolist() == [1161, 26, 101]
    assert set(table.kinds) == {"ours"}
    assert "quoted" not in table.caption


def test_rows_of_several_trainings_are_not_called_one_network(tmp_path):
    frames = fake_results.stepped("digits")
    results = replace(fake_results.complete(tmp_path), **frames)
    table = steps_table(results)
    assert "The same trained network" in table.caption
    assert "Technique 4" not in table.caption
    cells = frames["cells"]
    cells.loc[cells["variant"] == "NCSNv2, 25×1", "training"] = "s(x)/σ, L=232, ssm_vr"
    table = steps_table(replace(results, cells=cells))
    assert table.raw["variant"].tolist() == ["NCSNv2", "NCSNv2, 100×1"]
    cells["training"] = ["one", "two", "three"]
    assert steps_table(replace(results, cells=cells)) is None
    rows = [cells.assign(variant=cells["variant"] + more) for more in ("", ", consistent")]
    both = {name: pd.concat([frames[name]] * 2, ignore_index=True) for name in frames}
    both["cells"] = pd.concat(rows, ignore_index=True)
    distances = frames["distances"]
    later = distances.assign(variant=distances["variant"] + ", consistent")
    both["distances"] = pd.concat([distances, later], ignore_index=True)
    table = steps_table(replace(results, **both))
    assert "The same trained network" not in table.caption
    assert set(table.display["Training"]) == {"one", "two", "three"}


def test_published_figures_stand_beside_on_their_own_data_set_only(tmp_path):
    run = fake_results.fake_run(datasets=["cifar10-jpeg"])
    results = replace(
        fake_results.complete(tmp_path), run=run, **fake_results.stepped("cifar10-jpeg")
    )
    table = steps_table(results)
    assert "the authors' checkpoints" in table.caption
    raw = table.raw
    published = raw[raw["source"] == "published"]
    assert published["distance_mean"].tolist() == [46.8, 17.2, 16.0, 12.8, 12.5]
    assert published["score_evaluations"].tolist() == [26, 101, 233, 697, 1161]
    assert set(published["kind"]) == {"paper"}


def test_a_grid_that_samples_in_one_way_has_no_such_table(tmp_path):
    assert steps_table(fake_results.complete(tmp_path)) is None


def test_each_row_says_its_step_size_and_the_rule_that_gave_it(tmp_path):
    results = replace(fake_results.complete(tmp_path), **fake_results.stepped("digits"))
    given = {"NCSNv2": "Technique 4", "NCSNv2, 25×1": "steady state", "NCSNv2, 100×1": "given"}
    rows = [
        {"dataset": "digits", "variant": variant, "source": "this run", "L": 25, "T": 1}
        | {"epsilon": 1e-6 * (i + 1), "step_rule": rule}
        for i, (variant, rule) in enumerate(given.items())
    ]
    settings = make_frame(HYPERPARAMETER_COLUMNS, rows)
    table = steps_table(replace(results, hyperparameters=settings))
    assert table.display["Rule of ε"].tolist() == list(given.values())
    assert table.display["ε"].tolist() == ["1e-6", "2e-6", "3e-6"]
    assert "steady state: the variance that the whole ladder" in table.caption
    assert "given: set by the user" in table.caption
    assert "consistent:" not in table.caption  # no such row
