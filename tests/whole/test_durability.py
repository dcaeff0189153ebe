"""What a power cut leaves: the calls that make files durable, recorded in their order.

A kill does not show a missing fsync, since the system still writes what it was given; here the
calls themselves are looked at. What reaches a name in a folder is on the disk before, and the
folder after; what vouches for files comes after them; what is replaced goes after its replacement.
"""

import fcntl
import json
import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from resolved import cell
from tiny_training import SETTINGS

from ablations.engine import code_snapshot, lock
from ablations.engine.lock import launcher_lock
from ablations.engine.stages import Stage, StageStore
from ablations.hype.ratings import Ratings
from ablations.pipeline.dumps import dump_name, dump_samples
from scorekit import files
from scorekit.checkpoints.store import CheckpointStore
from scorekit.checkpoints.tensors import save_tensors
from scorekit.data import preparation
from scorekit.data.registry import prepare
from scorekit.data.store import Dataset
from scorekit.metrics import frechet
from scorekit.training.trainer import Trainer


class Calls:
    """Stands in for the functions of ``os`` and ``fcntl`` that change files, and records them.

    A record is the function's name and the path as ``named`` gives it; ``at`` is called before.
    """

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path) -> None:
        self.folder, self.seen = folder, []
        self.at = lambda name, path: None
        self._patch(patch, os, "fsync", lambda file: os.readlink(f"/proc/self/fd/{file}"))
        for name in ("unlink", "utime"):
            self._patch(patch, os, name, lambda path, *stamps: path)
        for name in ("rename", "replace", "link"):
            self._patch(patch, os, name, lambda source, target: target)
        self._patch(patch, fcntl, "flock", lambda file, operation: str(file.name))

    def _patch(self, patch, module, name, path_of) -> None:
        real = getattr(module, name)
        shown = "rename" if name == "replace" else name

        def recorded(*arguments, **keywords):
            path = Path(path_of(*arguments))
            if path.is_relative_to(self.folder):
                self.at(shown, path)
                self.seen.append((shown, self.named(path)))
            return real(*arguments, **keywords)

        patch.setattr(module, name, recorded)

    def named(self, path: Path) -> str:
        """The path below the folder; a temporary file, there under its own name, as TEMPORARY."""
        name = str(path.relative_to(self.folder))
        return str(Path(name).parent / "TEMPORARY") if name.endswith(".tmp") else name

    def taken(self) -> list[tuple[str, str]]:
        """What was recorded since the last time."""
        seen, self.seen = self.seen, []
        return seen


@pytest.fixture
def calls(monkeypatch, tmp_path):
    return Calls(monkeypatch, tmp_path)


def in_order(calls: list[tuple[str, str]], *wanted: tuple[str, str]) -> None:
    """Each wanted call is there, behind the one before it."""
    at = -1
    for call in wanted:
        assert call in calls[at + 1 :], f"{call} is not there after {calls[at]}: {calls}"
        at = calls.index(call, at + 1)


def is_locked(path: Path) -> bool:
    """Whether somebody alone holds a lock file; the recorder does not see that it is asked."""
    with open(os.open(path, os.O_RDWR)) as file:  # whose name is a number
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def durable(name: str) -> list[tuple[str, str]]:
    folder = str(Path(name).parent)
    return [("fsync", str(Path(folder, "TEMPORARY"))), ("rename", name), ("fsync", folder)]


# Files

RECORD = {"a": [1] * 5000}
STATISTICS = frechet.FeatureStatistics(n=9, mean=np.ones(64), covariance=np.eye(64))
WRITERS = {
    "bytes": lambda path: files.write_bytes(path, b"x" * 70_000),
    "json": lambda path: files.write_json(path, RECORD),
    "sealed": lambda path: files.write_sealed_json(path, RECORD),
    "array": lambda path: files.save_array(path, np.ones(9999)),
    "tensors": lambda path: save_tensors(path, {"a": torch.ones(9999)}),
    "statistics": lambda path: frechet.save_statistics(path, STATISTICS),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_file_is_on_the_disk_before_its_name_and_its_folder_after(writer, calls, tmp_path):
    path = tmp_path / "x.npy"
    path.write_bytes(b"old")
    sizes = []

    def at(name, seen):
        if name == "fsync":
            sizes.append(seen.stat().st_size)
        if name == "rename":
            assert path.read_bytes() == b"old"

    calls.at = at
    WRITERS[writer](path)
    assert calls.taken() == durable("x.npy")
    assert sizes[0] == path.stat().st_size  # all of it was there to be flushed
    assert [p.name for p in tmp_path.iterdir()] == ["x.npy"]


@pytest.mark.parametrize("refused", ["fsync", "rename"])
def test_what_cannot_be_flushed_or_renamed_leaves_the_old_file(refused, calls, tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")

    def at(name, seen):
        if name == refused:
            raise OSError(28, "No space left on device")

    calls.at = at
    with pytest.raises(OSError, match="No space left"):
        files.write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


# Stages


def test_a_stage_is_worked_on_under_its_lock_and_its_result_is_written_last(calls, tmp_path):
    stage = Stage("train", {"width": 2})
    folder = f"train/{stage.digest}"
    directory = tmp_path / folder

    def execute(place):
        return {"value": 7}, [files.save_array(place / "data.npy", np.ones(3))]

    def at(name, path):
        if name == "rename":
            assert is_locked(directory / "lock")

    calls.at = at
    directory.mkdir(parents=True)
    (directory / ".killed.tmp").write_bytes(b"half")
    StageStore(tmp_path).run(stage, execute)
    assert calls.taken() == [
        ("flock", f"{folder}/lock"),
        ("unlink", f"{folder}/TEMPORARY"),
        *durable(f"{folder}/settings.json"),
        *durable(f"{folder}/data.npy"),
        *durable(f"{folder}/result.json"),
    ]
    assert not is_locked(directory / "lock")


@pytest.mark.parametrize("change", ["content", "size", "nothing"])
def test_a_files_stamps_say_whether_it_is_read_again(change, tmp_path, monkeypatch):
    stage = Stage("train", {})
    path = tmp_path / "train" / stage.digest / "data.bin"

    def execute(directory):
        path.write_bytes(b"result")
        return {}, [path]

    store = StageStore(tmp_path)
    store.run(stage, execute)
    assert store.result(stage) == {}
    stamps = path.stat()
    read = []
    sha256 = files.sha256_file
    monkeypatch.setattr(
        "ablations.engine.intact.sha256_file", lambda path: read.append(path) or sha256(path)
    )
    if change == "content":  # as long as before, a nanosecond later
        path.write_bytes(b"resulT")
        os.utime(path, ns=(stamps.st_atime_ns, stamps.st_mtime_ns + 1))
    elif change == "size":
        path.write_bytes(b"resul")
        os.utime(path, ns=(stamps.st_atime_ns, stamps.st_mtime_ns))
    assert (store.result(stage) is None) is (change != "nothing")
    assert len(read) == (change != "nothing")


# Training


def test_a_checkpoint_is_removed_after_the_one_that_replaces_it_is_on_the_disk(calls, tmp_path):
    store = CheckpointStore(tmp_path, keep=1)
    store.save(3, {"iteration": 3}, passing=True)
    store.save(4, {"iteration": 4}, is_best=True)
    calls.taken()
    store.save(5, {"iteration": 5}, is_best=True)
    assert calls.taken() == [
        *durable("checkpoint-0000005.pt"),
        ("unlink", "checkpoint-0000004.pt"),
        *durable("best-0000005.pt"),
        ("unlink", "best-0000004.pt"),
    ]


def test_a_snapshot_is_on_the_disk_before_the_checkpoint_that_goes_on_from_it(calls, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (9, 1, 8, 8), dtype=np.uint8)
    dataset = Dataset(name="made", train=images, test=images, flip=True, fingerprint="")
    settings = replace(SETTINGS, iterations=2, snapshot_interval=1, test_interval=2)
    Trainer(settings, dataset, tmp_path, compile=False).run()
    renamed = [path for name, path in calls.taken() if name == "rename"]
    assert renamed == [
        "snapshot-0000001.pt",
        "checkpoint-0000001.pt",
        "snapshot-0000002.pt",
        "checkpoint-0000002.pt",
        "best-0000002.pt",
    ]


# Data


def test_images_are_on_the_disk_before_the_record_and_the_store_appears_whole(calls, tmp_path):
    calls.at = lambda name, path: (
        path == tmp_path / "digits-v1" and _holds(tmp_path / "digits-v1.partial")
    )
    prepare("digits", tmp_path)
    seen = calls.taken()
    partial = "digits-v1.partial"
    assert seen[0] == ("flock", ".digits-v1.lock")
    for split in ("train", "test"):
        in_order(seen, ("fsync", f"{partial}/{split}.npy"), ("rename", f"{partial}/store.json"))
    in_order(
        seen,
        *durable(f"{partial}/store.json"),
        ("rename", "digits-v1"),
        ("fsync", "."),
        ("unlink", ".digits-v1.lock"),
    )


def _holds(partial: Path) -> None:
    names = {path.name for path in partial.iterdir()}
    assert names == {"train.npy", "test.npy", "store.json"}


def test_what_was_prepared_is_on_the_disk_before_the_progress_that_says_so(
    calls, tmp_path, monkeypatch
):
    monkeypatch.setattr(preparation, "SAVE_EVERY_S", 0.0)
    prepare("digits", tmp_path)
    seen, partial = calls.taken(), "digits-v1.partial"
    saves = [i for i, call in enumerate(seen) if call == ("rename", f"{partial}/progress.json")]
    assert len(saves) > 2
    for place in saves:
        assert seen[place - 3 : place] == [
            ("fsync", f"{partial}/train.npy"),
            ("fsync", f"{partial}/test.npy"),
            ("fsync", f"{partial}/TEMPORARY"),
        ]
    in_order(
        seen,
        ("rename", f"{partial}/store.json"),
        ("unlink", f"{partial}/progress.json"),
        ("rename", "digits-v1"),
    )


# What people and launchers leave


def test_an_answer_is_on_the_disk_before_it_counts(calls, tmp_path):
    ratings = Ratings(tmp_path / "ratings", [])
    flushed = []
    calls.at = lambda name, path: name == "fsync" and flushed.append(path.stat().st_size)
    path = tmp_path / "ratings" / "ann.jsonl"
    for answers in range(2):
        ratings._append("ann", {"answer": answers})
        assert flushed[0] == path.stat().st_size
        new = [("fsync", "ratings")] if answers == 0 else []
        assert [c for c in calls.taken() if c[0] == "fsync"] == [
            ("fsync", "ratings/ann.jsonl"),
            *new,
        ]
        flushed.clear()
    ratings.close()


def test_a_dump_appears_whole_with_its_manifest_written_after_its_images(calls, tmp_path):
    made = cell()
    name = dump_name(made, denoise=True)
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 8, 8), dtype=np.uint8)

    def at(call, path):
        if path.name == "manifest.json" and call == "rename":
            assert len(list(path.parent.glob("*/*.png"))) == 6
            assert not (tmp_path / name).exists()

    calls.at = at
    dump_samples(
        made,
        denoise=True,
        checkpoint="0" * 64,
        iteration=3,
        fake=images,
        real=images,
        directory=tmp_path,
    )
    renamed = [Path(path).name for call, path in calls.taken() if call == "rename"]
    assert renamed == ["manifest.json", name]


def test_a_copy_of_the_code_appears_whole(calls, tmp_path):
    copied = len(code_snapshot._files())

    def at(call, path):
        if call == "rename":
            (half,) = (path.parent).glob(".*.tmp")
            assert sum(p.is_file() for p in half.rglob("*")) == copied
            assert not path.exists()

    calls.at = at
    folder = code_snapshot.snapshot_code(tmp_path)
    assert calls.taken() == [("rename", str(folder.relative_to(tmp_path)))]


# The launcher's lock and lease


def test_the_lock_is_taken_before_the_lease_and_released_after_it(calls, tmp_path):
    def at(name, path):
        if name == "unlink":
            assert is_locked(tmp_path / "launcher.lock")

    calls.at = at
    with launcher_lock(tmp_path):
        assert calls.taken() == [("flock", "launcher.lock")]
        assert json.loads((tmp_path / "launcher.lease").read_text())["pid"] == os.getpid()
    assert calls.taken() == [("unlink", "launcher.lease")]
    assert not is_locked(tmp_path / "launcher.lock")


def test_a_lease_is_stamped_at_every_beat_and_only_while_it_is_held(calls, tmp_path, monkeypatch):
    beats = []

    class Beats(threading.Event):
        """Three beats without waiting, then the end."""

        def wait(self, timeout=None):
            beats.append(timeout)
            return len(beats) > 3 and super().wait(10)

    mine = lock._own_lease()
    path = tmp_path / "launcher.lease"
    path.write_text(json.dumps(lock.asdict(mine)))
    monkeypatch.setattr(lock, "threading", SimpleNamespace(Event=Beats, Thread=threading.Thread))
    with lock._touched(path, mine, 2.5):
        end = time.monotonic() + 20
        while len(beats) <= 3 and time.monotonic() < end:
            time.sleep(0.001)
    assert calls.taken() == [("utime", "launcher.lease")] * 3
    assert set(beats) == {2.5}


def test_a_lease_of_another_is_never_stamped_nor_removed(calls, tmp_path, monkeypatch):
    path = tmp_path / "launcher.lease"
    interrupted = []
    monkeypatch.setattr(lock, "interrupt_main_thread", lambda: interrupted.append(True))

    def hold() -> None:
        with launcher_lock(tmp_path, beat_s=0.01):
            record = json.loads(path.read_text())
            calls.taken()
            path.write_text(json.dumps(record | {"token": "ab" * 8}))
            end = time.monotonic() + 20
            while not interrupted and time.monotonic() < end:
                time.sleep(0.001)

    with pytest.raises(ValueError, match="was taken over by"):
        hold()
    assert len(calls.taken()) <= 1  # at most the beat that was under way
    assert json.loads(path.read_text())["token"] == "ab" * 8


def test_a_lease_that_changed_while_it_was_put_aside_is_put_back(calls, tmp_path):
    mine, path = lock._own_lease(), tmp_path / "launcher.lease"
    path.write_bytes(b"another's")
    lock._remove(path, b"a dead one's", mine)
    assert path.read_bytes() == b"another's"
    aside = [("rename", "TEMPORARY"), ("link", "launcher.lease"), ("unlink", "TEMPORARY")]
    assert calls.taken() == aside
    lock._remove(path, b"another's", mine)
    assert not path.exists()
    assert calls.taken() == [aside[0], aside[2]]
