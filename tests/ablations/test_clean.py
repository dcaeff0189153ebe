import shutil

import pytest
from tiny_grid import TOML

from ablations import launch
from ablations.clean import find_removable, main
from ablations.engine.stages import StageStore
from ablations.pipeline.manifest import load_manifest
from ablations.pipeline.selection import selected_iterations
from scorekit.checkpoints.store import snapshot_path
from scorekit.files import read_sealed_json, write_sealed_json

pytestmark = pytest.mark.usefixtures("no_report")


@pytest.fixture
def out(finished, tmp_path):
    return shutil.copytree(finished / "out", tmp_path / "out")


def again(out, *flags):
    arguments = ["--grid", str(TOML), "--out", str(out), "--device", "cpu", "--threads", "1"]
    return launch.main([*arguments, "--executor", "inline", *flags])


def contents(out):
    return {path: path.stat().st_mtime_ns for path in out.rglob("*")}


def test_a_finished_grid_is_finished_without_what_is_removed(out, capsys):
    (out / "samples" / "of-no-row" / "fake").mkdir(parents=True)
    (out / "samples" / "of-no-row" / "manifest.json").write_text("{}")
    (out / "stages" / "x.pt.corrupt-1").write_bytes(b"123")
    before = contents(out)
    assert main([str(out)]) == 0
    assert before == contents(out)
    listed = capsys.readouterr().out
    found = find_removable(out)
    assert all(str(item.path.relative_to(out)) in listed for item in found)
    reasons = {item.reason for item in found}
    assert {"dump of no row", "damaged, and set aside"} < reasons
    assert "checkpoint of a finished training" in reasons
    assert main([str(out), "--yes"]) == 0
    assert find_removable(out) == []
    gone = {item.path for item in found}
    left = {path for path in before if not any(path.is_relative_to(g) for g in gone)}
    assert left <= set(contents(out))
    assert not any(path.exists() for path in gone)
    store = StageStore(out / "stages")
    for cell in load_manifest(out).units:
        needed = {cell.train.iterations, *selected_iterations(cell, store).values()}
        for iteration in needed:
            assert snapshot_path(store.directory(cell.train_stage()), iteration).exists()
    capsys.readouterr()
    assert again(out) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_snapshots_may_be_kept_and_are_while_a_cell_is_not_evaluated(out):
    def snapshots(**how):
        return [i for i in find_removable(out, **how) if i.path.name.startswith("snapshot-")]

    # Each row comes to select its last snapshot, for both settings.
    choose = {3: 1.0, 6: 0.0}
    store = StageStore(out / "stages")
    cells = load_manifest(out).units
    for cell in cells:
        for iteration, far in choose.items():
            for d in (False, True):
                stage = cell.distance_stage(iteration, denoise=d, final=False)
                path = store.directory(stage) / "result.json"
                record = read_sealed_json(path)
                record["result"]["distance"] = far
                write_sealed_json(path, record)
    assert again(out) == 0
    assert {item.path.name for item in snapshots()} == {snapshot_path(out, 3).name}
    assert len(snapshots()) == len({cell.train_stage() for cell in cells}) == 2
    assert snapshots(keep_snapshots="all") == []
    last = cells[-1].quality_stage(6, denoise=True)
    (store.directory(last) / "result.json").unlink()
    assert len(snapshots()) == 1
    assert main([str(out), "--yes"]) == 0
    # The cell that was not evaluated has what it needs, and another row of its training lacks it.
    assert again(out) == 0
    assert main([str(out), "--yes"]) == 0
    assert again(out, "--grid", "steps") == 1
    failures = " ".join(p.read_text() for p in (out / "jobs").glob("*.failure.json"))
    assert "was removed by ablations.clean" in failures


def test_what_is_no_grid_is_refused(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "holds no grid" in capsys.readouterr().err
    assert main([str(tmp_path), "--yes"]) == 2
