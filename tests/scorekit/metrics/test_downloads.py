"""Inception's weights by the word "download": from an address of this machine, kept, or not had."""

import hashlib

import pytest
import torch
from torch_fidelity import feature_extractor_inceptionv3 as inception

from ablations.launch import main
from scorekit.metrics.downloads import inception_weights_file
from scorekit.metrics.spaces import MetricError


@pytest.fixture
def release(tmp_path, monkeypatch):
    """A file at an address that needs no network, and an empty cache of torch's."""
    content = b"weights"
    name = f"weights-inception-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    (tmp_path / "release").mkdir()
    path = tmp_path / "release" / name
    path.write_bytes(content)
    monkeypatch.setattr(inception, "URL_INCEPTION_V3", path.as_uri())
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return path


def test_a_download_is_kept_where_torch_fidelity_looks_and_named(release, tmp_path, caplog):
    kept = inception_weights_file("download")
    assert kept == tmp_path / "hub" / "checkpoints" / release.name
    assert kept.read_bytes() == b"weights"
    assert f"{release.as_uri()} is fetched to {kept}" in caplog.text
    release.unlink()
    caplog.clear()
    assert inception_weights_file("download") == kept
    assert f"{kept} is there, of {release.as_uri()}" in caplog.text


@pytest.mark.parametrize("what", ["absent", "another"])
def test_a_download_that_fails_says_which_file_to_put_where(what, release, tmp_path):
    if what == "absent":
        release.unlink()
    else:
        release.write_bytes(b"a page of a proxy")
    with pytest.raises(MetricError) as caught:
        inception_weights_file("download")
    kept = tmp_path / "hub" / "checkpoints" / release.name
    line = str(caught.value)
    assert line.startswith(f"--inception-weights download: {release.as_uri()} could not be fetched")
    assert line.endswith(f"put that file at {kept}, or give its path")
    assert "\n" not in line
    assert list((tmp_path / "hub" / "checkpoints").iterdir()) == []


def test_a_path_is_a_path(tmp_path):
    path = tmp_path / "w.pth"
    with pytest.raises(MetricError, match=r"w\.pth: no such file; torch-fidelity's weights-incept"):
        inception_weights_file(path)
    path.touch()
    assert inception_weights_file(str(path)) == path
    assert inception_weights_file(None) is None


def test_the_launcher_takes_the_word(release, tmp_path, inception_weights, capsys):
    arguments = ["--out", str(tmp_path / "out"), "--budget", "quick", "--dry-run"]
    release.unlink()
    assert main([*arguments, "--inception-weights", "download"]) == 2
    assert capsys.readouterr().err.strip().endswith("or give its path")
    kept = tmp_path / "hub" / "checkpoints" / release.name
    kept.write_bytes(inception_weights.read_bytes())
    assert main([*arguments, "--datasets", "patches", "--inception-weights", "download"]) == 0
