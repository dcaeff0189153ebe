"""Readers of user input, given anything: a result or one of their own errors; nothing is run."""

import contextlib
import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from rated_dump import make_dump

from ablations.engine.settings import apply_overrides, parse_overrides
from ablations.hype.dumps import open_dumps
from ablations.pipeline.manifest import load_manifest
from ablations.studies.ncsnv2.grids import load_grid
from ablations.studies.ncsnv2.settings import Profile
from scorekit.checkpoints.export import export_snapshot, load_exported
from scorekit.checkpoints.store import CheckpointStore
from scorekit.checkpoints.tensors import find_tensors, load_tensors, save_tensors
from scorekit.data.imagefolder import Square, decode_image, list_images
from scorekit.data.registry import prepare
from scorekit.data.store import open_store
from scorekit.files import CorruptFile, read_json, sealed_json
from scorekit.metrics.frechet import feature_statistics, load_statistics, save_statistics
from scorekit.metrics.spaces import MetricError
from scorekit.models.released import ReleasedCheckpointError, load_released

anything = settings(
    max_examples=60, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


@st.composite
def mutated(draw: st.DrawFn, data: bytes) -> bytes:
    """The bytes of a good file with some replaced, cut out or put in."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(changed)))
        stop = min(len(changed), start + draw(st.integers(0, 8)))
        changed[start:stop] = draw(st.binary(max_size=8))
    return bytes(changed)


def places(node: object, path: tuple = ()) -> list[tuple]:
    """Every place in nested dicts and lists."""
    inner = (
        node.items()
        if isinstance(node, dict)
        else enumerate(node)
        if isinstance(node, list)
        else ()
    )
    return [path, *(place for key, value in inner for place in places(value, (*path, key)))]


@st.composite
def altered(draw: st.DrawFn, record: dict) -> object:
    """A good record with something else in one place, or with an entry less."""
    copy = json.loads(json.dumps(record))
    path = draw(st.sampled_from(places(copy)))
    if not path:
        return draw(values)
    node = copy
    for key in path[:-1]:
        node = node[key]
    if draw(st.booleans()):
        del node[path[-1]]
    else:
        node[path[-1]] = draw(values)
    return copy


GRID = b"""name = "mine"
variants = ["ncsn_5", "ncsnv2"]
datasets = ["digits"]
seeds = 2
budget = "quick"
[set]
width = 32
sigma_end = 0.01
[[rows]]
variant = "ncsnv2"
sampler = "consistent"
n_steps_each = 3
"""


def read_grid(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with contextlib.suppress(ValueError):
        grid = load_grid(str(path))
        apply_overrides(Profile(), grid.overrides)


@anything
@given(data=st.binary(max_size=200) | mutated(GRID))
def test_toml_grids(tmp_path, data):
    read_grid(tmp_path / "grid.toml", data)


def toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value) if isinstance(value, str | bool | int) else repr(value)


@anything
@given(
    key=st.sampled_from(["name", "variants", "rows", "datasets", "seeds", "budget", "set"]),
    value=values,
    row=st.dictionaries(st.sampled_from(["variant", "sampler", "step_size", "x"]), values),
)
def test_toml_grids_of_other_types(tmp_path, key, value, row):
    text = f'variants = ["ncsnv2"]\nrows = [{toml(row)}]\n{key} = {toml(value)}\n'
    read_grid(tmp_path / "grid.toml", text.encode(errors="replace"))


@anything
@given(
    texts=st.lists(
        st.text(max_size=20)
        | st.builds(
            "{}={}".format,
            st.sampled_from(sorted(Profile.__dataclass_fields__)),
            st.text(max_size=8) | st.integers() | st.floats(),
        ),
        max_size=3,
    )
)
def test_overrides(texts):
    with contextlib.suppress(ValueError):
        apply_overrides(Profile(), parse_overrides(texts, Profile))


@anything
@given(data=st.data())
def test_manifests(finished, tmp_path, data):
    good = (finished / "out" / "grid.json").read_bytes()
    record = json.loads(good)
    del record["sha256"]
    record["cells"] = record["cells"][:1]
    content = data.draw(
        st.binary(max_size=50)
        | mutated(good)
        | altered(record).map(lambda other: json.dumps(other).encode(errors="replace"))
    )
    (tmp_path / "grid.json").write_bytes(content)
    with contextlib.suppress(ValueError):
        load_manifest(tmp_path)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return prepare("digits", tmp_path_factory.mktemp("store")).directory


@anything
@given(data=st.data())
def test_records_of_data_stores(store, data):
    path = store / "store.json"
    good = path.read_bytes()
    record = json.loads(good)
    del record["sha256"]
    other = data.draw(st.binary(max_size=50) | mutated(good) | altered(record).map(json.dumps))
    path.write_bytes(other if isinstance(other, bytes) else other.encode(errors="replace"))
    try:
        with contextlib.suppress(CorruptFile):
            open_store(store)
    finally:
        path.write_bytes(good)


class Malicious:
    """Makes a folder when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@anything
@given(data=st.data())
def test_checkpoints(tmp_path, data):
    path = tmp_path / "checkpoint-0000001.pt"
    save_tensors(path, {"iteration": 1, "x": torch.zeros(3)})
    path.write_bytes(data.draw(st.binary(max_size=80) | mutated(path.read_bytes())))
    with contextlib.suppress(CorruptFile):
        assert load_tensors(path)["iteration"] == 1  # nothing was changed after all
    find_tensors(path)
    assert CheckpointStore(tmp_path).load_last() is None or path.exists()
    for aside in tmp_path.glob("*.corrupt-*"):
        aside.unlink()


def test_code_in_a_checkpoint_with_a_right_checksum_is_not_run(tmp_path):
    canary, path = tmp_path / "canary", tmp_path / "checkpoint-0000001.pt"
    save_tensors(path, {"iteration": Malicious(canary)})
    for read in (load_tensors, find_tensors, lambda p: CheckpointStore(tmp_path).load_last()):
        save_tensors(path, {"iteration": Malicious(canary)})
        with contextlib.suppress(CorruptFile):
            assert read(path) is None
    assert not canary.exists()
    assert list(tmp_path.glob("*.corrupt-*"))


@anything
@given(data=st.data())
def test_released_checkpoints(tmp_path, data):
    buffer = io.BytesIO()
    torch.save([{"module.begin_conv.weight": torch.zeros(4, 3, 3, 3)}, {}, 0, 0, {}], buffer)
    path = tmp_path / "released.pth"
    path.write_bytes(data.draw(st.binary(max_size=80) | mutated(buffer.getvalue())))
    with pytest.raises(ReleasedCheckpointError):
        load_released(path)


@anything
@given(data=st.data())
def test_exported_weights(tmp_path, data):
    save_tensors(tmp_path / "snapshot-0000007.pt", {"ema": {"w": torch.ones(2, 3)}})
    path = tmp_path / "out.safetensors"
    export_snapshot(tmp_path / "snapshot-0000007.pt", path)
    path.write_bytes(data.draw(st.binary(max_size=50) | mutated(path.read_bytes())))
    with contextlib.suppress(CorruptFile):
        load_exported(path)


def picture(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(buffer, kind)
    return buffer.getvalue()


PICTURES = [picture(kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP")]


@anything
@given(data=st.binary(max_size=200) | st.sampled_from(PICTURES).flatmap(mutated))
def test_images(data):
    with contextlib.suppress(ValueError):
        image = decode_image(lambda: io.BytesIO(data), "x.png", Square(size=8))
        assert (image.shape, image.dtype) == ((3, 8, 8), np.uint8)


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as target:
        target.writestr("a/x.png", PICTURES[0])
    return buffer.getvalue()


@anything
@given(
    name=st.sampled_from(["x.zip", "x.tar", "x.tar.gz", "x.tar.xz"]),
    data=st.binary(max_size=200) | mutated(archive()),
)
def test_archives_of_images(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with contextlib.suppress(ValueError):
        list_images(tmp_path / name)


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
    return make_dump(tmp_path_factory.mktemp("dump") / "digits-ncsnv2")


@anything
@given(data=st.data())
def test_manifests_of_dumps(dump, data):
    path = dump / "manifest.json"
    good = path.read_bytes()
    record = read_json(path)
    record["images"] = record["images"][:2]
    other = data.draw(st.binary(max_size=50) | mutated(good) | altered(record).map(json.dumps))
    path.write_bytes(other if isinstance(other, bytes) else other.encode(errors="replace"))
    try:
        with contextlib.suppress(ValueError):
            for opened in open_dumps(dump):
                json.dumps(opened.label)
    finally:
        path.write_bytes(good)


@anything
@given(data=st.data())
def test_statistics(tmp_path, data):
    path = tmp_path / "s.npz"
    save_statistics(path, feature_statistics(np.eye(5, 3)))
    path.write_bytes(data.draw(st.binary(max_size=80) | mutated(path.read_bytes())))
    with contextlib.suppress(CorruptFile, MetricError):
        load_statistics(path)


def test_code_in_statistics_is_not_run(tmp_path):
    canary, path = tmp_path / "canary", tmp_path / "s.npz"
    evil = np.array([Malicious(canary)], dtype=object)
    np.savez(path, mu=evil, sigma=evil)
    with pytest.raises(CorruptFile):
        load_statistics(path, n=5)
    path.write_bytes(pickle.dumps(Malicious(canary)))
    with pytest.raises(CorruptFile):
        load_statistics(path, n=5)
    assert not canary.exists()
    pickle.loads(path.read_bytes())  # it would have done harm
    assert canary.exists()


def test_a_sealed_manifest_whose_entries_are_not_what_they_should_be(tmp_path):
    for record in ({"format": 1}, {"format": 1, "results_version": 3, "cells": [1], "grid": []}):
        (tmp_path / "grid.json").write_bytes(sealed_json(record))
        with pytest.raises(ValueError, match=r"incompatible version|grid\.json is damaged"):
            load_manifest(tmp_path)
