"""Exported snapshots: one safetensors file, exact, with what it is of."""

import json

import pytest
import safetensors
import torch
from tiny_training import SETTINGS

from scorekit.checkpoints.export import FORMAT, export_snapshot, load_exported
from scorekit.checkpoints.store import snapshot_path
from scorekit.checkpoints.tensors import save_tensors
from scorekit.files import CorruptFile, write_json
from scorekit.training.networks import build_network


@pytest.fixture
def snapshot(tmp_path):
    """One as the trainer writes it (channels last), beside the settings of its run."""
    states = {}
    for number, name in enumerate(("raw", "ema")):
        network = build_network(SETTINGS, 1).to(memory_format=torch.channels_last)
        state = {key: value + number for key, value in network.state_dict().items()}
        states[name] = state | {"half": torch.rand(3).bfloat16(), "count": torch.tensor(7)}
    assert any(not value.is_contiguous() for value in states["raw"].values())
    path = snapshot_path(tmp_path, 12)
    save_tensors(path, states)
    write_json(tmp_path / "settings.json", {"kind": "train", "width": SETTINGS.width})
    return path, states


@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_weights_come_back_exactly_with_what_they_are(snapshot, tmp_path, weights):
    path, states = snapshot
    export_snapshot(path, tmp_path / "a.safetensors", weights=weights)
    loaded, metadata = load_exported(tmp_path / "a.safetensors")
    assert loaded.keys() == states[weights].keys()
    for name, expected in states[weights].items():
        assert loaded[name].dtype == expected.dtype and torch.equal(loaded[name], expected), name
    settings = metadata.pop("settings")
    assert metadata == {"format": FORMAT, "weights": weights, "iteration": "12"}
    assert json.loads(settings) == {"kind": "train", "width": SETTINGS.width}
    with safetensors.safe_open(tmp_path / "a.safetensors", "pt") as file:  # as others read it
        assert file.metadata() == metadata | {"settings": settings}


def test_a_snapshot_without_a_number_or_settings_says_neither(snapshot, tmp_path):
    alone = tmp_path / "alone"
    alone.mkdir()
    snapshot[0].rename(alone / "mine.pt")
    export_snapshot(alone / "mine.pt", alone / "a.safetensors")
    assert load_exported(alone / "a.safetensors")[1] == {"format": FORMAT, "weights": "ema"}


def test_what_is_no_snapshot_is_refused_and_nothing_written(snapshot, tmp_path):
    path, _ = snapshot
    with pytest.raises(ValueError, match="weights=average: raw or ema is right"):
        export_snapshot(path, tmp_path / "out", weights="average")
    save_tensors(path, {"raw": {}})
    with pytest.raises(CorruptFile, match="has no 'ema'"):
        export_snapshot(path, tmp_path / "out")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptFile, match="checksum"):
        export_snapshot(path, tmp_path / "out", weights="raw")
    assert not (tmp_path / "out").exists()


def test_what_is_no_export_is_named(snapshot, tmp_path):
    path, _ = snapshot
    out = tmp_path / "a.safetensors"
    with pytest.raises(FileNotFoundError):
        load_exported(out)
    export_snapshot(path, out)
    out.write_bytes(out.read_bytes()[:-1])
    with pytest.raises(CorruptFile, match="is no safetensors file"):
        load_exported(out)
    safetensors.torch.save_file({"w": torch.ones(2)}, out)
    with pytest.raises(CorruptFile, match=f"is of format None; '{FORMAT}' is right"):
        load_exported(out)
