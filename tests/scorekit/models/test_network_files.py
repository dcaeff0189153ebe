"""Networks from files of every kind, and of none."""

import pickle
import shutil

import pytest
import torch

from scorekit.checkpoints.export import export_snapshot
from scorekit.checkpoints.tensors import save_tensors
from scorekit.files import write_json
from scorekit.models.network_files import read_network_file
from scorekit.models.score_network import ScoreNetwork
from scorekit.techniques.noise_scales import geometric_sigmas


def network(seed=0, **options):
    torch.manual_seed(seed)
    return ScoreNetwork("32-64", geometric_sigmas(20, 0.02, 7), channels=1, width=4, **options)


def same(state, other):
    return state.keys() == other.keys() and all(torch.equal(state[k], other[k]) for k in state)


@pytest.fixture
def snapshot(tmp_path):
    """A snapshot as a training writes it, beside its settings."""
    raw, ema = network(0), network(1)
    path = tmp_path / "run" / "snapshot-0000120.pt"
    path.parent.mkdir()
    save_tensors(path, {"raw": raw.state_dict(), "ema": ema.state_dict()})
    write_json(path.parent / "settings.json", {"conditioning": None, "sigma_begin": 20.0})
    return path, raw, ema


def test_a_snapshot_has_both_weights_its_ladder_and_its_iteration(snapshot):
    path, raw, ema = snapshot
    found, states = read_network_file(path)
    assert same(states["raw"], raw.state_dict()) and same(states["ema"], ema.state_dict())
    assert (found.architecture, found.width, found.channels, found.n_levels) == ("32-64", 4, 1, 7)
    assert (found.sigma_begin, found.sigma_end) == (20.0, 0.02)
    assert (found.weights, found.iteration) == (("raw", "ema"), 120)
    assert (found.conditional, found.conditioning) == (False, None)


def test_an_exported_network_has_the_weights_that_were_written(snapshot, tmp_path):
    path, _, ema = snapshot
    export_snapshot(path, tmp_path / "out.safetensors")
    found, states = read_network_file(tmp_path / "out.safetensors")
    assert list(states) == ["ema"] and same(states["ema"], ema.state_dict())
    assert (found.weights, found.iteration, found.sigma_begin) == (("ema",), 120, 20.0)


@pytest.mark.parametrize("conditional", [False, True])
def test_a_released_file_has_raw_weights_and_its_averages_on_their_buffers(tmp_path, conditional):
    raw, ema = network(0, conditional=conditional), network(1, conditional=conditional)
    path = tmp_path / "best_checkpoint.pth"
    state = {f"module.{name}": value for name, value in raw.state_dict().items()}
    averaged = {name: value.detach() for name, value in ema.named_parameters()}
    torch.save([state, {}, 12, 3456, averaged], path)
    found, states = read_network_file(path)
    assert found.weights == ("raw", "ema") and found.conditional == conditional
    assert same(states["raw"], raw.state_dict()) and same(states["ema"], ema.state_dict())
    # A conditional network's file carries no ladder.
    assert (found.sigma_begin, found.iteration) == (None if conditional else 20.0, None)
    torch.save([state, {}], path)
    assert read_network_file(path)[0].weights == ("raw",)
    assert read_network_file(path)[0].sha256 != found.sha256


def test_the_conditioning_is_that_of_the_training(tmp_path):
    told = network(0, conditional=True, conditioning="edm")
    path = tmp_path / "snapshot-0000001.pt"
    save_tensors(path, {"raw": told.state_dict(), "ema": told.state_dict()})
    settings = {"conditioning": "edm", "sigma_begin": 20.0, "sigma_end": 0.02}
    write_json(tmp_path / "settings.json", settings)
    found = read_network_file(path)[0]
    assert (found.conditioning, found.sigma_begin, found.sigma_end) == ("edm", 20.0, 0.02)


def test_any_other_file_is_one_line(snapshot, tmp_path):
    path, _, _ = snapshot
    damaged = tmp_path / "damaged.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    text = tmp_path / "notes.pth"
    text.write_text("no network")
    code = tmp_path / "code.pth"
    code.write_bytes(pickle.dumps([{"a": shutil.rmtree}, {}]))
    other = tmp_path / "other.pt"
    save_tensors(other, {"raw": {"weight": torch.zeros(2)}, "ema": {"weight": torch.zeros(2)}})
    empty = tmp_path / "empty.safetensors"
    empty.write_bytes(b"")
    nothing = tmp_path / "nothing.pt"
    save_tensors(nothing, {"state": 1})
    for bad in (damaged, text, code, other, empty, nothing):
        with pytest.raises(ValueError, match=bad.name) as found:
            read_network_file(bad)
        assert "\n" not in str(found.value)
    with pytest.raises(FileNotFoundError):
        read_network_file(tmp_path / "absent.pth")
