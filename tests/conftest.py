"""What several test files share."""

import fcntl
import gc
import os
import shutil
import signal
from pathlib import Path

# Read when torch is imported: of workers side by side, and what they start, each has one core.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import forked
import pytest
import slurm_cluster
import torch
from tiny_grid import TOML
from tiny_trials import command, wine

# What a script starts in the background ignores SIGINT, and so would all that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

if not torch.cuda.is_available():
    # Read when the kernels are defined, hence before any of them is imported.
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items):
    """Begin with the files that take longest, lest one worker ends long after the others."""
    first = (
        *("executors/slurm/test_disturbed", "whole/test_faults", "executors/slurm/test_grid"),
        *("scorekit/training/test_trainer", "scorekit/runtime/test_distributed"),
        *("scorekit/sampling/test_langevin", "whole/test_devices", "ablations/test_launch"),
        *("studies/finite_difference/test_study", "whole/test_scale", "ablations/test_reproduce"),
    )

    def place(item):
        names = "/".join(item.path.with_suffix("").parts[-3:])
        return next((i for i, name in enumerate(first) if names.endswith(name)), len(first))

    items.sort(key=place)


def pytest_collection_finish():
    """Let garbage be sought among what tests make, not in all that was imported for them."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def same_threads_afterwards():
    """Jobs that run in this process set torch's number of threads: not for what comes next."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """Make a folder that all workers read: ``make(folder)`` is called by the first that asks."""

    def made(name: str, make) -> Path:
        root = tmp_path_factory.getbasetemp()
        if "PYTEST_XDIST_WORKER" in os.environ:
            root = root.parent
        folder, whole = root / name, root / f"{name}.whole"
        with open(root / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not whole.exists():  # else a worker that died or failed may have begun it
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                threads = torch.get_num_threads()
                make(folder)
                torch.set_num_threads(threads)
                whole.touch()
        return folder

    return made


@pytest.fixture(scope="session")
def finished(made_once, tmp_path_factory):
    """The folder of an undisturbed run of the tiny grid in one process, results in ``out``."""

    def run(folder):
        from ablations.launch import main

        arguments = ["--grid", str(TOML), "--out", str(folder / "out"), "--executor", "inline"]
        assert main([*arguments, "--threads", "1", "--device", "cpu"]) == 0

    folder = tmp_path_factory.mktemp("grid")
    shutil.copytree(made_once("finished", run), folder, dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def finished_trials(made_once):
    """A folder to read: the trials of finite differences, done and reported, in ``out``."""

    def run(folder):
        from ablations.launch import main

        assert main(command(folder / "out", "--data-root", str(wine(folder / "data")))) == 0

    return made_once("finite-difference", run)


@pytest.fixture
def no_report(monkeypatch):
    """Launches in this process leave the report as it is: it takes longer than a tiny grid."""
    monkeypatch.setattr("ablations.launch.refresh_report", lambda out, build: out)


@pytest.fixture
def sketched(monkeypatch):
    """Reports that are made in this process have all but their pictures."""
    monkeypatch.setattr("ablations.reporting.page.save_picture", forked.sketch)


@pytest.fixture
def traced(monkeypatch):
    """What is compiled in this process is traced, backward pass and all, but no machine code."""
    original = torch.compile

    def compile_no_further(function, *, options=None, **policy):
        return original(function, backend="aot_eager", **policy)

    monkeypatch.setattr(torch, "compile", compile_no_further)


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory):
    """A file of random weights in the format of torch-fidelity's Inception: none are shipped."""
    from torch_fidelity import feature_extractor_inceptionv3 as inception

    reference = inception.FeatureExtractorInceptionV3
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        patch.setattr(inception, "load_state_dict_from_url", lambda *a, **k: {})
        patch.setattr(reference, "load_state_dict", lambda self, state: None)
        torch.manual_seed(0)
        network = reference("inception-v3-compat", ["2048"])
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
                torch.nn.init.kaiming_normal_(module.weight)  # torch's own lets signals fade
    path = tmp_path_factory.mktemp("inception") / "w.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """A running ``SlurmCluster``; skips where Slurm is not installed, unless it is required."""
    if missing := slurm_cluster.SlurmCluster.missing():
        reason = f"no {', '.join(missing)} (Debian: {slurm_cluster.DEBIAN_PACKAGES})"
        if os.environ.get("SCOREKIT_REQUIRE_SLURM") == "1":
            pytest.fail(f"SCOREKIT_REQUIRE_SLURM=1, and there is {reason}")
        pytest.skip(reason)
    with slurm_cluster.SlurmCluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster
