"""The launcher as a user meets it: whole grids, interruptions, bad input."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import forked
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from resolved import whole_jobs
from tiny_grid import TOML, launch, launch_command, results

from ablations.command_line import make_plan, parse_arguments
from ablations.engine import provenance
from ablations.engine.context import Context
from ablations.executors.slurm.settings import JOB_KINDS
from ablations.launch import main
from ablations.pipeline.manifest import GRID_FILE, load_manifest
from ablations.pipeline.selection import selected_iterations
from ablations.studies.ncsnv2.training_labels import training_labels


def again(folder: Path, *flags: str) -> int:
    return main(["--grid", str(TOML), "--out", str(folder / "out"), "--device", "cpu", *flags])


def test_a_grid_gives_report_tables_and_dumps(finished):
    out = finished / "out"
    html = (out / "report" / "index.html").read_text()
    assert "NCSNv2" in html
    assert "FD[digits-cnn]" in html
    table = pd.read_csv(out / "report" / "tables" / "ablation.csv")
    rows = table[table["status"] == "done"]
    assert set(zip(rows["variant"], rows["denoise"], strict=True)) == {
        (variant, denoise)
        for variant in ("NCSN_1,2,4", "NCSN_1,2,4,5", "NCSNv2")
        for denoise in (True, False)
    }
    assert set(rows["n"]) == {6}
    assert table["budget"].str.startswith("quick, changed: batch_size=4, iterations=6, ").all()
    for name in ("ablation", "hyperparameters", "timings"):
        for suffix in ("csv", "md", "tex"):
            assert (out / "report" / "tables" / f"{name}.{suffix}").stat().st_size > 0


def test_cells_share_training_and_trajectories(finished):
    out = finished / "out"
    stages = {kind.name: len(list(kind.iterdir())) for kind in (out / "stages").iterdir()}
    manifest = load_manifest(out)
    assert manifest is not None
    # Two networks for three variants; two snapshots, each sampled once for both denoise settings.
    assert stages["train"] == 2
    from ablations.engine.stages import StageStore

    store = StageStore(out / "stages")
    extra = sum(len(set(selected_iterations(c, store).values())) for c in manifest.units)
    assert stages["sample"] == 3 * 2 + extra
    assert stages["baseline"] == len(list((out / "data" / "reference").iterdir())) == 1


def test_dumps_are_numbered_pairs_with_a_manifest(finished):
    out = finished / "out"
    folders = sorted(path.name for path in (out / "samples").iterdir())
    assert folders == sorted(
        f"digits-{slug}-seed0-{suffix}"
        for slug in ("ncsn_124", "ncsn_1245", "ncsnv2")
        for suffix in ("denoised", "not-denoised")
    )
    folder = out / "samples" / "digits-ncsnv2-seed0-denoised"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [i["file"] for i in manifest["images"]] == ["00000.png", "00001.png", "00002.png"]
    assert (manifest["dataset"], manifest["variant"], manifest["seed"]) == ("digits", "NCSNv2", 0)
    assert len(manifest["checkpoint_sha256"]) == 64
    real = np.load(out / "data" / "digits-v1" / "train.npy")
    for image in manifest["images"]:
        shown = np.asarray(Image.open(folder / "real" / image["file"]))
        assert np.array_equal(shown, real[image["real_train_index"], 0])
        assert Image.open(folder / "fake" / image["file"]).size == (8, 8)


def test_the_same_command_again_does_nothing_but_say_so(finished, capsys):
    out = finished / "out"
    before = {path: path.stat().st_mtime_ns for path in (out / "stages").rglob("result.json")}
    assert again(finished) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in (out / "stages").rglob("result.json")}


def test_dry_run_and_status_say_what_is_done(finished, capsys):
    assert again(finished, "--dry-run") == 0
    text = capsys.readouterr().out
    assert text.count("  train ") == 2
    assert "digits/ncsn_124/seed0, digits/ncsn_1245/seed0" in text
    assert "to do" not in text.split("work:")[0]
    assert " 0 of them to do" in text
    assert again(finished, "--status") == 0
    lines = capsys.readouterr().out.splitlines()
    manifest = load_manifest(finished / "out")
    assert manifest is not None
    assert len(lines) == len(whole_jobs(manifest.units))
    assert all(line.startswith("DONE") for line in lines)


def test_verify_reads_every_byte_and_says_what_is_damaged(finished, tmp_path, capsys):
    shutil.copytree(finished / "out", tmp_path / "out")
    flags = ["--out", str(tmp_path / "out"), "--verify"]
    assert main(flags) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.endswith("stages read, every byte; none damaged")
    assert all(line.startswith("DONE") for line in lines)
    png = next((tmp_path / "out" / "samples").rglob("*.png"))
    png.write_bytes(png.read_bytes()[:-1])
    assert main(flags) == 1
    first, *lines = capsys.readouterr().out.splitlines()
    assert "1 damaged" in first
    (line,) = (line for line in lines if not line.startswith("DONE"))
    assert " evaluate " in line
    victim = next((tmp_path / "out" / "stages" / "train").rglob("snapshot-*.pt"))
    victim.write_bytes(victim.read_bytes()[::-1])
    assert main(flags) == 1
    first, *lines = capsys.readouterr().out.splitlines()
    assert "2 damaged" in first
    assert sum(" train " in line for line in lines if not line.startswith("DONE")) == 1
    assert not victim.exists()


def test_a_dry_run_of_the_paper_grid_trains_once_per_ladder_and_network(tmp_path, capsys):
    assert main(["--grid", "paper", "--dry-run", "--device", "cpu", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert text.count("  train ") == 3
    assert "digits/ncsn/seed0, digits/ncsn_5/seed0" in text
    assert "FLOPs" in text
    assert "MiB" in text
    assert not (tmp_path / "stages").exists()


def a_part_of(out: Path, whole: Path) -> None:
    """Check that some cells of a grid have the results that they have in all of it."""
    found = results(out)
    del found["grid.json"]
    assert found
    assert found.items() <= results(whole).items()


def begin(folder, *flags):
    """Start a launcher whose jobs are processes, in a forked child and without a report."""
    return forked.start(
        forked.launcher,
        launch_command(folder, "--device", "cpu", *flags)[3:],
        log=folder / "log",
        fault=forked.NoReport(),
    )


@pytest.mark.slow
def test_workers_that_outlive_a_killed_launcher_do_no_harm(finished, tmp_path):
    flags = ("--executor", "local", "--workers", "3", "--only", "ncsn_124,ncsn_1245")
    process = begin(tmp_path, *flags)
    deadline = time.monotonic() + 300
    while not list((tmp_path / "out").glob("logs/*_log.out")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.join()
    run = launch(tmp_path, *flags)
    assert run.returncode == 0, run.stderr
    # Processes side by side give the same bytes as one.
    a_part_of(tmp_path / "out", finished / "out")
    assert (tmp_path / "out" / "report" / "index.html").exists()


@pytest.mark.slow
def test_a_killed_worker_is_reported_and_continued(tmp_path):
    settings = ("--set", "iterations=60", "--set", "snapshot_interval=30")
    flags = ("--executor", "local", "--workers", "1", "--only", "ncsnv2", *settings)
    process = begin(tmp_path, *flags)
    checkpoints = tmp_path / "out" / "stages" / "train"
    deadline = time.monotonic() + 300
    while not list(checkpoints.rglob("checkpoint-*.pt")) and time.monotonic() < deadline:
        time.sleep(0.02)
    victims = subprocess.run(
        ["pgrep", "-f", f"submitit.core._submit.*{tmp_path}"], capture_output=True, text=True
    ).stdout.split()
    assert victims
    for pid in victims:
        os.kill(int(pid), signal.SIGKILL)
    assert forked.wait(process) == 1
    assert "process died" in (tmp_path / "log").read_text()
    assert forked.wait(begin(tmp_path, *flags)) == 0, (tmp_path / "log").read_text()


def test_a_damaged_snapshot_is_named_and_made_again(finished, tmp_path, caplog, no_report):
    shutil.copytree(finished / "out", tmp_path / "out")
    victim = next((tmp_path / "out" / "stages" / "train").rglob("snapshot-*.pt"))
    damaged = bytearray(victim.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    victim.write_bytes(damaged)
    assert again(tmp_path, "--executor", "inline", "--threads", "1") == 0
    assert str(victim) in caplog.text
    assert "checksum" in caplog.text
    assert results(tmp_path / "out") == results(finished / "out")


def test_divergence_stops_one_cell_and_the_table_says_so(tmp_path, capsys, sketched):
    arguments = ["--grid", str(TOML), "--out", str(tmp_path / "out"), "--device", "cpu"]
    arguments += ["--executor", "inline", "--only", "ncsnv2", "--set", "learning_rate=1e30"]
    assert main(arguments) == 1
    table = pd.read_csv(tmp_path / "out" / "report" / "tables" / "ablation.csv")
    row = table[table["variant"] == "NCSNv2"].iloc[0]
    assert row["status"].startswith("diverged: training diverged: the loss is nan at iteration 2")
    assert "NCSN_1,2,4,5" in set(table["variant"])  # not run, and still a row
    capsys.readouterr()
    assert main(arguments) == 1
    assert "failed before" in capsys.readouterr().out
    assert main([*arguments, "--retry-failed"]) == 1
    assert "started: train" in capsys.readouterr().out


def test_seeds_may_be_added(finished, tmp_path, sketched):
    shutil.copytree(finished / "out", tmp_path / "out")
    assert again(tmp_path, "--only", "ncsnv2", "--executor", "inline", "--seeds", "2") == 0
    table = pd.read_csv(tmp_path / "out" / "report" / "tables" / "ablation.csv")
    assert set(table[table["variant"] == "NCSNv2"]["n_seeds"]) == {2}


def test_rows_of_other_settings_come_beside_those_that_are_there(
    finished, tmp_path, capsys, sketched
):
    """Trained and sampled with them, under a name and a column that say so."""
    shutil.copytree(finished / "out", tmp_path / "out")
    out = tmp_path / "out"
    before = {path: path.read_bytes() for path in (out / "stages").rglob("*.json")}
    flags = ("--set", "learning_rate=0.0002", "--only", "*ncsnv2*", "--executor", "inline")
    assert again(tmp_path, *flags) == 0
    assert "named after them (learning_rate)" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in before} == before
    table = pd.read_csv(out / "report" / "tables" / "ablation.csv")
    added = table[table["variant"] == "NCSNv2, learning_rate=0.0002"]
    assert set(added["status"]) == {"done"} and set(added["learning_rate"]) == {0.0002}
    own = table[table["variant"] == "NCSNv2"]
    assert set(own["learning_rate"]) == {0.001}
    assert set(own["distance_mean"]).isdisjoint(added["distance_mean"])
    page = (out / "report" / "index.html").read_text()
    assert "Learning rate" in page
    (cell,) = (c for c in load_manifest(out).units if c.slug == "ncsnv2-learning_rate-0.0002")
    assert (cell.train.learning_rate, cell.own) == (0.0002, (("learning_rate", 0.0002),))
    # The folder goes on with what it holds, and as it was begun.
    assert main(["--out", str(out), "--device", "cpu", "--only", "*v2*", "--dry-run"]) == 0
    assert " 0 of them to do" in capsys.readouterr().out


def test_values_of_a_setting_are_rows(finished, capsys):
    out = ("--out", str(finished / "out"), "--device", "cpu", "--dry-run")
    assert main([*out, "--vary", "ema_momentum=0.9,0.99", "--vary", "flip=false"]) == 0
    cells = re.findall(r"^cell digits/(\S+)/seed0", capsys.readouterr().out, re.M)
    # Each row that takes it: raw weights have no momentum.
    assert cells == [
        "ncsn_124-flip-false",
        *(f"{v}-ema_momentum-{m}-flip-false" for v in ("ncsn_1245", "ncsnv2") for m in (0.9, 0.99)),
    ]
    for bad, message in (
        ("width", "is not of the form key=value,value"),
        ("wide=1", "--vary wide: unknown; known: budget, preset"),
        ("width=a", "width = 'a' is not a whole number"),
        ("image_size=8,16", "--vary image_size: all rows of a data set have the same images"),
    ):
        assert main([*out, "--vary", bad]) == 2
        assert message in capsys.readouterr().err
    assert main([*out, "--vary", "width=2", "--vary", "width=3"]) == 2
    assert "--vary width: given twice" in capsys.readouterr().err


def test_a_folder_goes_on_with_its_own_budget_unless_another_is_given(tmp_path):
    begun = make_plan(parse_arguments(["--out", str(tmp_path), "--budget", "paper"]))
    GRID_FILE.save(begun.manifest, tmp_path)
    assert make_plan(parse_arguments(["--out", str(tmp_path)])).manifest.budget == "paper"
    plan = make_plan(parse_arguments(["--out", str(tmp_path), "--budget", "quick"]))
    assert plan.manifest.budget == "paper"
    assert [cell.label for cell in plan.units[-2:]] == [
        *("NCSNv2, budget=quick", "NCSNv2, consistent, budget=quick")
    ]
    assert [cell.train.width for cell in plan.units] == [16] * 5
    assert plan.units[0].own == (("budget", "quick"),)


@pytest.mark.parametrize("flags", [(), ("--executor", "slurm", "--slurm", "gpus=1")])
def test_nobody_gets_the_paper_s_budget_who_did_not_ask_for_it(tmp_path, monkeypatch, flags):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    plan = make_plan(parse_arguments(["--out", str(tmp_path), *flags]))
    assert (plan.context.device, plan.manifest.budget) == ("cuda", "quick")
    (line,) = plan.notes
    assert re.fullmatch(
        r"no --budget given, so quick: [\d.e+]+ FLOPs; "
        r"paper would take [\d.e+]+ and hour [\d.e+]+ \(--budget NAME\)",
        line,
    )
    asked = make_plan(parse_arguments(["--out", str(tmp_path), "--budget", "quick", *flags]))
    assert asked.notes == ()


def test_what_only_looks_needs_the_folder_alone_and_writes_nothing(finished, tmp_path, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    out = ("--out", str(finished / "out"), "--device", "cpu")
    assert main([*out, "--status"]) == 0
    manifest = load_manifest(finished / "out")
    assert capsys.readouterr().out.count("DONE ") == len(whole_jobs(manifest.units))
    assert main([*out, "--status", "--only", "ncsnv2"]) == 0
    assert "train" in capsys.readouterr().out
    assert main([*out, "--dry-run"]) == 0
    assert " 0 of them to do" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    absent = ("--out", str(tmp_path / "absent"), "--device", "cpu")
    assert main([*absent, "--status"]) == 2
    assert "holds no grid (no grid.json)" in capsys.readouterr().err
    assert main([*absent, "--dry-run"]) == 0
    assert not (tmp_path / "absent").exists()


def test_a_begun_folder_continues_without_its_grid_s_file(finished, capsys):
    out = ("--out", str(finished / "out"), "--device", "cpu")
    assert main([*out, "--executor", "inline"]) == 0
    said = capsys.readouterr().out
    assert "grid tiny: 3 cells" in said
    assert "nothing to do" in said
    assert main([*out, "--set", "width=3", "--dry-run"]) == 0
    assert "cell digits/ncsnv2-width-3/seed0" in capsys.readouterr().out
    assert main([*out, "--set", "image_size=16", "--dry-run"]) == 2
    assert "all rows of a folder have the same images" in capsys.readouterr().err


def test_a_second_launcher_is_told_who_holds_the_folder(finished, capsys):
    import fcntl

    with open(finished / "out" / "launcher.lock", "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert again(finished) == 2
    error = capsys.readouterr().err
    assert "is in use by process" in error


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), ("cpu", 1, 1)),
        (("--device", "cuda"), ("cuda", 1, 1)),
        (("--slurm", "gpus=2", "--slurm", "cpus=4"), ("cuda", 2, 4)),
        (("--gpus", "2", "--threads", "3"), ("cuda", 2, 3)),
        (("--gpus", "2", "--device", "cpu"), ("cpu", 2, 1)),
    ],
)
def test_on_slurm_a_device_is_what_is_asked_for_not_what_is_here(
    tmp_path, monkeypatch, flags, expected
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    arguments = ["--grid", str(TOML), "--out", str(tmp_path), "--executor", "slurm", *flags]
    plan = make_plan(parse_arguments(arguments))
    assert (plan.context.device, plan.gpus, plan.context.threads) == expected
    parameters = plan.slurm["train"].parameters(
        threads=plan.context.threads, cuda=plan.context.device == "cuda", code=tmp_path
    )
    assert parameters["slurm_ntasks_per_node"] == plan.gpus
    assert parameters.get("slurm_gpus_per_node", 0) == (plan.gpus if expected[0] == "cuda" else 0)


def test_a_kind_of_job_has_its_own_devices_and_threads(tmp_path):
    flags = ("train.gpus=8", "train.cpus=6", "evaluate.cpus=2", "evaluate.array_parallelism=5")
    pairs = [word for flag in flags for word in ("--slurm", flag)]
    arguments = ["--grid", str(TOML), "--out", str(tmp_path), "--executor", "slurm", *pairs]
    arguments += ["--set", "batch_size=8"]
    plan = make_plan(parse_arguments(arguments))
    assert (plan.context.device, plan.gpus, plan.context.threads) == ("cuda", 8, 6)
    assert [plan.slurm[kind].gpus for kind in JOB_KINDS] == [8, None, None]
    assert [plan.slurm[kind].threads for kind in JOB_KINDS] == [6, 2, 1]
    assert [plan.slurm[kind].array_parallelism for kind in JOB_KINDS] == [32, 5, 32]


def test_a_dry_run_for_slurm_shows_its_options_and_writes_nothing(tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["--grid", str(TOML), "--out", str(out), "--executor", "slurm"]
    assert main([*arguments, "--slurm", "train.time=3:00:00", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    (train,) = (line for line in shown.splitlines() if " job(s), train: sbatch " in line)
    assert " --time=180 " in train
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--executor", "slurm", "--out", "50%"], "Slurm reads % in the path of a log"),
        (
            ["--grid", "papers"],
            "known: paper, factorial, steps, successors, noise-conditioning, ema, released,",
        ),
        (["--grid", "absent.toml"], "grid file absent.toml cannot be read"),
        (["--datasets", "mnist"], "mnist"),
        (["--only", "ncsnv3"], "--only ncsnv3 matches no cell; there are: digits/ncsn/seed0"),
        (["--set", "widht=3"], "setting 'widht' is unknown"),
        (["--set", "sigma_begin=0.001"], "sigma_begin = 0.001 and sigma_end = 0.01"),
        (["--set", "n_levels=1"], "n_levels = 1 must be at least 2"),
        (["--set", "n_steps_each=0"], "n_steps_each = 0 must be at least 1"),
        (["--set", "step_size=1"], "step_size = 1 makes Langevin dynamics diverge"),
        (["--set", "ema_momentum=1"], "ema_momentum = 1.0 must lie in [0, 1)"),
        (["--set", "architecture=32"], "architecture = '32' is unknown"),
        (["--set", "image_size=9"], "image_size"),
        (["--only", "ncsn,ncsnv3"], "--only ncsnv3 matches no cell"),
        (["--only", ","], "--only ',' names no cell"),
        (["--seeds", "0"], "--seeds 0: must be at least 1"),
        (["--seeds", "1000000000"], "--seeds 1000000000: must be at least 1 and at most 10000"),
        (["--threads", "1000000000"], "--threads 1000000000: must be at least 1 and at most"),
        (["--out", "a/" * 2000], "--out: its path has"),
        (["--out", "Stra\udcdfe"], "--out 'Stra\\udcdfe' is not UTF-8"),
        (["--datasets", "imagefolder:a\nb"], "--datasets 'imagefolder:a\\nb' holds a control char"),
        (["--datasets", "patches", "--extractor", "digits-cnn"], "--datasets patches: extractor="),
        (["--extractor", "cifar-cnn", "--inception-weights", __file__], "has no use for them"),
        (["--inception-weights", __file__], "test_launch.py: holds no Inception weights"),
        (["--device", "cuda"], "--device cuda"),
        (["--inception-weights", "nowhere.pth"], "weights-inception-2015-12-05-6726825d.pth"),
        (["--dinov2-weights", "nowhere.pth"], "nowhere.pth: no such file; dinov2_vitl14_pretrain"),
        (["--extractor", "dinov2-vitl14"], "of facebookresearch/dinov2 with --dinov2-weights PATH"),
        (["--dinov2-weights", __file__, "--inception-weights", __file__], "two feature spaces"),
        (["--datasets", "imagefolder:nowhere", "--set", "image_size=8"], "nowhere"),
        (["--set", "width=512", "--set", "snapshot_interval=1"], "MiB are needed"),
    ],
)
def test_bad_input_is_one_line_before_any_work(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    out = tmp_path / "out"
    assert main(["--out", str(out), "--budget", "quick", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (out / "stages").exists()
    assert not (out / "grid.json").exists()


def test_a_corrupt_image_and_an_empty_folder_are_named(tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    flags = ["--datasets", f"imagefolder:{folder}", "--set", "image_size=8", "--device", "cpu"]
    arguments = ["--out", str(tmp_path / "out"), "--dry-run", *flags]
    assert main(arguments) == 2
    assert str(folder) in capsys.readouterr().err
    for i in range(4):
        Image.new("RGB", (9, 9), (i, 0, 0)).save(folder / f"{i}.png")
    (folder / "2.png").write_bytes(b"not an image")
    assert main(arguments) == 2
    assert "2.png" in capsys.readouterr().err


def test_an_incompatible_folder_is_refused(tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "grid.json").write_text('{"format": 99, "results_version": 1}')
    assert main(["--out", str(out), "--device", "cpu"]) == 2
    assert "incompatible version" in capsys.readouterr().err


def test_an_edited_network_is_noticed_and_its_results_made_again_when_asked_for(
    finished, tmp_path, capsys, monkeypatch, sketched
):
    shutil.copytree(finished / "out", tmp_path / "out")
    out = tmp_path / "out"
    flags = ("--executor", "inline", "--only", "ncsn_124")
    assert again(tmp_path, *flags) == 0
    assert "older than the code" not in capsys.readouterr().out
    own = provenance._meaning

    def edited(name):
        return own(name) + "edited" * (name == "scorekit.models.layers")

    monkeypatch.setattr(provenance, "_meaning", edited)
    monkeypatch.setattr("ablations.engine.stages.code_digest", lambda: "edited")
    provenance.modules_digest.cache_clear()
    assert again(tmp_path, *flags) == 0
    said = capsys.readouterr().out
    assert re.search(r"warning: results are older than the code .*, 1 train\): they are kept", said)
    assert "nothing to do" in said
    assert "Results are older than the code" in (out / "report" / "index.html").read_text()
    # Real images have no network in them.
    before = {path: path.stat().st_mtime_ns for path in out.rglob("result.json")}
    assert again(tmp_path, *flags, "--rerun", "changed") == 0
    said = capsys.readouterr().out
    assert "they are made again" in said and "started: train digits conditional" in said
    anew = {p.parent.parent.name for p, time in before.items() if p.stat().st_mtime_ns != time}
    assert anew == {"train", "sample", "loss", "features", "distance", "quality"}
    assert again(tmp_path, *flags, "--rerun", "changed") == 0
    assert "nothing to do" in capsys.readouterr().out
    provenance.modules_digest.cache_clear()


def test_a_network_from_a_file_is_sampled_and_measured_as_where_it_was_trained(
    finished, tmp_path, capsys, sketched
):
    """The same network, ladder, seed and n: the same samples and the same distance."""
    trained = next(c for c in load_manifest(finished / "out").units if c.slug == "ncsnv2")
    source = Context.reading(finished / "out", finished / "out" / "data")
    snapshot = source.store.directory(trained.train_stage()) / "snapshot-0000003.pt"
    shutil.copytree(finished / "out" / "data", tmp_path / "data")
    out = tmp_path / "out"
    flags = ["--grid", "released", "--out", str(out), "--data-root", str(tmp_path / "data")]
    flags += ["--device", "cpu", "--threads", "1", "--executor", "inline"]
    assert main(flags) == 2
    assert "--checkpoint PATH must give a network" in capsys.readouterr().err
    flags += ["--checkpoint", str(snapshot), "--datasets", "digits"]
    for key in ("n_selection", "n_final", "n_loss", "n_dump", "n_steps_each"):
        flags += ["--set", f"{key}={getattr(trained, key)}"]
    assert main([*flags, "--only", "snapshot-0000003, ema"]) == 0
    said = capsys.readouterr().out
    assert "started: read snapshot-0000003.pt" in said and "started: train" not in said
    raw, ema = load_manifest(out).units
    assert (raw.weights, ema.weights, ema.label) == ("raw", "ema", "snapshot-0000003, ema")
    own = Context.reading(out, tmp_path / "data").store
    (first,) = trained.sample_stages(3, final=False)
    (again,) = ema.sample_stages(3, final=False)
    for name in ("last.npy", "denoised.npy"):
        read = [
            (store.directory(stage) / name).read_bytes()
            for store, stage in ((source.store, first), (own, again))
        ]
        assert read[0] == read[1]
    table = pd.read_csv(out / "report" / "tables" / "ablation.csv")
    rows = table[table["variant"] == "snapshot-0000003, ema"]
    assert set(rows["status"]) == {"done"} and set(rows["weights"]) == {"EMA"}
    stage = trained.distance_stage(3, denoise=True, final=False)
    mine = ema.distance_stage(3, denoise=True, final=False)
    assert own.result(mine)["distance"] == source.store.result(stage)["distance"]
    # Settings of a training have no use for it, and another file is another row.
    assert main([*flags, "--set", "learning_rate=0.1", "--dry-run"]) == 2
    assert "where a checkpoint is sampled and nothing trained" in capsys.readouterr().err
    wrong = tmp_path / "wrong.pt"
    wrong.write_bytes(b"no network")
    assert main([*flags, "--checkpoint", str(wrong), "--dry-run"]) == 2
    assert "wrong.pt" in capsys.readouterr().err


def test_averages_come_beside_rows_that_were_trained_without_them(finished, tmp_path, capsys):
    """The rows that are there stay what they are, and one name stands for both trainings."""
    out = tmp_path / "out"
    shutil.copytree(finished / "out", out)
    grid = tmp_path / "more.toml"
    rows = [f'[[rows]]\nvariant = "ncsnv2"\nema = "{name}"\n' for name in ("0.5", "power:0.1")]
    grid.write_text('variants = ["ncsn_1234", "ncsnv2"]\n' + "".join(rows))
    flags = ["--out", str(out), "--device", "cpu"]
    plan = make_plan(parse_arguments([*flags, "--grid", f"{TOML},{grid}"]))
    known = {cell.name: cell for cell in load_manifest(out).units}
    cells = {cell.name: cell for cell in plan.manifest.units}
    assert {name: cells[name] for name in known} == known
    added = [cell for name, cell in cells.items() if name not in known]
    assert {cell.slug for cell in added} >= {"ncsnv2-ema-0.5", "ncsnv2-ema-power0.1"}
    averaged = [cell for cell in added if cell.ema]
    assert {cell.train.ema_profiles for cell in averaged} == {("0.5", "power:0.1")}
    labels = training_labels(cells.values())
    own = known["digits/ncsnv2/seed0"]
    assert labels[own.train_stage().digest] == labels[averaged[0].train_stage().digest]
    # And once they are there, the same command asks for nothing else.
    GRID_FILE.save(plan.manifest, out)
    again_planned = make_plan(parse_arguments([*flags, "--grid", f"{TOML},{grid}"]))
    assert again_planned.manifest == plan.manifest
