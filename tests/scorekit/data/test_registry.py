"""Data sets: what is in them, and that a store is either whole or made again."""

import json
import logging
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scorekit.data import registry
from scorekit.data.embedded import EMBEDDED, digits_split, photo_patches
from scorekit.data.paper_datasets import PAPER_DATASETS
from scorekit.data.pixels import to_float, to_uint8
from scorekit.data.registry import KNOWN, prepare, register_dataset
from scorekit.data.store import DataError, KnownDataset, Request, Source, Splits, check
from scorekit.files import CorruptFile

# --- built-in sets --------------------------------------------------------------------------------


def test_every_data_set_is_known_by_its_own_name_and_none_twice():
    assert list(KNOWN) == [*PAPER_DATASETS, *EMBEDDED, "imagefolder"]
    assert len(KNOWN) == len(PAPER_DATASETS) + len(EMBEDDED) + 1
    assert all(known.spelling.startswith(name) for name, known in KNOWN.items())


def test_digits(tmp_path):
    digits = prepare("digits", tmp_path)
    assert digits.train.shape == (1500, 1, 8, 8) and digits.test.shape == (297, 1, 8, 8)
    assert digits.train.dtype == digits.test.dtype == np.uint8
    assert isinstance(digits.train, np.memmap) and not digits.train.flags.writeable
    assert (digits.name, digits.flip) == ("digits", False)
    assert (digits.channels, digits.image_size, digits.dim) == (1, 8, 64)
    assert digits.train.min() == 0 and digits.train.max() == 255
    # the rule round(v * 255 / 16) gives 17 grey values and no other
    assert np.array_equal(np.unique(digits.train), np.rint(np.arange(17) * 255 / 16))
    assert np.array_equal(digits_split("test")[0], digits.test)
    assert set(digits_split("train")[1]) == set(range(10))


def test_patches_are_many_contrasted_and_never_share_a_pixel(tmp_path):
    patches = prepare("patches", tmp_path)
    assert patches.train.shape[1:] == patches.test.shape[1:] == (3, 16, 16)
    assert len(patches.train) >= 4000 and len(patches.test) >= 1000
    assert patches.flip and patches.dim == 768
    for split in (patches.train, patches.test):
        assert split.mean(axis=1).std(axis=(1, 2)).min() >= 8
    covered = {}
    for split in ("train", "test"):
        images, places = photo_patches(split)
        covered[split] = {
            (photo, column)
            for photo, _, left in places.tolist()
            for column in range(left, left + 16)
        }
        assert np.array_equal(images, getattr(patches, split))
        assert set(places[:, 0]) == {0, 1}
    assert not covered["train"] & covered["test"]


def test_a_valid_store_is_never_written_again(tmp_path):
    first = prepare("digits", tmp_path)
    before = {path: path.stat().st_mtime_ns for path in first.directory.iterdir()}
    second = prepare("digits", tmp_path)
    assert {path: path.stat().st_mtime_ns for path in first.directory.iterdir()} == before
    assert second.fingerprint == first.fingerprint
    assert prepare("digits", tmp_path / "elsewhere").fingerprint == first.fingerprint
    check(first.directory)


@pytest.mark.parametrize(
    ("name", "image_size", "message"),
    [
        (
            "cifar11",
            None,
            "dataset=cifar11: unknown; known are .*cifar10.*digits, .*imagefolder:PATH.*patches",
        ),
        ("digits:8", None, "dataset=digits:8: write digits"),
        ("imagefolder", None, "dataset=imagefolder: write imagefolder:PATH"),
        ("imagefolder:", 8, "dataset=imagefolder:: write imagefolder:PATH"),
        ("digits", 32, "image_size=32: digits has 8"),
        ("patches", 8, "image_size=8: patches has 16"),
        ("imagefolder:/tmp", None, "--set image_size=32"),
        ("imagefolder:/tmp", 2, "image_size=2: a whole number from 4 to 1024"),
        ("imagefolder:/no/such/place", 8, "/no/such/place: no such folder"),
    ],
)
def test_bad_requests_are_one_line(tmp_path, name, image_size, message):
    with pytest.raises(DataError, match=message) as caught:
        prepare(name, tmp_path, image_size=image_size)
    assert "\n" not in str(caught.value)


# --- stores ---------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def future(path: Path) -> None:
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "format_version": 99}))


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("store.json", truncate),
        ("store.json", Path.unlink),
        ("store.json", future),
        ("store.json", lambda path: path.write_text("[]")),
        ("train.npy", truncate),
        ("test.npy", Path.unlink),
        ("train.npy", lambda path: path.write_bytes(b"x" * path.stat().st_size)),
    ],
)
def test_a_damaged_store_is_set_aside_and_made_again(tmp_path, caplog, file, damage):
    first = prepare("digits", tmp_path)
    damage(first.directory / file)
    with caplog.at_level(logging.WARNING, logger="scorekit"):
        again = prepare("digits", tmp_path)
    check(again.directory)
    assert again.fingerprint == first.fingerprint
    assert (tmp_path / "digits-v1.corrupt-1").is_dir()
    assert "digits-v1.corrupt-1" in caplog.text and file in caplog.text


@pytest.mark.parametrize("file", ["train.npy", "test.npy"])
def test_check_names_the_file_with_one_changed_byte(tmp_path, file):
    directory = prepare("digits", tmp_path).directory
    with open(directory / file, "r+b") as handle:
        handle.seek(-10, os.SEEK_END)
        byte = handle.read(1)
        handle.seek(-10, os.SEEK_END)
        handle.write(bytes([byte[0] ^ 1]))
    with pytest.raises(CorruptFile) as caught:
        check(directory)
    assert caught.value.path.name == file


def test_an_interrupted_prepare_leaves_nothing(tmp_path, monkeypatch):
    state = {"fail": True}

    def source(request: Request) -> Source:
        def images(start):
            for i in range(start, 3):
                if i == 2 and state["fail"]:
                    raise KeyboardInterrupt
                yield "train" if i < 2 else "test", i % 2, np.full((1, 8, 8), i, np.uint8)

        return Source(
            name="interrupted-for-test",
            store="interrupted",
            flip=False,
            build=lambda: Splits(shape=(1, 8, 8), n_train=2, n_test=1, images=images),
        )

    known = KnownDataset(source=source, spelling="interrupted-for-test")
    monkeypatch.setitem(KNOWN, "interrupted-for-test", known)
    with pytest.raises(KeyboardInterrupt):
        prepare("interrupted-for-test", tmp_path)
    assert list(tmp_path.iterdir()) == []
    state["fail"] = False
    assert prepare("interrupted-for-test", tmp_path).test.max() == 2


def _prepare_in_child(root: str, name: str, barrier, queue) -> None:
    barrier.wait()
    dataset = prepare(name, root)
    check(dataset.directory)
    queue.put(dataset.fingerprint)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_two_processes_at_once_both_end_up_with_the_store(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(2), context.Queue()
    children = [
        context.Process(target=_prepare_in_child, args=(str(tmp_path), "digits", barrier, queue))
        for _ in range(2)
    ]
    for child in children:
        child.start()
    fingerprints = {queue.get(timeout=60) for _ in children}
    for child in children:
        child.join(timeout=60)
    assert [child.exitcode for child in children] == [0, 0]
    assert len(fingerprints) == 1
    assert len(list(tmp_path.iterdir())) == 1


# --- conversions ----------------------------------------------------------------------------------


def test_uint8_to_float_and_back_is_exact():
    values = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    floats = to_float(values)
    assert floats.dtype == torch.float32 and floats.min() == 0 and floats.max() == 1
    assert torch.equal(to_uint8(floats), torch.from_numpy(values))
    assert torch.equal(to_float(torch.from_numpy(values)), floats)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1))
def test_to_uint8_clamps_and_rounds_to_nearest(values):
    x = torch.tensor(values, dtype=torch.float64)
    got = to_uint8(x)
    assert got.dtype == torch.uint8
    assert (got.double() - x.clamp(0, 1) * 255).abs().max() <= 0.5 + 1e-4


def test_conversions_refuse_what_has_no_answer():
    with pytest.raises(ValueError, match="1 of 2 values are NaN"):
        to_uint8(torch.tensor([0.5, float("nan")]))
    assert to_uint8(torch.tensor([float("inf"), -float("inf")])).tolist() == [255, 0]
    with pytest.raises(ValueError, match="uint8 is right"):
        to_float(np.zeros(3))
    with pytest.raises(ValueError, match="float"):
        to_uint8(torch.zeros(3, dtype=torch.uint8))


def test_a_data_set_of_ones_own_is_prepared_by_its_name(monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "KNOWN", dict(registry.KNOWN))

    def source(request):
        images = np.full((3, 1, 4, 4), int(request.argument or 7), np.uint8)
        build = lambda: Splits.of({"train": images, "test": images[:1]})  # noqa: E731
        return Source(name="mine", store="mine-v1", flip=False, build=build)

    register_dataset("mine", KnownDataset(source=source, spelling="mine[:PATH]"))
    assert set(prepare("mine", tmp_path).train.flat) == {7}
    with pytest.raises(DataError, match=r"known are .*digits.*, mine\[:PATH\]"):
        prepare("mined", tmp_path)
    with pytest.raises(ValueError, match="dataset = 'digits' is registered already"):
        register_dataset("digits", KnownDataset(source=source, spelling="digits"))
    with pytest.raises(ValueError, match=r"spelling = 'my' .*: other, other:PATH or other\["):
        register_dataset("other", KnownDataset(source=source, spelling="my"))
