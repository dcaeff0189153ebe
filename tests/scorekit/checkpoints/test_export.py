"""Exported checkpoints: small files, checked, from which training goes on."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_training import SETTINGS

from scorekit.checkpoints.export import INDEX, export_checkpoint, import_checkpoint, main
from scorekit.checkpoints.store import CheckpointStore, snapshot_path
from scorekit.checkpoints.tensors import load_tensors
from scorekit.data.registry import prepare
from scorekit.files import CorruptFile, write_json
from scorekit.training.settings import TrainSettings
from scorekit.training.trainer import Trainer

SLOW_FIXTURE = [HealthCheck.function_scoped_fixture]
SHARD = 2**15
HALF = replace(SETTINGS, iterations=12)  # the same run, stopped after its second snapshot


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return prepare("digits", tmp_path_factory.mktemp("data"))


def run(settings: TrainSettings, digits, directory: Path) -> Trainer:
    trainer = Trainer(settings, digits, directory, compile=False)
    trainer.run()
    return trainer


@pytest.fixture(scope="module")
def undisturbed(digits, tmp_path_factory) -> Trainer:
    return run(SETTINGS, digits, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def half(digits, tmp_path_factory) -> Path:
    return run(HALF, digits, tmp_path_factory.mktemp("half")).directory


@pytest.fixture(scope="module")
def exported_once(half, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("export")
    export_checkpoint(half, out, shard_bytes=SHARD)
    return out


@pytest.fixture
def exported(exported_once, tmp_path) -> Path:
    return shutil.copytree(exported_once, tmp_path / "export")


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def assert_same(value, expected) -> None:
    if isinstance(expected, torch.Tensor):
        assert value.dtype == expected.dtype and torch.equal(value, expected)
        if expected.ndim == 4:  # fused Adam takes weights and moments in the order of their memory
            assert value.stride() == expected.stride()
    elif isinstance(expected, dict):  # a state_dict's OrderedDict becomes a dict
        assert list(value) == list(expected)
        for key in expected:
            assert_same(value[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert type(value) is type(expected)
        assert len(value) == len(expected)
        for a, b in zip(value, expected, strict=True):
            assert_same(a, b)
    else:
        assert value == expected and type(value) is type(expected)


# Moving a run


def test_a_run_moved_in_float32_ends_bit_for_bit_as_the_undisturbed_one(
    digits, undisturbed, half, exported, tmp_path
):
    assert import_checkpoint(exported, tmp_path / "moved") == 12
    assert_same(CheckpointStore(tmp_path / "moved").load_last(), CheckpointStore(half).load_last())
    moved = run(SETTINGS, digits, tmp_path / "moved")
    assert moved.losses == undisturbed.losses and moved.test_losses == undisturbed.test_losses
    last = "checkpoint-0000024.pt"
    state, expected = (load_tensors(t.directory / last) for t in (moved, undisturbed))
    for key in ("raw", "ema", "optimizer"):
        assert_same(state[key], expected[key])
    for iteration in SETTINGS.snapshot_iterations:
        assert_same(
            load_tensors(snapshot_path(moved.directory, iteration)),
            load_tensors(snapshot_path(undisturbed.directory, iteration)),
        )


def test_a_moved_run_does_not_train_again_what_was_trained(digits, exported, tmp_path, caplog):
    import_checkpoint(exported, tmp_path / "moved")
    with caplog.at_level("INFO", logger="scorekit"):
        run(SETTINGS, digits, tmp_path / "moved")
    assert "training continues at iteration 12" in caplog.text


def test_a_run_moved_in_bfloat16_goes_on_with_nearly_the_same_losses(
    digits, undisturbed, half, tmp_path
):
    export_checkpoint(half, tmp_path / "export", dtype="bfloat16", shard_bytes=SHARD)
    import_checkpoint(tmp_path / "export", tmp_path / "moved")
    moved = run(SETTINGS, digits, tmp_path / "moved")
    assert moved.losses[:12] == undisturbed.losses[:12]  # losses so far are not rounded
    after, expected = np.array(moved.losses[12:]), np.array(undisturbed.losses[12:])
    assert not np.array_equal(after, expected)
    assert np.allclose(after, expected, rtol=0.01)
    assert moved.test_losses[-1][1] == pytest.approx(undisturbed.test_losses[-1][1], rel=0.01)


def test_bfloat16_rounds_weights_and_moments_and_nothing_else(half, tmp_path):
    export_checkpoint(half, tmp_path / "export", dtype="bfloat16")
    import_checkpoint(tmp_path / "export", tmp_path / "moved")
    state, exact = (CheckpointStore(d).load_last() for d in (tmp_path / "moved", half))
    for key in ("raw", "ema"):
        for name, value in exact[key].items():
            expected = value if name == "sigmas" else value.to(torch.bfloat16).float()
            assert torch.equal(state[key][name], expected), name
    for i, moments in exact["optimizer"]["state"].items():
        restored = state["optimizer"]["state"][i]
        assert torch.equal(restored["step"], moments["step"])
        for name in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(restored[name], moments[name].to(torch.bfloat16).float())
    assert_same(state["optimizer"]["param_groups"], exact["optimizer"]["param_groups"])
    for key in ("iteration", "elapsed_s", "best_test_loss", "losses", "test_losses"):
        assert_same(state[key], exact[key])
    index = json.loads((tmp_path / "export" / INDEX).read_text())
    assert index["dtype"] == "bfloat16" and "no longer the undisturbed run" in index["note"]
    total = sum(path.stat().st_size for path in (tmp_path / "export").glob("shard-*"))
    export_checkpoint(half, tmp_path / "exact")
    assert total < 0.7 * sum(p.stat().st_size for p in (tmp_path / "exact").glob("shard-*"))


def test_snapshots_moved_before_are_left_out_and_kept(digits, half, undisturbed, tmp_path):
    first = run(replace(SETTINGS, iterations=6), digits, tmp_path / "first").directory
    export_checkpoint(first, tmp_path / "one")
    import_checkpoint(tmp_path / "one", tmp_path / "moved")
    assert not snapshot_path(tmp_path / "moved", 6).exists()  # made again from the checkpoint
    run(replace(SETTINGS, iterations=6), digits, tmp_path / "moved")
    kept = snapshot_path(tmp_path / "moved", 6).stat().st_mtime_ns
    export_checkpoint(undisturbed.directory, tmp_path / "two", snapshots_after=6)
    import_checkpoint(tmp_path / "two", tmp_path / "moved")
    assert snapshot_path(tmp_path / "moved", 6).stat().st_mtime_ns == kept
    assert {f"snapshot-00000{i:02}.pt" for i in (6, 12, 18)} <= set(names(tmp_path / "moved"))
    with pytest.raises(ValueError, match=r"snapshot-0000006\.pt: .*--snapshots-after 5") as error:
        import_checkpoint(tmp_path / "two", tmp_path / "empty")
    assert "\n" not in str(error.value) and not (tmp_path / "empty").exists()


# Shards


@given(
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8]),
    shape=st.lists(st.integers(0, 20), max_size=3),
    plain=st.recursive(
        st.one_of(st.integers(), st.floats(allow_nan=False), st.text(), st.none(), st.booleans()),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.tuples(inner, inner),
            st.dictionaries(st.one_of(st.text(), st.integers()), inner, max_size=3),
        ),
        max_leaves=8,
    ),
    shard=st.integers(2**12, 2**16),
)
@settings(max_examples=25, deadline=None, suppress_health_check=SLOW_FIXTURE)
def test_every_value_comes_back_from_shards_of_every_size(
    tmp_path_factory, dtype, shape, plain, shard
):
    folder = tmp_path_factory.mktemp("case")
    tensor = (100 * torch.rand(shape)).to(dtype)
    content = {"iteration": 3, "nested": [{"plain": plain, 7: tensor}, 2 * tensor]}
    (folder / "train").mkdir()
    CheckpointStore(folder / "train").save(3, content)
    export_checkpoint(folder / "train", folder / "out", shard_bytes=shard)
    assert all(path.stat().st_size <= shard for path in (folder / "out").glob("shard-*"))
    import_checkpoint(folder / "out", folder / "back")
    assert_same(CheckpointStore(folder / "back").load_last(), content)


def test_shards_are_named_and_listed_by_their_content(exported):
    index = json.loads((exported / INDEX).read_text())
    assert index["iteration"] == 12 and index["dtype"] == "float32"
    assert names(exported) == sorted([INDEX, *index["shards"]])
    assert len(index["shards"]) > 10
    for name, shard in index["shards"].items():
        data = (exported / name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == shard["sha256"]
        assert len(data) == shard["bytes"] <= SHARD
        assert safetensors.torch.load(data)


def test_a_later_export_keeps_what_has_not_changed_and_removes_the_rest(
    half, undisturbed, exported
):
    before = set(names(exported))
    (exported / "notes.txt").write_text("mine")
    export_checkpoint(undisturbed.directory, exported, shard_bytes=SHARD)
    after = set(names(exported))
    index = json.loads((exported / INDEX).read_text())
    assert after == {INDEX, "notes.txt", *index["shards"]}
    assert index["iteration"] == 24
    assert len(before & after) > 1  # the shards of the first snapshot
    assert before - after  # those of the checkpoint


def test_an_export_that_is_cut_short_leaves_the_earlier_one(
    half, undisturbed, exported, tmp_path, monkeypatch
):
    def full(*arguments):
        raise OSError("no space left")

    monkeypatch.setattr("scorekit.checkpoints.export.write_json", full)
    with pytest.raises(OSError, match="no space"):
        export_checkpoint(undisturbed.directory, exported, shard_bytes=SHARD)
    assert import_checkpoint(exported, tmp_path / "moved") == 12


# Damage


def every_file(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("damage", ["missing", "truncated", "altered", "appended"])
@pytest.mark.parametrize("which", ["first", "last", "index"])
def test_a_damaged_file_is_named_in_one_line_and_nothing_is_written(
    exported, tmp_path, capsys, damage, which
):
    shards = list(json.loads((exported / INDEX).read_text())["shards"])
    path = exported / {"first": shards[0], "last": shards[-1], "index": INDEX}[which]
    data = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(data[:-1] if which != "index" else data[:-9])
    elif damage == "appended":
        path.write_bytes(data + b"x")
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    target = tmp_path / "moved"
    assert main(["import", str(exported), str(target)]) == 2
    assert not target.exists()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{path}: ")


@given(st.data())
@settings(max_examples=30, deadline=None, suppress_health_check=SLOW_FIXTURE)
def test_a_hostile_index_is_one_line(exported, tmp_path, data):
    """Even one whose checksum was made to agree: any node of it replaced by anything."""
    path = exported / INDEX
    original = path.read_bytes()
    index = json.loads(original)
    del index["sha256"]
    node, key = index, data.draw(st.sampled_from(sorted(index)))
    while isinstance(node[key], dict | list) and node[key] and data.draw(st.booleans()):
        node = node[key]
        key = data.draw(st.sampled_from(range(len(node)) if isinstance(node, list) else [*node]))
    node[key] = data.draw(
        st.sampled_from([None, -1, "x", [], {}, [[]], {"tensor": {}}, "../../x", {"a": 1}])
    )
    index["sha256"] = hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(index))
    target = tmp_path / "target"
    refused = None
    try:
        import_checkpoint(exported, target)
    except (CorruptFile, ValueError) as error:
        refused = str(error)
    path.write_bytes(original)
    # Where it was not refused, what was replaced was no more than a note, a name or a number.
    assert target.exists() == (refused is None)
    assert refused is None or len(refused.splitlines()) == 1
    shutil.rmtree(target, ignore_errors=True)


@pytest.mark.parametrize("present", [12, 18])
def test_a_directory_with_a_checkpoint_as_new_is_left_alone(exported, tmp_path, present):
    target = tmp_path / "moved"
    target.mkdir()
    CheckpointStore(target).save(present, {"iteration": present})
    before = every_file(target)
    with pytest.raises(ValueError, match=f"of iteration {present}; the export is of 12"):
        import_checkpoint(exported, target)
    assert every_file(target) == before


def test_a_damaged_newest_checkpoint_is_not_the_one_exported(tmp_path):
    for iteration in (3, 6):
        CheckpointStore(tmp_path).save(iteration, {"iteration": iteration})
    newest = tmp_path / "checkpoint-0000006.pt"
    newest.write_bytes(newest.read_bytes()[:-1])
    assert export_checkpoint(tmp_path, tmp_path / "out") == 3


def test_a_directory_of_another_name_is_remarked(exported, half, tmp_path, caplog):
    import_checkpoint(exported, tmp_path / half.name)
    assert not caplog.records
    import_checkpoint(exported, tmp_path / "other")
    assert f"the export is of a training directory named '{half.name}'" in caplog.text


@pytest.mark.parametrize("stated", [{"learning_rate": 1e-5}, {"data": "0" * 64}, {}])
def test_an_export_of_other_settings_is_refused_where_the_directory_says_its_own(
    digits, exported, tmp_path, stated
):
    target = tmp_path / "moved"
    target.mkdir()
    settings = {"kind": "train", **vars(SETTINGS), "data": digits.fingerprint, **stated}
    write_json(target / "settings.json", settings)
    if stated:
        with pytest.raises(ValueError, match="iteration 12 is of other settings or data"):
            import_checkpoint(exported, target)
        assert names(target) == ["settings.json"]
    else:  # the same settings, with more iterations
        assert import_checkpoint(exported, target) == 12


def test_training_refuses_an_import_of_other_settings(digits, exported, tmp_path):
    import_checkpoint(exported, tmp_path)
    with pytest.raises(ValueError, match="of other settings or data"):
        run(replace(SETTINGS, learning_rate=1e-5), digits, tmp_path)


# The command line


def test_the_command_line_exports_and_imports(half, tmp_path, capsys):
    out, moved = str(tmp_path / "out"), str(tmp_path / "moved")
    assert main(["export", str(half), out, "--dtype", "bfloat16", "--shard-mib", "0.02"]) == 0
    assert max(p.stat().st_size for p in (tmp_path / "out").glob("shard-*")) <= 0.02 * 2**20
    assert main(["import", out, moved]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"iteration 12: exported to {out}",
        f"iteration 12: imported to {moved}",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "{empty}", "{out}"], "holds no intact checkpoint-<iteration>.pt to export"),
        (["export", "{half}", "{out}", "--shard-mib", "0"], "shard_bytes=0: at least 4096"),
        (["import", "{empty}", "{out}"], "index.json: is not there: no export, or one cut short"),
    ],
)
def test_bad_input_is_one_line(half, tmp_path, capsys, arguments, message):
    (tmp_path / "empty").mkdir()
    places = {"half": half, "empty": tmp_path / "empty", "out": tmp_path / "out"}
    assert main([argument.format(**places) for argument in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()
