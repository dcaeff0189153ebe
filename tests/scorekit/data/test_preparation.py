"""Preparation: the same bytes from any number of threads, after any kill, in bounded memory."""

import errno
import fcntl
import io
import json
import logging
import multiprocessing
import os
import signal
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import lmdb
import numpy as np
import pytest
from PIL import Image

from scorekit.data import imagefolder, preparation
from scorekit.data.registry import prepare
from scorekit.data.store import DataError, check

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
FORK = multiprocessing.get_context("fork")
N = 300
CORRUPT = 7  # in the order of names


def encoded(number: int, size: int = 12) -> bytes:
    out = io.BytesIO()
    pixels = np.random.Generator(np.random.Philox(number)).integers(0, 256, (size, size, 3))
    Image.fromarray(pixels.astype(np.uint8)).save(out, format="PNG")
    return out.getvalue()


def make(kind: str, folder: Path, corrupt: bool = False) -> str:
    """Write N images as a kind of source, without those of the test split; return its spelling."""
    files = {f"train/{i:04}.png": encoded(i) for i in range(N)} | {"test/0.png": encoded(N)}
    if corrupt:
        files[f"train/{CORRUPT:04}.png"] = files[f"train/{CORRUPT:04}.png"][:70]
    if kind == "lsun":
        for part, split in (("train", "train"), ("val", "test")):
            place = folder / f"tower_{part}_lmdb"
            place.mkdir(parents=True)
            with lmdb.open(str(place), map_size=2**26) as database, database.begin(write=True) as t:
                for name, data in files.items():
                    if name.startswith(split):
                        t.put(name.encode(), data)
        return f"tower:{folder}"
    if kind == "folder":
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        return f"imagefolder:{folder}"
    folder.mkdir()
    if kind == "zip":
        with zipfile.ZipFile(folder / "in.zip", "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(folder / f"in.{kind}", "w:xz") as archive:
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return f"imagefolder:{folder / f'in.{kind}'}"


KINDS = ["lsun", "folder", "zip", "tar.xz"]


def contents(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.iterdir()}


def decode_slowly(seconds: float) -> None:
    """Make decoding slow in this (child) process."""
    real = imagefolder.image_square

    def slow(*arguments):
        time.sleep(seconds)
        return real(*arguments)

    imagefolder.image_square = slow


def _child(name: str, root: Path, options: dict) -> None:
    preparation.SAVE_EVERY_S = 0.0
    decode_slowly(0.005)
    prepare(name, root, **options)


def kill_half_way(name: str, root: Path, options: dict) -> dict:
    """Prepare in a child, kill it -9 after the first record, and return that record."""
    child = FORK.Process(target=_child, args=(name, root, options))
    child.start()
    deadline = time.monotonic() + 60
    while not (records := list(root.glob("*.partial/progress.json"))):
        assert child.is_alive() and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    record = json.loads(records[0].read_text())
    assert 0 < record["n_done"] < N
    return record


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("corrupt", [False, True])
def test_killed_and_continued_is_the_undisturbed_store(tmp_path, monkeypatch, kind, corrupt):
    name = make(kind, tmp_path / "in", corrupt)
    options = {"image_size": 8, "skip_corrupt": corrupt}
    whole = prepare(name, tmp_path / "whole", workers=1, **options)
    other = prepare(name, tmp_path / "three", workers=3, **options)
    assert contents(whole.directory) == contents(other.directory)

    record = kill_half_way(name, tmp_path / "killed", {**options, "workers": 2})
    decoded = []
    real = imagefolder.image_square

    def counted(*arguments):
        decoded.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(imagefolder, "image_square", counted)
    after = prepare(name, tmp_path / "killed", **options)
    assert len(decoded) == N + 1 - record["n_done"]
    assert contents(after.directory) == contents(whole.directory)
    assert [path.name for path in (tmp_path / "killed").iterdir()] == [whole.directory.name]
    check(after.directory)


@pytest.mark.parametrize("step", ["write_record", "os.rename"])
@pytest.mark.parametrize("corrupt", [False, True])
def test_killed_at_the_end_and_continued(tmp_path, step, corrupt):
    name = make("zip", tmp_path / "in", corrupt)
    options = {"image_size": 8, "skip_corrupt": corrupt}
    whole = prepare(name, tmp_path / "whole", **options)

    def dying() -> None:
        def die(*arguments):
            os.kill(os.getpid(), signal.SIGKILL)

        preparation.SAVE_EVERY_S = 0.0
        if step == "os.rename":
            preparation.os.rename = die
        else:
            preparation.write_record = die
        prepare(name, tmp_path / "killed", **options)

    child = FORK.Process(target=dying)
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert not list((tmp_path / "killed").glob("*[0-9a-f]/store.json"))
    after = prepare(name, tmp_path / "killed", **options)
    assert contents(after.directory) == contents(whole.directory)


def test_a_source_that_changed_meanwhile_is_started_again(tmp_path, caplog):
    name = make("lsun", tmp_path / "in")
    kill_half_way(name, tmp_path / "out", {"image_size": 8})
    os.utime(tmp_path / "in" / "tower_train_lmdb" / "data.mdb", (1, 1))
    with caplog.at_level(logging.WARNING, logger="scorekit"):
        dataset = prepare(name, tmp_path / "out", image_size=8)
    assert "cannot be continued" in caplog.text and "another source" in caplog.text
    check(dataset.directory)


def test_a_damaged_record_is_started_again(tmp_path):
    name = make("lsun", tmp_path / "in")
    kill_half_way(name, tmp_path / "out", {"image_size": 8})
    (record,) = (tmp_path / "out").glob("*.partial/progress.json")
    record.write_text("{")
    check(prepare(name, tmp_path / "out", image_size=8).directory)


@pytest.mark.parametrize("kind", KINDS)
def test_a_corrupt_image_is_named_or_left_out(tmp_path, caplog, kind):
    name = make(kind, tmp_path / "in", corrupt=True)
    bad = f"train/{CORRUPT:04}.png"
    with pytest.raises(DataError, match=rf"{bad}: cannot be decoded") as caught:
        prepare(name, tmp_path / "out", image_size=12)
    assert "\n" not in str(caught.value) and list((tmp_path / "out").iterdir()) == []
    with caplog.at_level(logging.WARNING, logger="scorekit"):
        dataset = prepare(name, tmp_path / "out", image_size=12, skip_corrupt=True)
    assert bad in caplog.text
    (left_out,) = dataset.left_out
    assert left_out.endswith(bad)
    assert json.loads((dataset.directory / "store.json").read_text())["left_out"] == [left_out]
    check(dataset.directory)
    # the last image has taken the gap, the others are where they were
    order = list(range(N - 1))
    order[CORRUPT] = N - 1
    wanted = [np.asarray(Image.open(io.BytesIO(encoded(i)))).transpose(2, 0, 1) for i in order]
    assert np.array_equal(dataset.train, np.stack(wanted)) and len(dataset.test) == 1


def test_a_preparation_that_left_images_out_goes_on_only_when_told_so(tmp_path):
    name = make("lsun", tmp_path / "in", corrupt=True)
    kill_half_way(name, tmp_path / "out", {"image_size": 8, "skip_corrupt": True})
    with pytest.raises(DataError, match=rf"left out .*{CORRUPT:04}\.png.*--skip-corrupt"):
        prepare(name, tmp_path / "out", image_size=8)
    assert len(prepare(name, tmp_path / "out", image_size=8, skip_corrupt=True).train) == N - 1


def test_nothing_is_left_to_train_on(tmp_path):
    for i in range(3):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{i}.png").write_bytes(b"none")
    with pytest.raises(DataError, match="0 train images are left after 2 corrupt ones"):
        prepare(f"imagefolder:{tmp_path / 'in'}", tmp_path / "out", image_size=8, skip_corrupt=True)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_name_twice_in_an_archive_is_the_last_one(tmp_path):
    members = [("train/0.png", 1), ("train/1.png", 2), ("test/0.png", 3), ("train/0.png", 4)]
    with tarfile.open(tmp_path / "in.tar", "w") as archive:
        for name, number in members:
            member = tarfile.TarInfo(name)
            data = encoded(number)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    dataset = prepare(f"imagefolder:{tmp_path / 'in.tar'}", tmp_path / "out", image_size=12)
    last = np.asarray(Image.open(io.BytesIO(encoded(4)))).transpose(2, 0, 1)
    assert np.array_equal(dataset.train[0], last)


def test_a_full_disk_is_told_before_work_starts(tmp_path, monkeypatch):
    name = make("folder", tmp_path / "in")
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr(preparation.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DataError, match=r"needs 0 MB in .*, where 0 MB are free"):
        prepare(name, tmp_path / "out", image_size=8)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_disk_without_locks_takes_a_store(tmp_path, monkeypatch, number):
    def flock(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    check(prepare("digits", tmp_path).directory)


def test_no_more_threads_decode_than_asked_for(tmp_path, monkeypatch):
    name = make("folder", tmp_path / "in")
    threads = set()
    real = imagefolder.image_square

    def noted(*arguments):
        threads.add(threading.get_ident())
        return real(*arguments)

    monkeypatch.setattr(imagefolder, "image_square", noted)
    prepare(name, tmp_path / "out", image_size=8, workers=2)
    assert 1 <= len(threads) <= 2 and threading.get_ident() not in threads
    with pytest.raises(DataError, match="workers=0: a whole number from 1"):
        prepare(name, tmp_path / "other", image_size=8, workers=0)


def _peak_growth(name: str, root: Path, queue) -> None:
    def peak() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0])

    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = peak()
    prepare(name, root)
    queue.put((peak() - before) / 1024)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peak memory of a process is measured through /proc")
    n, file = 4000, io.BytesIO()
    Image.new("RGB", (160, 128), (200, 100, 50)).save(file, format="PNG")
    data = file.getvalue() + bytes(20_000)  # decoders stop at the image's end
    for part, count in (("train", n), ("val", 10)):
        place = tmp_path / f"bedroom_{part}_lmdb"
        place.mkdir()
        with lmdb.open(str(place), map_size=2**30) as database, database.begin(write=True) as t:
            for i in range(count):
                t.put(b"%040d" % i, data)
    queue = FORK.Queue()
    child = FORK.Process(target=_peak_growth, args=(f"bedroom:{tmp_path}", tmp_path / "out", queue))
    child.start()
    growth_mb = queue.get(timeout=300)
    child.join()
    decoded_mb = n * 3 * 128 * 128 / 2**20
    assert decoded_mb > 180
    # in-flight images and one slab of the lmdb; not the store, not the whole lmdb
    assert growth_mb < 120, growth_mb
