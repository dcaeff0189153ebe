"""Checkpoints in the authors' format: read exactly, or refused by name."""

import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from places import SHARED

from scorekit.models.released import ReleasedCheckpointError, load_released
from scorekit.models.score_network import ARCHITECTURES, ScoreNetwork
from scorekit.techniques.noise_scales import geometric_sigmas

REFERENCE = SHARED / "data" / "reference-networks"
needs_reference = pytest.mark.skipif(
    not REFERENCE.is_dir(), reason="the reference networks are not beside the project"
)


def make_network(
    architecture: str, *, conditional: bool = False, channels: int = 3, n_levels: int = 7
) -> ScoreNetwork:
    sigmas = geometric_sigmas(20, 0.02, n_levels)
    return ScoreNetwork(
        architecture, sigmas, conditional=conditional, channels=channels, width=4
    ).eval()


def as_released(raw: ScoreNetwork, ema: ScoreNetwork) -> list:
    state = {f"module.{name}": value for name, value in raw.state_dict().items()}
    averaged = {name: value.detach() for name, value in ema.named_parameters()}
    return [state, {"state": {}, "param_groups": []}, 12, 3456, averaged]


@pytest.fixture
def released(tmp_path) -> Path:
    path = tmp_path / "small.checkpoint.pth"
    torch.save(as_released(make_network("32-64"), make_network("32-64")), path)
    return path


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_a_file_of_our_own_gives_back_both_networks(tmp_path, architecture, conditional):
    raw = make_network(architecture, conditional=conditional, channels=1)
    ema = make_network(architecture, conditional=conditional, channels=1)
    path = tmp_path / "ours.pth"
    torch.save(as_released(raw, ema), path)
    x, index = torch.rand(2, 1, 16, 16), torch.tensor([0, 6])
    for weights, expected in (("raw", raw), ("ema", ema)):
        loaded = load_released(path, weights=weights, sigma_begin=20, sigma_end=0.02)
        assert (loaded.architecture, loaded.conditional) == (architecture, conditional)
        assert loaded.n_levels == 7
        assert not loaded.training
        assert torch.equal(loaded.sigmas, expected.sigmas)
        with torch.no_grad():
            assert torch.equal(loaded(x, index), expected(x, index))


def test_a_file_without_ema_loads_raw_and_says_so(tmp_path):
    path = tmp_path / "noema.pth"
    network = make_network("32-64")
    torch.save(as_released(network, network)[:4], path)
    assert load_released(path, weights="raw").n_parameters() == network.n_parameters()
    with pytest.raises(ReleasedCheckpointError, match=r"noema\.pth has no EMA.*weights='raw'"):
        load_released(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_the_first_repositorys_list_of_model_and_optimiser(tmp_path, legacy):
    network, path = make_network("32-64", conditional=True), tmp_path / "ncsn.pth"
    content = as_released(network, network)[:2]
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    loaded = load_released(path, weights="raw", sigma_begin=20, sigma_end=0.02)
    x, index = torch.rand(2, 3, 16, 16), torch.tensor([0, 6])
    with torch.no_grad():
        assert torch.equal(loaded(x, index), network(x, index))
    with pytest.raises(ReleasedCheckpointError, match=r"ncsn\.pth has no EMA.*weights='raw'"):
        load_released(path)


@pytest.mark.parametrize("kept", [0, 1, -1])
def test_an_average_that_lacks_parameters_is_none(released, kept):
    content = torch.load(released, weights_only=True)
    content[4] = dict(list(content[4].items())[:kept])
    torch.save(content, released)
    with pytest.raises(ReleasedCheckpointError, match=r"average lacks \d+ of \d+ parameters, \w+"):
        load_released(released)
    load_released(released, weights="raw")


# Reference networks


@needs_reference
@pytest.mark.parametrize("weights", ["raw", "ema"])
@pytest.mark.parametrize("name", ["ncsnv2-32", "ncsnv2-96", "ncsnv2-256", "ncsn-32"])
def test_reference_scores_are_reproduced(name, weights):
    reference = np.load(REFERENCE / f"{name}.npz")
    x = torch.from_numpy(reference["x"])
    index = torch.from_numpy(reference["noise_index"])
    expected = torch.from_numpy(reference[f"score_{weights}"])
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        network = load_released(
            REFERENCE / f"{name}.checkpoint.pth",
            weights=weights,
            sigma_begin=float(reference["sigma_begin"]),
            sigma_end=float(reference["sigma_end"]),
            dtype=dtype,
        )
        assert network.n_levels == int(reference["L"])
        with torch.no_grad():
            score = network(x.to(dtype), index)
        assert score.dtype == dtype
        # Sample by sample: the scores of two noise scales differ by orders of magnitude.
        for ours, theirs in zip(score.double(), expected, strict=True):
            assert (ours - theirs).abs().max() < tolerance * theirs.abs().max()


@needs_reference
@pytest.mark.parametrize(
    ("name", "architecture", "conditional"),
    [
        ("ncsnv2-32", "32-64", False),
        ("ncsnv2-96", "96-128", False),
        ("ncsnv2-256", "256", False),
        ("ncsn-32", "32-64", True),
        ("ncsn-96", "96-128", True),
    ],
)
def test_every_list_of_names_and_shapes_loads(tmp_path, name, architecture, conditional):
    state = {}
    for line in (REFERENCE / f"{name}.keys.txt").read_text().splitlines():
        key, shape = line.split()
        state[key] = torch.rand([int(n) for n in shape.split("x")]) + 0.1
    if not conditional:
        state["sigmas"] = state["sigmas"].sort(descending=True).values
    path = tmp_path / f"{name}.pth"
    prefixed = {f"module.{key}": value for key, value in state.items()}
    averaged = {key: value + 1 for key, value in state.items() if key != "sigmas"}
    torch.save([prefixed, {}, 0, 0, averaged], path)
    network = load_released(path, weights="raw")
    assert (network.architecture, network.conditional) == (architecture, conditional)
    loaded = network.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)
    ema = load_released(path).state_dict()
    assert all(torch.equal(ema[key], averaged[key]) for key in averaged)


# Files that are refused


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, legacy):
    canary, path = tmp_path / "canary", tmp_path / "evil.pth"
    torch.save(
        [{"module.begin_conv.weight": Malicious(canary)}, {}, 0, 0, {}],
        path,
        _use_new_zipfile_serialization=not legacy,
    )
    with pytest.raises(ReleasedCheckpointError, match=r"evil\.pth was refused"):
        load_released(path)
    assert not canary.exists()
    path.write_bytes(pickle.dumps(Malicious(canary)))
    with pytest.raises(ReleasedCheckpointError, match=r"evil\.pth was refused"):
        load_released(path)
    assert not canary.exists()
    pickle.loads(path.read_bytes())  # the file would have done harm
    assert canary.exists()


@pytest.mark.parametrize(
    "content",
    [
        {"model": {}},
        [],
        [{}, {}, 0],
        torch.zeros(3),
        7,
        [torch.zeros(2), {}, 0, 0, {}],
        ("tuple",) * 5,
        [{}, {}, 0, 0, {}],
        [{"module.begin_conv.weight": torch.zeros(4, 3, 3, 3)}, {}, 0, 0, {}],
        [{"module.begin_conv.weight": 5}, {}, 0, 0, {}],
    ],
    ids=lambda content: repr(content)[:30],
)
def test_other_content_is_refused_by_name(tmp_path, content):
    path = tmp_path / "other.pth"
    torch.save(content, path)
    with pytest.raises(ReleasedCheckpointError, match=r"other\.pth"):
        load_released(path)


def change_ema_to_none(content):
    content[4] = None


def change_ema_to_list(content):
    content[4] = [1, 2]


def change_name_to_number(content):
    content[0][5] = torch.zeros(1)


def change_first_convolution_to_vector(content):
    content[0]["module.begin_conv.weight"] = content[4]["begin_conv.weight"] = torch.zeros(4)


def change_sigmas_to_negative(content):
    content[0]["module.sigmas"] = -content[0]["module.sigmas"]


def change_width_to_one(content):
    narrow = torch.zeros(1, 3, 3, 3)
    content[0]["module.begin_conv.weight"] = content[4]["begin_conv.weight"] = narrow


@pytest.mark.parametrize(
    "change",
    [
        change_ema_to_none,
        change_ema_to_list,
        change_name_to_number,
        change_first_convolution_to_vector,
        change_sigmas_to_negative,
        change_width_to_one,
    ],
)
def test_nearly_right_content_is_refused_by_name(released, change):
    content = torch.load(released, weights_only=True)
    change(content)
    torch.save(content, released)
    with pytest.raises(ReleasedCheckpointError, match=r"small\.checkpoint\.pth"):
        load_released(released)


def remove_a_parameter(content):
    del content[0]["module.end_conv.bias"], content[4]["end_conv.bias"]


def add_a_parameter(content):
    content[4]["extra.weight"] = torch.zeros(1)


def change_a_shape(content):
    content[4]["end_conv.bias"] = torch.zeros(4)


def remove_the_ladder(content):
    del content[0]["module.sigmas"]


@pytest.mark.parametrize(
    "change", [remove_a_parameter, add_a_parameter, change_a_shape, remove_the_ladder]
)
def test_a_network_that_does_not_fit_is_refused_by_name(released, change):
    content = torch.load(released, weights_only=True)
    change(content)
    torch.save(content, released)
    with pytest.raises(ReleasedCheckpointError, match=r"small\.checkpoint\.pth does not"):
        load_released(released)


def test_an_absent_file_is_not_called_damaged(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_released(tmp_path / "absent.pth")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a checkpoint",
        b"PK\x03\x04",
        b"\x80",
        b"\x80\x02.",
    ],
)
def test_files_of_another_kind_are_refused_by_name(tmp_path, content):
    path = tmp_path / "junk.pth"
    path.write_bytes(content)
    with pytest.raises(ReleasedCheckpointError, match=r"junk\.pth"):
        load_released(path)


@pytest.mark.parametrize("legacy", [False, True])
@given(fraction=st.floats(0, 1, exclude_max=True))
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_truncated_files_are_refused_by_name(released, legacy, fraction):
    network = make_network("32-64")
    whole = released.with_name(f"whole-{legacy}.pth")
    if not whole.exists():
        torch.save(as_released(network, network), whole, _use_new_zipfile_serialization=not legacy)
    path = released.with_name("truncated.pth")
    data = whole.read_bytes()
    path.write_bytes(data[: int(fraction * len(data))])
    with pytest.raises(ReleasedCheckpointError, match=r"truncated\.pth"):
        load_released(path)


@given(st.integers(0, 2**32), st.integers(1, 255))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_damaged_pickle_is_refused_or_loads_but_never_fails_otherwise(released, where, change):
    """The format has no checksum over its names, so some damage cannot be seen."""
    path = released.with_name("damaged.pth")
    with zipfile.ZipFile(released) as source, zipfile.ZipFile(path, "w") as target:
        for item in source.namelist():
            data = bytearray(source.read(item))
            if item.endswith("data.pkl"):
                data[where % len(data)] ^= change
            target.writestr(item, bytes(data))
    message = None
    try:
        load_released(path)
    except ReleasedCheckpointError as error:
        message = str(error)
    assert message is None or "damaged.pth" in message
