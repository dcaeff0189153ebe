"""Folders joined: seeds put together, other settings told apart, nothing counted twice."""

import shutil
from dataclasses import replace

import fake_results
import pandas as pd
import pytest
from tiny_grid import TOML

from ablations.launch import main as launch
from ablations.report import main
from ablations.studies.ncsnv2.collect import collect
from ablations.studies.ncsnv2.joined import join, load
from ablations.studies.ncsnv2.sections.ablation import ablation_table


@pytest.fixture(scope="module")
def folders(finished, tmp_path_factory):
    """A folder of seed 0, one of two seeds, and one of another learning rate."""
    root = tmp_path_factory.mktemp("joined")
    flags = ["--grid", str(TOML), "--device", "cpu", "--executor", "inline", "--threads", "1"]
    flags += ["--data-root", str(finished / "out" / "data")]
    shutil.copytree(finished / "out", root / "one")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ablations.launch.refresh_report", lambda out, build: out)
        only = ["--only", "ncsnv2"]
        assert launch([*flags, *only, "--seeds", "2", "--out", str(root / "two")]) == 0
        rate = ["--set", "learning_rate=0.0002"]
        assert launch([*flags, *only, *rate, "--out", str(root / "slow")]) == 0
    return root


def test_equal_rows_put_their_seeds_together(folders):
    one, two = (collect(folders / name) for name in ("one", "two"))
    both = load(folders / "one", str(folders / "two"))
    cells = both.cells[both.cells["status"] == "done"]
    assert sorted(zip(cells["variant"], cells["seed"], strict=True)) == [
        *(("NCSN_1,2,4", 0), ("NCSN_1,2,4,5", 0), ("NCSNv2", 0), ("NCSNv2", 1))
    ]
    keys = ["variant", "seed", "denoise", "iteration", "purpose"]
    assert not both.distances.duplicated(keys).any()
    new = two.distances[two.distances["seed"] == 1]
    assert len(both.distances) == len(one.distances) + len(new)
    seed_0 = both.losses[(both.losses["seed"] == 0)]
    assert len(seed_0) == len(one.losses)
    assert not both.references.duplicated().any()
    assert len(both.references) == len(one.references)
    raw = ablation_table(both).raw
    assert set(raw[raw["variant"] == "NCSNv2"]["n_seeds"]) == {2}


def test_one_name_of_other_settings_is_told_apart_and_what_differs_is_a_column(folders):
    both = load(folders / "one", folders / "slow")
    raw = ablation_table(both).raw
    own, slow = (raw[raw["variant"] == f"NCSNv2 [{name}]"] for name in ("one", "slow"))
    assert len(own) and len(slow) and "NCSNv2" not in set(raw["variant"])
    assert set(own["learning_rate"]) == {"0.001"} and set(slow["learning_rate"]) == {"0.0002"}
    plain = collect(folders / "slow").distances
    final = plain[(plain["purpose"] == "final") & (plain["variant"] == "NCSNv2")]
    assert sorted(slow["distance_mean"]) == sorted(final["distance"])
    # Their trainings are two, and so are the curves.
    trainings = both.cells.set_index("variant")["training"]
    assert trainings["NCSNv2 [one]"] != trainings["NCSNv2 [slow]"]
    assert {s.variant for s in both.samples} >= {"NCSNv2 [one]", "NCSNv2 [slow]"}


def test_the_command_makes_one_report_of_several_folders(folders, tmp_path, capsys, sketched):
    given = [str(folders / name) for name in ("one", "two", "slow")]
    assert main([*given, "--out", str(tmp_path / "report")]) == 0
    assert capsys.readouterr().out.startswith(str(tmp_path / "report" / "index.html"))
    table = pd.read_csv(tmp_path / "report" / "tables" / "ablation.csv")
    assert {"NCSNv2 [one]", "NCSNv2 [two]", "NCSNv2 [slow]"} <= set(table["variant"])
    assert main(given) == 2
    assert "--out must say where the report of several folders goes" in capsys.readouterr().err
    assert main([given[0], str(tmp_path)]) == 2
    assert "holds no grid" in capsys.readouterr().err


def test_what_cannot_be_joined_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="no folder was given"):
        load()
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match="a folder was given twice"):
        load(tmp_path / "a", tmp_path / "a")
    results = fake_results.empty()
    rows = [("digits", "NCSN", "data: fingerprint", value) for value in "xy"]
    x, y = (
        replace(results, settings=pd.DataFrame([row], columns=results.settings.columns))
        for row in rows
    )
    with pytest.raises(ValueError, match="A and B have different images called digits"):
        join({"A": x, "B": y})
