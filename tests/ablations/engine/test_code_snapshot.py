import os
import subprocess
import sys

from tiny_grid import ROOT

from ablations.engine.code_snapshot import code_digest, snapshot_code

WHERE = "import ablations.engine.code_snapshot as c; print(c.__file__); print(c.code_digest())"


def test_a_copy_of_the_code_runs_in_place_of_the_original(tmp_path):
    folder = snapshot_code(tmp_path)
    run = subprocess.run(
        [sys.executable, "-c", WHERE],
        cwd=ROOT,
        env=os.environ | {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.splitlines() == [
        str(folder / "ablations" / "engine" / "code_snapshot.py"),
        code_digest(),
    ]


def test_a_copy_is_made_once_and_whole(tmp_path):
    folder = snapshot_code(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert snapshot_code(tmp_path) == folder
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert folder.name == code_digest()
    assert (folder / "ablations" / "reporting" / "templates" / "report.html.j2").exists()
    assert (folder / "scorekit" / "weights" / "digits-cnn.safetensors").exists()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_an_unfinished_copy_is_removed(tmp_path):
    unfinished = tmp_path / "code" / ".0123456789ab.1-2.tmp" / "kernels"
    unfinished.mkdir(parents=True)
    folder = snapshot_code(tmp_path)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_another_line_of_code_is_another_digest(tmp_path):
    folder = snapshot_code(tmp_path)
    (folder / "scorekit" / "ema.py").open("a").write("\n# changed\n")
    run = subprocess.run(
        [sys.executable, "-c", WHERE],
        env=os.environ | {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.splitlines()[1] != code_digest()
