"""What several test files share."""

import gc
import os
import signal

# Read when torch is imported: of workers side by side, and what they start, each has one core.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import forked
import pytest
import slurm_cluster
import torch
from tiny_grid import TOML

# What a script starts in the background ignores SIGINT, and so would all that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

if not torch.cuda.is_available():
    # Read when the kernels are defined, hence before any of them is imported.
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items):
    """Begin with the files that take longest, lest one worker ends long after the others."""
    first = ("executors/slurm/test_grid", "whole/test_faults", "ablations/test_launch")

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
def finished(tmp_path_factory):
    """The folder of an undisturbed run of the tiny grid in this process, results in ``out``."""
    from ablations.launch import main

    folder = tmp_path_factory.mktemp("grid")
    arguments = ["--grid", str(TOML), "--out", str(folder / "out"), "--executor", "inline"]
    threads = torch.get_num_threads()
    assert main([*arguments, "--threads", "1", "--device", "cpu"]) == 0
    torch.set_num_threads(threads)
    return folder


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
