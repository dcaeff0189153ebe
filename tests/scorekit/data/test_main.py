"""``python -m scorekit.data``: what it prints, and its exit codes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from places import ROOT

from scorekit.data.__main__ import main
from scorekit.data.registry import prepare


def photos(folder: Path) -> Path:
    folder.mkdir()
    for i in range(4):
        Image.new("RGB", (300, 300), (i * 60, 0, 0)).save(folder / f"{i}.png")
    return folder


def test_prepare_then_list_then_check(tmp_path, capsys):
    root = ["--root", str(tmp_path / "root")]
    source = str(photos(tmp_path / "in"))
    assert main(["list", *root]) == 0
    assert "cifar10[:PATH]\n    32x32, CIFAR-10; 50,000 + 10,000 images" in capsys.readouterr().out
    assert main(["prepare", "ffhq", "--source", source, "--workers", "2", *root]) == 0
    out = capsys.readouterr().out
    assert "ffhq: 3 + 1 images of 3x256x256" in out
    assert f"to use it: --datasets ffhq --data-root {tmp_path / 'root'}" in out
    assert main(["list", *root]) == 0
    out = capsys.readouterr().out
    assert "    prepared: 3 + 1 images of 3x256x256" in out.partition("ffhq[:PATH]")[2]
    assert main(["check", *root]) == main(["check", "ffhq", *root]) == 0
    assert "ffhq-256-seed0-v1: whole" in capsys.readouterr().out
    with open(tmp_path / "root" / "ffhq-256-seed0-v1" / "train.npy", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    assert main(["check", *root]) == 2
    assert "train.npy: its bytes disagree" in capsys.readouterr().err


def test_a_corrupt_image_is_left_out_when_told_so(tmp_path, capsys):
    source = photos(tmp_path / "in")
    (source / "1.png").write_bytes(b"none")
    command = ["prepare", f"ffhq:{source}", "--root", str(tmp_path / "root")]
    assert main(command) == 2
    assert "1.png: cannot be decoded" in capsys.readouterr().err
    assert main([*command, "--skip-corrupt"]) == 0
    assert "1 corrupt left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "cifar11"], "dataset=cifar11: unknown"),
        (["prepare", "tower"], "dataset=tower: is not prepared"),
        (["prepare", "tower:x", "--source", "y"], "has a path already"),
        (["prepare", "tower", "--download"], "--download: tower has no downloader"),
        (["prepare", "cifar10:x", "--download"], "give one of the two"),
        (["prepare", "imagefolder:/no"], "image_size is not set"),
        (["check", "tower"], "tower: is not prepared under"),
    ],
)
def test_bad_input_is_one_line_and_code_2(tmp_path, capsys, arguments, message):
    assert main([*arguments, "--root", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


@pytest.mark.parametrize("name", ["cifar10", "mnist"])
def test_a_failed_download_is_one_line(tmp_path, capsys, monkeypatch, name):
    from torchvision.datasets import CIFAR10, MNIST

    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])
    assert main(["prepare", name, "--download", "--root", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert f"--download: {name} was not fetched" in captured.err
    assert captured.err.count("\n") == 1 and captured.out == ""


def test_it_runs_as_a_module(tmp_path):
    prepare("digits", tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "scorekit.data", "check", "--root", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "digits-v1: whole" in done.stdout
