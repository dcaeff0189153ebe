import dataclasses
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from PIL import Image
from places import ROOT
from resolved import cell, context, whole_jobs
from torch import nn

from ablations.launch import main
from ablations.pipeline.early_checks import (
    check_extractors,
    check_networks,
    check_out,
    check_text,
    too_few_images,
)
from ablations.pipeline.manifest import load_manifest
from scorekit.data.registry import prepare
from scorekit.models.score_network import ARCHITECTURES, OwnArchitecture


def pictures(folder, n, size=8):
    folder.mkdir(parents=True)
    for i in range(n):
        Image.new("RGB", (size, size), (i, 9 * i % 256, 0)).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def jobs(finished):
    return whole_jobs(load_manifest(finished / "out").units)


def on(jobs, root, spec, extractor, **settings):
    """The jobs, on another data set."""
    data = prepare(spec, root, **settings)
    facts = {"name": data.name, "store": data.directory.name, "extractor": extractor}
    changes = [dataclasses.replace(job.cell.data, **facts) for job in jobs]
    return [
        dataclasses.replace(job, cell=dataclasses.replace(job.cell, data=changed))
        for job, changed in zip(jobs, changes, strict=True)
    ]


def test_extractors_that_fit_pass_and_others_are_named(jobs, tmp_path):
    here = context(tmp_path)
    check_extractors(on(jobs, tmp_path / "data", "digits", "digits-cnn"), here)
    check_extractors(on(jobs, tmp_path / "data", "digits", "patches-cnn"), here)
    with pytest.raises(ValueError, match=r"--datasets patches: .*grey \(1 channel\) images"):
        check_extractors(on(jobs, tmp_path / "data", "patches", "digits-cnn"), here)
    spec = f"imagefolder:{pictures(tmp_path / 'small', 9, size=4)}"
    small = on(jobs, tmp_path / "data", spec, "patches-cnn", image_size=4)
    with pytest.raises(ValueError, match=r"--datasets imagefolder:small: .*at least 8x8"):
        check_extractors(small, here)


def test_weights_are_tried_and_not_only_found(jobs, tmp_path, inception_weights):
    jobs = on(jobs, tmp_path / "data", "digits", "inception-v3-compat")
    here = context(tmp_path)
    check_extractors(jobs, dataclasses.replace(here, extractor_weights=inception_weights))
    state = torch.load(inception_weights, weights_only=True)
    bad = {key: value * float("nan") for key, value in state.items() if value.is_floating_point()}
    others = {
        "nan.pth": (lambda path: torch.save(state | bad, path), "2 of 2 rows are not finite"),
        "other.pth": (lambda path: torch.save({"fc.weight": torch.ones(2)}, path), "holds no Inc"),
        "page.pth": (lambda path: path.write_text("<html>404</html>"), "holds no Inception"),
    }
    for name, (write, message) in others.items():
        write(tmp_path / name)
        wrong = dataclasses.replace(here, extractor_weights=tmp_path / name)
        with pytest.raises(ValueError, match=message):
            check_extractors(jobs, wrong)


def test_nothing_is_loaded_where_nothing_is_left_to_do(finished, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "scorekit.metrics.features", None)
    flags = ["--grid", str(ROOT / "bench" / "tiny.toml"), "--device", "cpu"]
    assert main([*flags, "--out", str(finished / "out")]) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_a_split_of_one_image_is_refused_before_training_and_the_folder_goes_on(tmp_path, capsys):
    folder, out = pictures(tmp_path / "Photos, 2019", 4), tmp_path / "out"
    flags = ["--datasets", f"imagefolder:{folder}", "--set", "image_size=8", "--device", "cpu"]
    flags += ["--out", str(out), "--grid", str(ROOT / "bench" / "tiny.toml")]
    message = "--datasets imagefolder:Photos, 2019: its test split has 1 image(s)"
    assert main([*flags, "--dry-run"]) == 0
    assert f"warning: {message}" in capsys.readouterr().out
    assert main(flags) == 2
    assert message in capsys.readouterr().err
    assert not (out / "grid.json").exists()
    for i in range(30):
        Image.new("RGB", (8, 8), (0, 0, i)).save(folder / f"more-{i}.png")
    assert main([*flags, "--dry-run"]) == 0
    assert "warning: --datasets" not in capsys.readouterr().out


def test_splits_of_two_are_enough(jobs):
    for n, found in ((2, 0), (1, 2), (0, 2)):
        sizes = dataclasses.replace(jobs[0].cell.data, n_train=n, n_test=n)
        job = dataclasses.replace(jobs[0], cell=dataclasses.replace(jobs[0].cell, data=sizes))
        assert len(too_few_images([job, job])) == found


def test_names_that_no_page_can_show():
    for text in ("imagefolder:Möwen 海, [1]", "runs/a b", "$(x)"):
        check_text("--out", text)
    for text in ("Stra\udcdfe", "a\nb", "a\x1b[31m", "a\0"):
        with pytest.raises(ValueError, match="rename it, or give a link"):
            check_text("--out", text)
    check_out(Path("/" + "a/" * 1800))
    with pytest.raises(ValueError, match="its path has 3998 bytes; at most 3776"):
        check_out(Path("/" + "a/" * 1999))


class Own(nn.Module):
    """A network that fails in one way or another."""

    def __init__(self, sigmas, *, width, **others):
        super().__init__()
        self.width = width
        self.layer = nn.Dropout(0.5) if width == 3 else nn.Conv2d(3, 3, 1)

    def forward(self, x, noise_index):
        if self.width == 4:
            raise RuntimeError("a seat\nis taken")
        return self.layer(x)[:, :1] if self.width == 5 else self.layer(x)


@pytest.mark.parametrize(
    ("width", "said"),
    [
        (2, None),
        (3, "width = 3.* fails on images of cifar: ValueError: training continues exactly"),
        (4, r"RuntimeError: a seat$"),
        (5, r"its score is \(1, 1, 32, 32\); \(1, 3, 32, 32\) is needed"),
    ],
)
def test_an_own_network_that_fails_is_refused_before_it_trains(monkeypatch, tmp_path, width, said):
    monkeypatch.setitem(ARCHITECTURES, "own", OwnArchitecture(make=Own))
    jobs = whole_jobs([cell(architecture="own", width=width)])
    with pytest.raises(ValueError, match=said) if said else nullcontext():
        check_networks(jobs, context(tmp_path))


def test_noise_levels_that_an_own_network_cannot_be_told_are_refused(monkeypatch, tmp_path):
    monkeypatch.setitem(ARCHITECTURES, "own", OwnArchitecture(make=Own))
    jobs = whole_jobs([cell(architecture="own", width=2, noise_levels="log_normal")])
    with pytest.raises(ValueError, match=r"needs a network with a method score\(x, sigma\)"):
        check_networks(jobs, context(tmp_path))
    with pytest.raises(ValueError, match="sampling_levels = 2 needs a network that takes any"):
        cell(architecture="own", width=2, sampling_levels=2.0)
