"""Files that are whole or absent."""

import contextlib
import dataclasses
import errno
import hashlib
import importlib
import inspect
import json
import os
import pickle
import pkgutil
import stat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import scorekit
from scorekit.files import (
    CorruptFile,
    atomic_write,
    load_array,
    load_arrays,
    read_json,
    read_sealed_json,
    remove_temporaries,
    set_aside,
    sha256_file,
    write_json,
    write_sealed_json,
)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "result.json"
    path.write_bytes(b"old")

    def half(file):
        file.write(b"new, but not who")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        atomic_write(path, half)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_atomic_write_replaces_and_respects_the_umask(tmp_path):
    path, plain = tmp_path / "a", tmp_path / "plain"
    plain.touch()
    path.write_bytes(b"old")
    atomic_write(path, lambda file: file.write(b"new") and None)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode == plain.stat().st_mode


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(
    max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(json_values)
def test_json_round_trip(tmp_path, value):
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value


def test_json_is_sorted_indented_and_ends_in_a_newline(tmp_path):
    write_json(tmp_path / "x.json", {"b": 1, "a": [2]})
    assert (tmp_path / "x.json").read_text() == '{\n "a": [\n  2\n ],\n "b": 1\n}\n'


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_json_has_no_nan_and_the_old_file_stays(tmp_path, value):
    write_json(tmp_path / "x.json", {"fid": None})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"fid": value})
    assert json.loads((tmp_path / "x.json").read_text()) == {"fid": None}


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe\x00"])
def test_json_that_does_not_parse_is_named(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(CorruptFile, match=r"x\.json: is not JSON") as caught:
        read_json(path)
    assert caught.value.path == path
    assert "not JSON" in caught.value.reason


def test_absent_json_is_absent_not_corrupt(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json")


def test_corrupt_file_survives_a_process_boundary(tmp_path):
    error = pickle.loads(pickle.dumps(CorruptFile(tmp_path / "x", "short")))
    assert (error.path, error.reason) == (tmp_path / "x", "short")
    assert str(error) == f"{tmp_path / 'x'}: short"


def test_sha256_file(tmp_path):
    (tmp_path / "x").write_bytes(b"abc" * 100_000)
    assert sha256_file(tmp_path / "x") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_set_aside_takes_the_first_free_number_for_files_and_folders(tmp_path):
    path = tmp_path / "x"
    path.write_text("one")
    assert set_aside(path) == tmp_path / "x.corrupt-1"
    path.mkdir()
    assert set_aside(path) == tmp_path / "x.corrupt-2"
    assert (tmp_path / "x.corrupt-1").read_text() == "one"
    assert (tmp_path / "x.corrupt-2").is_dir() and not path.exists()
    with pytest.raises(FileNotFoundError):
        set_aside(path)


def test_a_directory_in_a_files_place_is_a_corrupt_file(tmp_path):
    for read in (read_json, read_sealed_json, sha256_file):
        with pytest.raises(CorruptFile, match="is a directory"):
            read(tmp_path)


def test_json_nested_without_end_is_corrupt(tmp_path):
    (tmp_path / "x.json").write_text("[" * 100_000)
    with pytest.raises(CorruptFile, match="is not JSON"):
        read_json(tmp_path / "x.json")


records = st.dictionaries(st.text().filter(lambda key: key != "sha256"), json_values, min_size=1)


@settings(
    max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(record=records, place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_sealed_record_is_read_back_or_refused_when_a_bit_flips(tmp_path, record, place, bit):
    path = tmp_path / "x.json"
    write_sealed_json(path, record)
    assert read_sealed_json(path) == record
    assert read_json(path).keys() == record.keys() | {"sha256"}  # it is JSON for everybody else
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    path.write_bytes(data)
    found = None
    with contextlib.suppress(CorruptFile):
        found = read_sealed_json(path)
    # Read all the same where the flip was in the name of the checksum's own entry.
    assert found is None or {key: found[key] for key in record} == record


def test_an_unsealed_record_is_read_and_one_of_its_own_checksum_not_sealed(tmp_path):
    write_json(tmp_path / "x.json", {"a": 1})
    assert read_sealed_json(tmp_path / "x.json") == {"a": 1}
    for record in ({}, {"sha256": 1}):
        with pytest.raises(ValueError, match="not sealed"):
            write_sealed_json(tmp_path / "x.json", record)


def test_temporaries_are_removed_when_old_enough(tmp_path):
    (tmp_path / ".a.json.1-ab.tmp").write_text("half")
    (tmp_path / ".dump.1.tmp").mkdir()
    (tmp_path / "kept.tmp").touch()
    (tmp_path / ".kept").touch()
    remove_temporaries(tmp_path, older_s=3600)
    assert len(list(tmp_path.iterdir())) == 4
    remove_temporaries(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".kept", "kept.tmp"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EIO])
def test_a_disk_that_cannot_sync_folders_is_written_to(tmp_path, monkeypatch, number):
    real = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    expected = (
        pytest.raises(OSError, match=os.strerror(number))
        if number == errno.EIO
        else contextlib.nullcontext()
    )
    with expected:
        write_json(tmp_path / "x.json", [1])
    assert read_json(tmp_path / "x.json") == [1]


def test_a_text_is_accepted_wherever_a_path_is():
    """Of all public functions of the library; mypy sees to it that those who say so mean it."""
    wrong = []
    for module in pkgutil.walk_packages(scorekit.__path__, "scorekit."):
        for name, value in vars(importlib.import_module(module.name)).items():
            if name.startswith("_") or getattr(value, "__module__", "") != module.name:
                continue
            function = value.__init__ if inspect.isclass(value) else value
            # A dataclass is a record of what functions have made paths of.
            if not inspect.isfunction(function) or dataclasses.is_dataclass(value):
                continue
            for parameter in inspect.signature(function).parameters.values():
                if parameter.annotation in (Path, "Path"):
                    wrong.append(f"{module.name}.{name}({parameter.name})")
    assert not wrong


def test_arrays_are_read_or_their_file_is_named(tmp_path):
    path, several = tmp_path / "a.npy", tmp_path / "b.npz"
    np.save(path, np.arange(3))
    np.savez(several, a=np.arange(3), b=np.ones(2))
    for mapped in (False, True):
        assert load_array(path, mapped=mapped).tolist() == [0, 1, 2]
    assert load_arrays(several, ["a"])["a"].tolist() == [0, 1, 2]
    with pytest.raises(CorruptFile, match=r"b\.npz: holds several arrays"):
        load_array(several)
    with pytest.raises(CorruptFile, match=r"b\.npz.*c"):
        load_arrays(several, ["a", "c"])
    objects = tmp_path / "objects.npy"
    np.save(objects, np.array([{}], dtype=object), allow_pickle=True)
    path.write_bytes(path.read_bytes()[:40])
    several.write_bytes(several.read_bytes()[:200])
    for damaged, read in ((objects, load_array), (path, load_array)):
        with pytest.raises(CorruptFile, match=damaged.name):
            read(damaged)
    with pytest.raises(CorruptFile, match=r"b\.npz"):
        load_arrays(several, ["a"])
    for read in (load_array, lambda absent: load_arrays(absent, ["a"])):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "absent")
