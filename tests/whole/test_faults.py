"""Kills and faults of the disk: whatever happens, the same command ends with the same results."""

import errno
import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import forked
import pytest
from forked import (
    FailAtWrites,
    KillAtNewWrite,
    NoReport,
    SmallFiles,
    Unprivileged,
    collector,
    kill_after,
    launcher,
    reporter,
    sketcher,
    wait,
    with_few_blocks,
)
from tiny_grid import TOML, results

pytestmark = pytest.mark.slow

#: From the innermost work to the outermost: a stage begins before those that it needs.
PHASES = ("train", "sample", "features", "reference", "distance", "quality", "baseline")


def arguments(out: Path, *flags: str) -> list[str]:
    """One network, one cell: a training, an evaluation and the reference rows."""
    return [
        *("--grid", str(TOML), "--only", "ncsnv2", "--out", str(out), "--device", "cpu"),
        *("--executor", "inline", "--threads", "1", *flags),
    ]


def start(function, *of_it, log, fault=None):
    """Start a child in which networks have few blocks."""
    return forked.start(with_few_blocks, function, *of_it, log=log, fault=fault)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """An output folder, and the seconds from its start to the beginning of its report."""
    folder = tmp_path_factory.mktemp("undisturbed")
    wait(start(time.sleep, 0, log=folder / "log"))  # the server of forks is up
    began = time.monotonic()
    process = start(launcher, arguments(folder / "out"), log=folder / "log")
    while not (folder / "out" / "report").exists():
        time.sleep(0.01)
        assert process.is_alive(), (folder / "log").read_text()
    seconds = time.monotonic() - began
    assert wait(process) == 0, (folder / "log").read_text()
    return folder / "out", seconds


def seeded() -> random.Random:
    """Return a generator whose seed is in the test's output, and can be given."""
    seed = int(os.environ.get("SCOREKIT_KILL_SEED", "0"))
    print(f"SCOREKIT_KILL_SEED={seed}")
    return random.Random(seed)


def same_report(out: Path, reference: Path) -> None:
    """Compare what of two reports does not depend on times."""
    for name in ("tables/ablation.csv", "tables/hyperparameters.csv"):
        assert (out / "report" / name).read_bytes() == (reference / "report" / name).read_bytes()
    assert (out / "report" / "index.html").read_text().endswith("</html>")
    assert not (out / "report.pending").exists()


def phase(out: Path) -> str:
    """Return what a killed launcher was doing, from its files."""
    begun = {path.parent.parent.name for path in out.rglob("settings.json")} & set(PHASES)
    if not begun:
        return "start"
    for kind in PHASES:
        for path in [*out.glob(f"*/{kind}/*/settings.json")]:
            if not (path.parent / "result.json").exists():
                return kind
    return "report" if (out / "report").exists() else "between"


def test_a_grid_killed_at_random_instants_ends_with_the_undisturbed_results(undisturbed, tmp_path):
    reference, seconds = undisturbed
    generator = seeded()
    wanted = results(reference)
    landed: Counter[str] = Counter()
    for number in range(20):
        out, log = tmp_path / f"out-{number}", tmp_path / f"log-{number}"
        last, limit = "", seconds / 3
        process = start(launcher, arguments(out), log=log, fault=NoReport())
        while kill_after(process, generator.uniform(0, limit)):
            now = phase(out)
            landed[now] += 1
            # Long enough in the end to get on, however busy the machine is.
            limit = 1.3 * limit if now == last else seconds / 3
            last = now
            process = start(launcher, arguments(out), log=log, fault=NoReport())
        assert process.exitcode == 0, log.read_text()
        assert results(out) == wanted, log.read_text()
        shutil.rmtree(out)
        if landed.total() >= 12 and min(landed[p] for p in ("train", "sample", "features")) >= 1:
            break
    print(number + 1, "grids, kills in", dict(landed))
    assert landed.total() >= 12
    assert min(landed[p] for p in ("train", "sample", "features")) >= 1


def test_collection_and_report_killed_at_random_instants_change_nothing(undisturbed, tmp_path):
    reference, _ = undisturbed
    generator = seeded()
    out, log = tmp_path / "out", tmp_path / "log"
    shutil.copytree(reference, out)
    shutil.rmtree(out / "report")
    wanted = results(reference)
    for _ in range(20):
        assert kill_after(start(collector, str(out), log=log), generator.uniform(0.02, 0.15))
    began = time.monotonic()
    assert wait(start(reporter, str(out), log=log)) == 0, log.read_text()
    seconds = time.monotonic() - began
    killed = 0
    while killed < 10:
        killed += kill_after(start(reporter, str(out), log=log), generator.uniform(0, seconds))
        page = (out / "report" / "index.html").read_text()
        assert page.endswith("</html>")  # the old one or the new one, whole
    (out / "report.pending").touch()
    assert wait(start(sketcher, arguments(out), log=log)) == 0, log.read_text()
    assert results(out) == wanted
    same_report(out, reference)


def test_a_grid_killed_at_every_write_ends_with_the_undisturbed_results(undisturbed, tmp_path):
    reference, _ = undisturbed
    out, log, seen = tmp_path / "out", tmp_path / "log", tmp_path / "seen"
    fault = KillAtNewWrite(str(out), str(seen))
    landed: Counter[str] = Counter()
    while (code := wait(start(sketcher, arguments(out), log=log, fault=fault))) != 0:
        assert code == -signal.SIGKILL, log.read_text()
        landed[phase(out)] += 1
    kills = seen.read_text().splitlines()
    print(len(kills), "kills in", dict(landed))
    assert len(set(kills)) == len(kills) == landed.total()
    assert {*PHASES, "start", "report"} <= set(landed)
    assert {key.split()[0] for key in kills} >= {"open", "fsync", "os.rename", "os.mkdir"}
    assert results(out) == results(reference)
    same_report(out, reference)


def damaged(kind: str, out: Path) -> Path:
    """Return a file of a kind in a finished folder."""
    found = sorted(out.glob(kind))
    assert found, f"no {kind} in the folder: {sorted(p.name for p in out.rglob('*'))}"
    return found[0]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    place = data.find(b'": ') + 4 if path.suffix == ".json" else len(data) * 3 // 4
    data[place] ^= 1
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def replace_by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside").touch()


# What is damaged, what is removed so that it is read again, and what the launcher then does.
KINDS = {
    "stages/train/*/result.json": ("", "again"),
    "stages/train/*/snapshot-0000003.pt": ("", "again"),
    "stages/train/*/checkpoint-0000006.pt": ("stages/train/*/result.json", "again"),
    "stages/train/*/losses.npz": ("", "again"),
    "stages/train/*/settings.json": ("stages/train/*/result.json", "unread"),
    "stages/sample/*/result.json": ("", "again"),
    "stages/sample/*/last.npy": ("", "again"),
    "stages/sample/*/denoised.npy": ("", "again"),
    "stages/features/*/features.npy": ("stages/distance/*/result.json", "again"),
    "stages/features/*/logits.npy": ("stages/quality/*/result.json", "again"),
    "stages/features/*/result.json": ("stages/distance/*/result.json", "again"),
    "stages/distance/*/result.json": ("", "again"),
    "stages/quality/*/result.json": ("", "again"),
    "stages/baseline/*/result.json": ("", "again"),
    "data/reference/*/statistics.npz": ("stages/baseline/*/result.json", "again"),
    "data/reference/*/features.npy": ("stages/baseline/*/result.json", "again"),
    "data/reference/*/result.json": ("stages/baseline/*/result.json", "again"),
    "data/digits-v1/train.npy": ("stages/train/*/result.json", "failed"),
    "data/digits-v1/store.json": ("stages/train/*/result.json", "again"),
    "data/max-distance-*.json": ("", "again"),
    "samples/*/manifest.json": ("", "again"),
    "samples/*/fake/00000.png": ("", "again"),
    "samples/*/real/00000.png": ("", "again"),
    "jobs/*.progress.json": ("stages/distance/*/result.json", "unread"),
    "jobs/evaluate-digits-ncsnv2-seed0.failure.json": ("", "unread"),
    "grid.json": ("", "refused"),
}


#: A changed bit comes upon every file, and of the others each upon every third.
OTHERS = (truncate, empty, replace_by_directory)


@pytest.mark.parametrize("damage", [flip, *OTHERS])
def test_a_damaged_file_of_any_kind_is_named_and_made_again(undisturbed, tmp_path, damage):
    reference, _ = undisturbed
    wanted = results(reference)
    kinds = [*KINDS.items()]
    for kind, (removed, expected) in kinds if damage is flip else kinds[OTHERS.index(damage) :: 3]:
        out, log = tmp_path / "out", tmp_path / "log"
        shutil.copytree(reference, out)
        if "failure" in kind:
            (out / kind).write_text('{"kind": "failed", "message": "it broke"}')
        for path in out.glob(removed) if removed else ():
            path.unlink()
        victim = damaged(kind, out)
        damage(victim)
        code = wait(start(launcher, arguments(out), log=log, fault=NoReport()))
        said = log.read_text()
        what = f"{kind}, {damage.__name__}: exit code {code}\n{said}"
        assert "Traceback" not in said, what
        if expected == "refused":
            assert code == 2 and f"{victim}" in said, what
            assert len([line for line in said.splitlines() if line.startswith("error:")]) == 1
            if victim.is_dir():
                shutil.rmtree(victim)
            victim.unlink(missing_ok=True)
        if expected in ("again", "failed") or code:
            assert str(victim) in said or victim.parent.name in said, what
        if code == 1:  # on record, with the reason
            assert expected == "failed" or "Is a directory" in said, what
            if victim.is_dir():
                shutil.rmtree(victim)
        if code:
            flags = ["--retry-failed"] if code == 1 else []
            code = wait(start(launcher, arguments(out, *flags), log=log, fault=NoReport()))
            assert code == 0, f"{what}\n{log.read_text()}"
        assert results(out) == wanted, what
        shutil.rmtree(out)
        log.unlink()


def done(out: Path) -> set[Path]:
    return set(out.rglob("result.json"))


def one_line(said: str) -> None:
    """Check that a launch says what is wrong in lines, and in one where that is all it says."""
    assert "Traceback" not in said, said
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) <= 1, said


def test_a_disk_that_fills_at_any_write_loses_nothing(undisturbed, tmp_path):
    reference, _ = undisturbed
    out = tmp_path / "out"
    attempts, codes = 0, Counter()
    code = 2
    while code != 0:
        log = tmp_path / f"log-{attempts}"
        before = done(out)
        # At each of the first changes, again when more is done, and then ever later.
        first = attempts % 23 + 1 if attempts < 46 else int(23 * 1.4 ** (attempts - 45))
        fault = FailAtWrites(str(out), first)
        code = wait(start(sketcher, arguments(out, "--retry-failed"), log=log, fault=fault))
        said = log.read_text()
        one_line(said)
        assert done(out) >= before, said
        if code:
            codes[code] += 1
            assert os.strerror(errno.ENOSPC) in said, said
        attempts += 1
    print(attempts, "attempts;", dict(codes))
    assert codes[2] > 5 and codes.total() > 20
    assert results(out) == results(reference)
    same_report(out, reference)


def test_a_file_too_large_is_a_failure_on_record_and_continued(undisturbed, tmp_path):
    reference, _ = undisturbed
    out, log = tmp_path / "out", tmp_path / "log"
    shutil.copytree(reference, out)
    for folder in ("stages/train", "report"):
        shutil.rmtree(out / folder)
    assert wait(start(sketcher, arguments(out), log=log, fault=SmallFiles(20_000))) == 2
    said = log.read_text()
    one_line(said)
    assert "FAILED: train digits" in said and os.strerror(errno.EFBIG) in said, said
    (failure,) = out.glob("jobs/train-*.failure.json")
    assert os.strerror(errno.EFBIG) in json.loads(failure.read_text())["message"]
    assert wait(start(sketcher, arguments(out), log=log)) == 1  # until it is asked for again
    assert "failed before" in log.read_text()
    assert wait(start(sketcher, arguments(out, "--retry-failed"), log=log)) == 0, log.read_text()
    assert results(out) == results(reference)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EIO])
def test_a_disk_that_takes_no_write_is_one_line(undisturbed, tmp_path, number):
    out, log = tmp_path / "out", tmp_path / "log"
    shutil.copytree(undisturbed[0], out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    fault = FailAtWrites(str(out), 1, number)
    assert wait(start(launcher, arguments(out), log=log, fault=fault)) == 2
    one_line(log.read_text())
    assert f"error: [Errno {number}] {os.strerror(number)}" in log.read_text()
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}


def test_somebody_elses_folder_is_one_line(undisturbed, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    shutil.copytree(undisturbed[0], out)
    for path in (*out.rglob("*"), out):
        path.chmod(0o555 if path.is_dir() else 0o444)
    fault = Unprivileged() if os.getuid() == 0 else None
    try:
        assert wait(start(launcher, arguments(out), log=log, fault=fault)) == 2, log.read_text()
        one_line(log.read_text())
        assert "error: [Errno 13] Permission denied: " in log.read_text()
    finally:
        for path in (out, *out.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
