"""Checkpoint files: whole, checked, and no door for code."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scorekit.checkpoints.store import CheckpointStore
from scorekit.checkpoints.tensors import find_tensors, load_tensors, save_tensors
from scorekit.files import CorruptFile

SLOW_FIXTURE = [HealthCheck.function_scoped_fixture]
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool)


def content(seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {
        "iteration": seed,
        "loss": 0.5,
        "name": "x",
        "nested": {"w": torch.randn(3, 4, generator=generator), "list": [1, (2.0, None, True)]},
    }


@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.lists(st.integers(0, 5), max_size=4),
    number=st.one_of(st.integers(), st.floats(allow_nan=False), st.text(), st.none()),
)
@settings(max_examples=30, deadline=None, suppress_health_check=SLOW_FIXTURE)
def test_round_trip(tmp_path, dtype, shape, number):
    path = tmp_path / "file.pt"
    tensor = torch.randint(0, 2, shape).to(dtype)
    save_tensors(path, {"tensor": tensor, "nested": [{"number": number}]})
    loaded = load_tensors(path)
    assert loaded["tensor"].dtype == dtype
    assert torch.equal(loaded["tensor"], tensor)
    assert loaded["nested"] == [{"number": number}]


def test_plain_torch_reads_the_file(tmp_path):
    save_tensors(tmp_path / "file.pt", content())
    plain = torch.load(tmp_path / "file.pt", weights_only=True)
    assert torch.equal(plain["nested"]["w"], content()["nested"]["w"])


def test_a_half_written_file_never_takes_the_place_of_a_whole_one(tmp_path):
    path = tmp_path / "file.pt"
    save_tensors(path, content(1))
    with pytest.raises(Exception, match="pickle"):
        save_tensors(path, {"bad": lambda: None})
    assert load_tensors(path)["iteration"] == 1
    assert list(tmp_path.iterdir()) == [path]


@given(st.integers(0, 2**40))
@settings(max_examples=200, deadline=None, suppress_health_check=SLOW_FIXTURE)
def test_a_single_flipped_bit_is_found(tmp_path, where):
    path = tmp_path / "file.pt"
    save_tensors(path, content())
    data = bytearray(path.read_bytes())
    where %= 8 * len(data)
    data[where // 8] ^= 1 << where % 8
    path.write_bytes(bytes(data))
    with pytest.raises(CorruptFile, match=r"file\.pt") as error:
        load_tensors(path)
    assert error.value.path == path


@given(st.floats(0, 1, exclude_max=True))
@settings(max_examples=100, deadline=None, suppress_health_check=SLOW_FIXTURE)
def test_a_truncated_file_is_found(tmp_path, fraction):
    path = tmp_path / "file.pt"
    save_tensors(path, content())
    data = path.read_bytes()
    path.write_bytes(data[: int(fraction * len(data))])
    with pytest.raises(CorruptFile, match=r"file\.pt"):
        load_tensors(path)


@pytest.mark.parametrize("extra", [1, 31, 32, 33])
def test_a_file_with_something_appended_is_found(tmp_path, extra):
    path = tmp_path / "file.pt"
    save_tensors(path, content())
    path.write_bytes(path.read_bytes() + bytes(extra))
    with pytest.raises(CorruptFile):
        load_tensors(path)


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_a_file_is_refused_and_not_run(tmp_path):
    path, canary = tmp_path / "evil.pt", tmp_path / "canary"
    save_tensors(path, {"w": Malicious(canary)})
    with pytest.raises(CorruptFile, match=r"evil\.pt: weights_only refuses it"):
        load_tensors(path)
    assert not canary.exists()


def test_an_absent_file_is_not_called_damaged(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_tensors(tmp_path / "absent.pt")


# The store


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_last_ones_and_the_best_are_kept(tmp_path, keep):
    store = CheckpointStore(tmp_path, keep=keep)
    assert store.last_iteration() == 0
    assert store.load_last() is None
    for iteration in (5, 10, 15, 20, 25):
        store.save(iteration, content(iteration), is_best=iteration in (5, 10))
        assert store.last_iteration() == iteration
    last = [5, 10, 15, 20, 25][-keep:]
    assert names(tmp_path) == ["best-0000010.pt"] + [f"checkpoint-{i:07d}.pt" for i in last]
    assert load_tensors(tmp_path / "best-0000010.pt")["iteration"] == 10
    assert store.load_last()["iteration"] == 25


def test_passing_ones_push_out_only_one_another(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(10, content(10), is_best=True)
    for iteration in (11, 12, 13):
        store.save(iteration, content(iteration), passing=True)
        assert store.last_iteration() == iteration
        assert store.load_last()["iteration"] == iteration
    assert names(tmp_path) == ["best-0000010.pt", "checkpoint-0000010.pt", "interim-0000013.pt"]
    assert store.load_last(at_most=12)["iteration"] == 10
    store.save(20, content(20))
    assert names(tmp_path) == ["best-0000010.pt", "checkpoint-0000010.pt", "checkpoint-0000020.pt"]


@pytest.mark.parametrize("passing", [False, True])
def test_what_is_written_after_going_back_stays(tmp_path, passing):
    store = CheckpointStore(tmp_path)
    for iteration in (15, 20):
        store.save(iteration, content(iteration))
    store.save(5, content(5), is_best=not passing, passing=passing)
    assert store.load_last(at_most=6)["iteration"] == 5
    for iteration in (10, 15, 20, 25):
        store.save(iteration, content(iteration))
    left = [name for name in names(tmp_path) if not name.startswith("best")]
    assert left == ["checkpoint-0000020.pt", "checkpoint-0000025.pt"]


def test_iterations_are_ordered_as_numbers(tmp_path):
    store = CheckpointStore(tmp_path)
    for iteration in (9_999_999, 10_000_000, 10_000_001):
        store.save(iteration, content(iteration))
    assert names(tmp_path) == ["checkpoint-10000000.pt", "checkpoint-10000001.pt"]
    assert store.load_last()["iteration"] == 10_000_001


@pytest.mark.parametrize(
    ("damaged", "expected"),
    [
        ([], 15),
        (["checkpoint-0000015.pt"], 10),
        (["checkpoint-0000015.pt", "checkpoint-0000010.pt"], 5),
        (["checkpoint-0000015.pt", "checkpoint-0000010.pt", "best-0000005.pt"], None),
    ],
)
def test_the_newest_intact_checkpoint_is_loaded_and_damaged_ones_set_aside(
    tmp_path, caplog, damaged, expected
):
    store = CheckpointStore(tmp_path)
    for iteration in (5, 10, 15):
        store.save(iteration, content(iteration), is_best=iteration == 5)
    for name in damaged:
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1])
    state = store.load_last()
    assert (state and state["iteration"]) == expected
    for name in damaged:
        assert f"set aside as {name}.corrupt-1" in caplog.text
        assert (tmp_path / f"{name}.corrupt-1").exists()
        assert not (tmp_path / name).exists()


def test_other_files_in_the_directory_are_left_alone(tmp_path):
    strangers = ["checkpoint-old.pt", "checkpoint-12.pt.corrupt-1", "notes.txt", "best-.pt"]
    for name in strangers:
        (tmp_path / name).write_text("mine")
    store = CheckpointStore(tmp_path)
    assert store.load_last() is None
    for iteration in (1, 2, 3):
        store.save(iteration, content(iteration), is_best=True)
    assert all((tmp_path / name).read_text() == "mine" for name in strangers)
    assert store.load_last()["iteration"] == 3


def test_a_damaged_file_is_as_none_and_set_aside(tmp_path, caplog):
    path = tmp_path / "chunk.pt"
    assert find_tensors(path) is None
    save_tensors(path, {"x": torch.arange(3)})
    found = find_tensors(path)
    assert found is not None
    assert found["x"].tolist() == [0, 1, 2]
    path.write_bytes(path.read_bytes()[:-1])
    assert find_tensors(path) is None
    assert not path.exists()
    assert "chunk.pt.corrupt-" in caplog.text
