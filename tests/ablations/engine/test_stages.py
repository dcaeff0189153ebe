import builtins
import errno
import fcntl
import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import time

import pytest

from ablations.engine.stages import RESULTS_VERSION, Stage, StageStore
from scorekit.files import CorruptFile, read_sealed_json, write_sealed_json
from scorekit.runtime import locks

STAGE = Stage("train", {"width": 2, "name": "x"})


def execute(directory):
    path = directory / "data.bin"
    path.write_bytes(b"result")
    return {"value": 7}, [path]


def forbidden(directory):
    raise AssertionError("a finished stage was run again")


def test_a_stage_runs_once(tmp_path):
    store = StageStore(tmp_path)
    assert store.result(STAGE) is None
    assert store.run(STAGE, execute) == {"value": 7}
    assert store.run(STAGE, forbidden) == {"value": 7}
    assert StageStore(tmp_path).result(STAGE) == {"value": 7}


def test_digests_depend_on_content_and_inputs_not_on_order():
    assert Stage("train", {"name": "x", "width": 2}) == STAGE
    assert Stage("train", {"width": 3, "name": "x"}) != STAGE
    assert Stage("sample", {"width": 2, "name": "x"}) != STAGE
    assert Stage("sample", {}, (STAGE,)) != Stage("sample", {}, (Stage("train", {}),))


def test_a_digest_is_the_hash_of_canonical_json():
    stage = Stage("sample", {"b": 1e-4, "a": [None, True, "é"]}, (STAGE,))
    text = (
        f'[{RESULTS_VERSION}, "sample", {{"a": [null, true, "\\u00e9"], "b": 0.0001}}, '
        f'["{STAGE.digest}"]]'
    )
    assert stage.digest == hashlib.sha256(text.encode()).hexdigest()[:16]
    with pytest.raises(ValueError, match="not JSON compliant"):
        _ = Stage("train", {"loss": float("nan")}).digest


def test_a_stage_that_raises_is_not_done(tmp_path):
    store = StageStore(tmp_path)

    def broken(directory):
        (directory / "data.bin").write_bytes(b"half")
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        store.run(STAGE, broken)
    assert store.result(STAGE) is None
    assert store.run(STAGE, execute) == {"value": 7}


@pytest.mark.parametrize("damage", ["data flipped", "data gone", "json cut", "other digest"])
def test_damage_is_named_set_aside_and_redone(tmp_path, damage, caplog):
    StageStore(tmp_path).run(STAGE, execute)
    directory = StageStore(tmp_path).directory(STAGE)
    record, data = directory / "result.json", directory / "data.bin"
    if damage == "data flipped":
        data.write_bytes(b"resulT")
    elif damage == "data gone":
        data.unlink()
    elif damage == "json cut":
        record.write_text(record.read_text()[:40])
    else:
        record.write_text(json.dumps(json.loads(record.read_text()) | {"digest": "0" * 16}))
    store = StageStore(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert store.result(STAGE) is None
    assert str(data if "data" in damage else record) in caplog.text
    assert list(directory.glob("*.corrupt-1"))
    assert store.run(STAGE, execute) == {"value": 7}
    assert data.read_bytes() == b"result"


def _run_slowly(root):
    def slow(directory):
        with open(directory / "runs.txt", "a") as file:
            file.write("run\n")
        time.sleep(0.5)
        return {"value": 7}, []

    StageStore(root).run(STAGE, slow)


def test_two_processes_do_not_work_on_one_stage(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_run_slowly, args=(tmp_path,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    runs = StageStore(tmp_path).directory(STAGE) / "runs.txt"
    assert runs.read_text() == "run\n"


def test_a_result_tells_the_code_as_it_was_begun(tmp_path, monkeypatch):
    monkeypatch.setattr("ablations.engine.stages.code_digest", lambda: "begun")

    def edited_meanwhile(directory):
        monkeypatch.setattr("ablations.engine.stages.code_digest", lambda: "edited")
        return {}, []

    store = StageStore(tmp_path)
    store.run(STAGE, edited_meanwhile)
    assert store.result(STAGE) == {}
    assert store.codes == {"begun"}


def test_a_store_knows_the_versions_of_the_code_whose_results_it_read(tmp_path, monkeypatch):
    stages = [Stage("sample", {"a": a}) for a in (1, 2, 3)]
    for stage, code in zip(stages, ("one", "two", "three"), strict=True):
        monkeypatch.setattr("ablations.engine.stages.code_digest", lambda code=code: code)
        StageStore(tmp_path).run(stage, lambda directory: ({}, []))
    store = StageStore(tmp_path)
    assert store.codes == set()
    for stage in stages[:2]:
        assert store.result(stage) == {}
    assert store.codes == {"one", "two"}


def test_a_result_names_the_code_of_all_that_it_was_made_from(tmp_path, monkeypatch):
    last = Stage("sample", {}, (STAGE,))
    for stage, code in ((STAGE, "one"), (last, "two")):
        monkeypatch.setattr("ablations.engine.stages.code_digest", lambda code=code: code)
        StageStore(tmp_path).run(stage, execute)
    shutil.rmtree(StageStore(tmp_path).directory(STAGE))
    store = StageStore(tmp_path)
    assert store.result(last) is not None
    assert store.codes == {"one", "two"}


@pytest.mark.parametrize("entry", ["files", "result", "code"])
@pytest.mark.parametrize("value", [None, [1], 3])
def test_a_sealed_result_of_other_content_is_damaged(tmp_path, caplog, entry, value):
    StageStore(tmp_path).run(STAGE, execute)
    path = StageStore(tmp_path).directory(STAGE) / "result.json"
    record = read_sealed_json(path)
    write_sealed_json(path, {**record, entry: value})
    if entry == "files":
        with pytest.raises(CorruptFile, match=r"no checksum of data\.bin"):
            StageStore(tmp_path).checksum(STAGE, "data.bin")
    assert StageStore(tmp_path).result(STAGE) is None
    assert f"its entry '{entry}' is no" in caplog.text
    assert StageStore(tmp_path).run(STAGE, execute) == {"value": 7}


def read_only(monkeypatch, folder):
    """Let nothing be written below a folder, whoever asks: root may write where modes forbid it."""
    access, real = os.access, builtins.open
    below = f"{folder}/"

    def refusing(path, mode="r", *rest, **options):
        if f"{path}/".startswith(below) and set(mode) & set("wax+"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return real(path, mode, *rest, **options)

    def no_access(path, mode):
        return not (f"{path}/".startswith(below) and mode == os.W_OK) and access(path, mode)

    monkeypatch.setattr(os, "access", no_access)
    monkeypatch.setattr(builtins, "open", refusing)


def test_what_a_read_only_root_has_is_used_and_what_it_lacks_is_made_elsewhere(
    tmp_path, monkeypatch
):
    other = Stage("train", {"width": 3})
    (tmp_path / "shared").mkdir()

    def store():
        return StageStore(tmp_path / "own", {"train": tmp_path / "shared"})

    store().run(STAGE, execute)
    before = sorted((tmp_path / "shared").rglob("*"))
    read_only(monkeypatch, tmp_path / "shared")
    assert store().run(STAGE, forbidden) == {"value": 7}
    assert store().result(other) is None
    assert store().run(other, execute) == {"value": 7}
    assert store().directory(other).is_relative_to(tmp_path / "own")
    assert sorted((tmp_path / "shared").rglob("*")) == before
    monkeypatch.undo()  # by another machine, that may write there
    assert store().run(other, forbidden) == {"value": 7}


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_disk_without_locks_is_said_and_used(tmp_path, monkeypatch, caplog, number):
    def flock(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    locks._said.clear()
    directory = StageStore(tmp_path).directory(STAGE)
    directory.mkdir(parents=True)
    (directory / ".of-another.tmp").touch()  # without a lock it may be at work
    assert StageStore(tmp_path).run(STAGE, execute) == {"value": 7}
    assert StageStore(tmp_path).run(Stage("train", {}), execute) == {"value": 7}
    assert (directory / ".of-another.tmp").exists()
    assert caplog.text.count("cannot be locked") == 1


def test_reading_all_finds_the_damaged_stages_and_sets_them_aside(tmp_path, caplog):
    def store():
        return StageStore(tmp_path / "own", {"reference": tmp_path / "data"})

    stages = [Stage(kind, {"a": a}) for kind in ("train", "reference") for a in (1, 2)]
    for stage in stages:
        store().run(stage, execute)
    assert store().read_all() == (4, 0)
    for stage in stages[1:3]:  # one below each root
        path = store().directory(stage) / "data.bin"
        path.write_bytes(path.read_bytes()[::-1])
    assert store().read_all() == (2, 2)
    assert caplog.text.count("checksum does not agree") == 2
    found = [store().result(stage) for stage in stages]
    assert found == [{"value": 7}, None, None, {"value": 7}]
    assert store().read_all() == (2, 0)


def edited(monkeypatch, **digests):
    """Let the code be another, in which modules have these digests."""
    monkeypatch.setattr("ablations.engine.stages.code_digest", lambda: str(digests))
    monkeypatch.setattr(
        "ablations.engine.provenance.modules_digest", lambda names: digests.get(names[0], "")
    )


def counted(runs):
    def make(directory):
        runs.append(directory.parent.name)
        (directory / "file").write_text("made")
        return {"run": len(runs)}, [directory / "file"]

    return make


def test_results_of_other_code_are_kept_and_named_and_made_again_when_asked_for(
    tmp_path, monkeypatch
):
    train = Stage("train", {}, code=("network",))
    sample = Stage("sample", {}, (train,), ("sampler",))
    distance = Stage("distance", {}, (sample,), ("metric",))
    runs = []

    def run_all(**options):
        store = StageStore(tmp_path, **options)
        for stage in (train, sample, distance):
            store.run(stage, counted(runs))
        return store

    edited(monkeypatch, network="1", sampler="1", metric="1")
    assert run_all().outdated == set()
    # Another caption: another code, and the same modules.
    edited(monkeypatch, network="1", sampler="1", metric="1", page="2")
    assert run_all(rerun=True).outdated == set()
    assert runs == ["train", "sample", "distance"]
    edited(monkeypatch, network="1", sampler="2", metric="1")
    assert run_all().outdated == {sample, distance}
    assert len(runs) == 3
    store = StageStore(tmp_path, rerun=True)
    assert store.result(train) == {"run": 1} and store.result(sample) is None
    leftover = store.directory(sample) / "chunk-0-4.pt"
    leftover.write_text("of the other code")
    assert run_all(rerun=True).outdated == set()
    assert runs[3:] == ["sample", "distance"] and not leftover.exists()
    assert StageStore(tmp_path).result(distance) == {"run": 5}


def test_what_is_made_of_an_older_result_is_older_too(tmp_path, monkeypatch):
    """Samples of weights that other code trained are not new because they were drawn later."""
    train = Stage("train", {}, code=("network",))
    sample = Stage("sample", {}, (train,), ("sampler",))
    edited(monkeypatch, network="1", sampler="1")
    StageStore(tmp_path).run(train, execute)
    edited(monkeypatch, network="2", sampler="1")
    store = StageStore(tmp_path)
    store.run(train, execute)
    store.run(sample, execute)
    assert store.result(sample) is not None
    assert store.outdated == {train, sample}


def test_a_result_of_before_the_modules_were_recorded_counts_as_older(tmp_path, monkeypatch):
    edited(monkeypatch, network="1")
    stage = Stage("train", {}, code=("network",))
    StageStore(tmp_path).run(stage, execute)
    path = StageStore(tmp_path).directory(stage) / "result.json"
    record = read_sealed_json(path)
    write_sealed_json(path, {k: v for k, v in record.items() if k not in ("made_by", "seal")})
    store = StageStore(tmp_path)
    assert store.result(stage) is not None and store.outdated == set()
    edited(monkeypatch, network="1", page="2")
    assert store.result(stage) is not None and store.outdated == {stage}


def test_what_is_made_again_on_the_way_is_what_a_result_is_made_from(tmp_path, monkeypatch):
    train = Stage("train", {}, code=("network",))
    sample = Stage("sample", {}, (train,), ("sampler",))
    for network in "12":
        edited(monkeypatch, network=network, sampler="1")
        store = StageStore(tmp_path, rerun=True)

        def draw(directory, store=store):
            store.run(train, execute)
            return {}, []

        store.run(sample, draw)
        assert store.result(sample) is not None and store.outdated == set()
