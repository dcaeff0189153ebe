"""CIFAR-10's pickles and MNIST's idx files: read as they are, and never run."""

import gzip
import io
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest

from scorekit.data.registry import prepare
from scorekit.data.store import DataError, check

BATCHES = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]


def batch(number: int, n: int = 4) -> dict:
    rng = np.random.Generator(np.random.Philox(number))
    return {
        b"batch_label": b"testing batch",
        b"labels": [i % 10 for i in range(n)],
        b"data": rng.integers(0, 256, (n, 3072), dtype=np.uint8),
        b"filenames": [b"leptodactylus_%d.png" % i for i in range(n)],
    }


def cifar10(folder: Path, archive: bool = True, **replaced: bytes) -> Path:
    """Write the python version: pickles of protocol 2 with bytes as keys."""
    files = {name: pickle.dumps(batch(i), protocol=2) for i, name in enumerate(BATCHES)}
    files = {**files, "batches.meta": pickle.dumps({b"label_names": [b"cat"]}, 2), **replaced}
    if not archive:
        for name, data in files.items():
            (folder / "cifar-10-batches-py").mkdir(parents=True, exist_ok=True)
            (folder / "cifar-10-batches-py" / name).write_bytes(data)
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize("archive", [True, False])
def test_cifar10_python_version(tmp_path, archive):
    path = cifar10(tmp_path / "in", archive)
    dataset = prepare(f"cifar10:{path}", tmp_path / "out")
    assert (dataset.name, dataset.flip, dataset.directory.name) == (
        "cifar10",
        True,
        "cifar10-32-v1",
    )
    wanted = [batch(i)[b"data"].reshape(-1, 3, 32, 32) for i in range(6)]
    assert np.array_equal(dataset.train, np.concatenate(wanted[:5]))
    assert np.array_equal(dataset.test, wanted[5])
    check(dataset.directory)
    # the store is found without the source, and needs none
    assert prepare("cifar10", tmp_path / "out").fingerprint == dataset.fingerprint


def test_files_under_the_root_are_found_without_a_path(tmp_path):
    cifar10(tmp_path / "out" / "raw" / "cifar10")
    assert len(prepare("cifar10", tmp_path / "out").train) == 20


def test_pickles_of_python_2_are_read(tmp_path):
    """Python 2 wrote bytes as such, and named numpy's module by its old name."""
    images = batch(1)[b"data"]
    old = pickle.dumps({b"data": images}, protocol=2)
    old = old.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    assert b"cnumpy.core.multiarray\n_reconstruct" in old
    path = cifar10(tmp_path / "in", data_batch_2=old)
    assert np.array_equal(
        prepare(f"cifar10:{path}", tmp_path / "out").train[4:8], images.reshape(-1, 3, 32, 32)
    )


class Malicious:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "numpy.load", "builtins.getattr"])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, archive, name):
    import builtins
    import os

    trace = tmp_path / "trace"
    function, argument = {
        "os.system": (os.system, f"touch {trace}"),
        "builtins.eval": (builtins.eval, f"open({str(trace)!r}, 'w')"),
        "numpy.load": (np.load, str(trace)),
        "builtins.getattr": (getattr, "x"),
    }[name]
    evil = pickle.dumps({**batch(3), b"extra": Malicious(function, argument)}, protocol=2)
    path = cifar10(tmp_path / "in", archive, data_batch_3=evil)
    with pytest.raises(DataError, match=r"data_batch_3: is not a batch .*which is refused") as e:
        prepare(f"cifar10:{path}", tmp_path / "out")
    assert "\n" not in str(e.value) and not trace.exists()
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        pickle.dumps(batch(1), 2)[:5000],
        pickle.dumps([1, 2], 2),
        pickle.dumps({b"data": np.zeros((4, 3072))}, 2),
        pickle.dumps({b"data": np.zeros((4, 3071), np.uint8)}, 2),
        pickle.dumps({b"data": np.array([{}], object)}, 2),
    ],
    ids=["empty", "cut", "list", "float", "width", "objects"],
)
def test_a_damaged_batch_is_named(tmp_path, damaged):
    path = cifar10(tmp_path / "in", test_batch=damaged)
    with pytest.raises(DataError, match=r"tar\.gz: .*test_batch: is not a batch of CIFAR-10"):
        prepare(f"cifar10:{path}", tmp_path / "out")


def test_archives_that_are_cut_off_or_of_something_else(tmp_path):
    path = cifar10(tmp_path / "in")
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DataError, match=r"tar\.gz: is not a readable archive"):
        prepare(f"cifar10:{path}", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"has no data_batch_1; cifar-10-python\.tar\.gz"):
        prepare(f"cifar10:{tmp_path / 'empty'}", tmp_path / "out")
    with pytest.raises(DataError, match="no such folder or file"):
        prepare(f"cifar10:{tmp_path / 'nowhere'}", tmp_path / "out")


def idx(number: int, n: int) -> tuple[bytes, np.ndarray]:
    images = np.random.Generator(np.random.Philox(number)).integers(0, 256, (n, 28, 28))
    return struct.pack(">IIII", 0x803, n, 28, 28) + images.astype(np.uint8).tobytes(), images


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("inner", ["", "MNIST/raw"])
def test_mnist(tmp_path, zipped, inner):
    folder = tmp_path / "in" / inner
    folder.mkdir(parents=True)
    wanted = {}
    for number, (split, name) in enumerate((("train", "train"), ("test", "t10k"))):
        data, wanted[split] = idx(number, 7 - number)
        path = folder / f"{name}-images-idx3-ubyte{'.gz' if zipped else ''}"
        path.write_bytes(gzip.compress(data) if zipped else data)
    dataset = prepare(f"mnist:{tmp_path / 'in'}", tmp_path / "out")
    assert (dataset.name, dataset.flip, dataset.train.shape) == ("mnist", False, (7, 1, 28, 28))
    for split, images in wanted.items():
        assert np.array_equal(getattr(dataset, split)[:, 0], images)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_damaged_idx_file_is_named(tmp_path, zipped):
    data = idx(0, 5)[0]
    suffix = ".gz" if zipped else ""
    pack = gzip.compress if zipped else bytes
    (tmp_path / f"train-images-idx3-ubyte{suffix}").write_bytes(pack(data)[:-300])
    (tmp_path / f"t10k-images-idx3-ubyte{suffix}").write_bytes(pack(data))
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte(.gz)?: (cannot be read|is not)"):
        prepare(f"mnist:{tmp_path}", tmp_path / "out")
    labels = struct.pack(">II", 0x801, 5) + bytes(5)
    (tmp_path / f"train-images-idx3-ubyte{suffix}").write_bytes(pack(labels))
    with pytest.raises(DataError, match="is not an idx file of 28x28 images"):
        prepare(f"mnist:{tmp_path}", tmp_path / "out")
    (tmp_path / f"train-images-idx3-ubyte{suffix}").unlink()
    with pytest.raises(DataError, match="has no train-images-idx3-ubyte or"):
        prepare(f"mnist:{tmp_path}", tmp_path / "out")
