import json
import shutil

import numpy as np
import pandas as pd
import pytest

from ablations.clean import find_removable
from ablations.hype.dumps import open_dumps
from ablations.report import main
from ablations.studies.ncsnv2.collect import _qualities, collect
from ablations.studies.ncsnv2.report import build_report


def test_distances_are_those_of_the_stages_files(finished):
    results = collect(finished / "out")
    stored = [
        json.loads(path.read_text())["result"]["distance"]
        for path in (finished / "out" / "stages" / "distance").glob("*/result.json")
    ]
    assert sorted(set(results.distances["distance"])) == sorted(set(stored))
    final = results.distances[results.distances["purpose"] == "final"]
    assert len(final) == 3 * 2
    assert set(final["n"]) == {6}
    assert set(final["n_reference"]) == {1500}
    assert set(final["label"]) == {"FD[digits-cnn]"}
    assert results.run["complete"] is True


def test_the_chosen_snapshot_has_the_smallest_selection_distance(finished):
    distances = collect(finished / "out").distances
    for _, group in distances.groupby(["variant", "denoise"]):
        selection = group[group["purpose"] == "selection"]
        best = selection.loc[selection["distance"].idxmin(), "iteration"]
        assert group[group["purpose"] == "final"]["iteration"].tolist() == [best]


def test_losses_times_and_samples(finished):
    results = collect(finished / "out")
    assert sorted(set(results.losses["iteration"])) == [1, 2, 3, 4, 5, 6]
    assert set(results.losses["variants"]) == {"NCSN_1,2,4, NCSN_1,2,4,5", "NCSNv2"}
    assert (results.timings["training_s"] > 0).all()
    assert (results.timings["compile_s"] == 0).all()  # the quick budget does not compile
    assert set(results.timings["score_evaluations_per_sample"]) == {3 * 2 + 1}
    for stage in ("training", "sampling"):
        assert (results.timings[f"{stage}_peak_bytes"] > 2**20).all()
    for sample in results.samples:
        images = np.load(sample.path)
        assert (images.shape, images.dtype) == ((4, 1, 8, 8), np.uint8)
    assert np.load(results.real["digits"]).shape == (1500, 1, 8, 8)


def test_losses_on_both_splits_are_of_every_snapshot_and_the_weights_that_are_sampled(finished):
    frame = collect(finished / "out").held_out_losses
    keys = set(zip(frame["training"], frame["weights"], frame["iteration"], strict=True))
    trained = [("conditional, L=3", "raw"), ("conditional, L=3", "EMA"), ("s(x)/σ, L=3", "EMA")]
    assert keys == {(*pair, i) for pair in trained for i in (3, 6)}
    assert len(frame) == len(keys)
    assert set(frame["n"]) == {8} and set(frame["draws"]) == {1}
    assert frame["gap"].to_numpy() == pytest.approx((frame["test"] - frame["train"]).to_numpy())


def test_every_row_has_every_setting_as_resolved(finished):
    settings = collect(finished / "out").settings
    counts = settings.groupby("variant")["setting"].nunique()
    assert counts.nunique() == 1 and len(settings) == counts.sum()
    rows = settings[settings["variant"] == "NCSNv2"].set_index("setting")["value"]
    expected = {"objective": "dsm", "flip": "False", "width": "2", "precision": "fp32"}
    expected |= {"adam_eps": "1e-08", "amsgrad": "False", "dequantisation": "none"}
    expected |= {"n_final": "6", "reference": "train", "weights": "ema"}
    assert {name: rows[name] for name in expected} == expected


def test_reference_rows_are_ordered_as_they_must_be(finished):
    rows = collect(finished / "out").references.set_index("name")["distance"]
    assert rows["held-out real images"] < rows["Gaussian fitted to the pixels"]
    assert rows["Gaussian fitted to the pixels"] < rows["uniform noise"]


def test_a_folder_may_be_given_as_a_text(finished, tmp_path):
    out = shutil.copytree(finished / "out", tmp_path / "out")
    results = collect(str(out))
    pd.testing.assert_frame_equal(results.distances, collect(out).distances)
    assert build_report(results, str(tmp_path / "page")) == tmp_path / "page" / "index.html"
    assert find_removable(str(out)) == find_removable(out) != []
    dump = next((out / "samples").iterdir())
    assert [d.digest for d in open_dumps(str(dump))] == [d.digest for d in open_dumps(dump)]


def test_an_unfinished_grid_has_a_row_for_every_cell(finished, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished / "out", out)
    for kind in ("distance", "sample", "features"):
        shutil.rmtree(out / "stages" / kind)
    shutil.rmtree(out / "jobs")
    results = collect(out)
    assert len(results.cells) == 3
    assert set(results.cells["status"]) == {"planned"}
    assert len(results.losses) > 0
    assert results.run["complete"] is False
    assert main([str(out)]) == 0
    assert "planned" in (out / "report" / "tables" / "ablation.csv").read_text()


def test_a_failed_job_is_a_row_that_says_so(finished, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished / "out", out)
    shutil.rmtree(out / "stages" / "distance")
    failure = {"kind": "failed", "message": "it broke", "when": 0.0}
    (out / "jobs" / "evaluate-digits-ncsnv2-seed0.failure.json").write_text(json.dumps(failure))
    cells = collect(out).cells.set_index("variant")
    assert cells.loc["NCSNv2", "status"] == "failed"
    assert cells.loc["NCSNv2", "message"] == "it broke"


def test_a_folder_without_a_grid_is_one_clear_line(tmp_path, capsys):
    with pytest.raises(ValueError, match="holds no grid"):
        collect(tmp_path)
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_an_inception_score_says_the_size_of_its_splits():
    score = {"mean": 3.0, "std": 0.5, "parts": 10, "part_size": 14}
    result = {"IS": score, "KID": score, "n_precision": 7}
    found = {metric: columns for metric, _, columns in _qualities(result, "digits-cnn")}
    assert found["IS"] == {"value": 3.0, "std": 0.5, "note": "10 splits of 14"}
    assert found["KID"]["note"] == "10 subsets of 14"


def test_results_of_before_density_and_coverage_are_read():
    shares = {"precision": 0.5, "recall": 0.25, "f_score": 1 / 3}
    result = {"n_precision": 7, "precision_recall": shares}
    found = {metric: columns for metric, _, columns in _qualities(result, "digits-cnn")}
    assert found["precision"] == {"n_reference": 7, "value": 0.5}
    assert not {"density", "coverage"} & set(found)
    result["density_coverage"] = {"density": 1.5, "coverage": 0.75}
    found = {metric: columns for metric, _, columns in _qualities(result, "digits-cnn")}
    assert found["density"] == {"n_reference": 7, "value": 1.5}
    assert found["coverage"] == {"n_reference": 7, "value": 0.75}
