"""Training extractors: deterministic, and from labelled folders of images."""

import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from places import ROOT

from scorekit.metrics import train_extractor
from scorekit.metrics.baselines import uniform_noise_samples
from scorekit.metrics.features import extract_features


def test_training_is_deterministic(tmp_path, monkeypatch):
    monkeypatch.setitem(train_extractor.EPOCHS, "digits-cnn", 1)
    accuracy = [train_extractor.train("digits-cnn", tmp_path / str(i), seed=3) for i in range(2)]
    assert accuracy[0] == accuracy[1]
    assert (tmp_path / "0").read_bytes() == (tmp_path / "1").read_bytes()
    train_extractor.train("digits-cnn", tmp_path / "2", seed=4)
    assert (tmp_path / "2").read_bytes() != (tmp_path / "0").read_bytes()


def labelled_folder(path: Path, n_classes: int = 10, splits: tuple[str, ...] = ("train", "test")):
    """Write noisy images of one colour a class, 8 a class to train on and 2 to test on."""
    rng = np.random.Generator(np.random.Philox(0))
    for split in splits:
        for label in range(n_classes):
            folder = path / split / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(8 if split == "train" else 2):
                pixels = 25 * label + rng.integers(0, 25, (32, 32, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    return path


def test_cifar_cnn_is_trained_from_labelled_folders(tmp_path, capsys):
    source = labelled_folder(tmp_path / "images")
    train = ["cifar-cnn", "--source", str(source), "--epochs", "2", "--device", "cpu"]
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        assert train_extractor.main([*train, "--seed", seed, "--out", str(tmp_path / name)]) == 0
    assert "cifar-cnn: accuracy on the test split 0." in capsys.readouterr().out
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()
    images = uniform_noise_samples((3, 32, 32), 2, 0)
    features = extract_features(images, "cifar-cnn", weights_path=tmp_path / "a")
    assert not np.allclose(features, extract_features(images, "cifar-cnn"))


def test_labels_are_the_sorted_class_folders(tmp_path):
    folder = labelled_folder(tmp_path / "images")
    with tarfile.open(tmp_path / "images.tar.xz", "w:xz") as archive:
        archive.add(folder, arcname=".")
    for source in (folder, tmp_path / "images.tar.xz"):
        splits = train_extractor.labelled_images(source)
        assert {split: len(images) for split, (images, _) in splits.items()} == {
            "train": 80,
            "test": 20,
        }
        for images, labels in splits.values():
            assert images.shape[1:] == (3, 32, 32) and images.dtype == torch.uint8
            assert torch.equal(images.float().mean(dim=(1, 2, 3)).div(25).long(), labels)


@pytest.mark.parametrize(
    ("extractor", "n_classes", "splits", "message"),
    [
        ("cifar-cnn", 10, ("train",), "of 10 classes in train/<class>/ and of 0 in test/<class>/"),
        ("cifar-cnn", 3, ("train", "test"), "of 3 classes in .*; the same 10 are right"),
        ("cifar-cnn", 10, ("a", "b"), "of 0 classes in train/<class>/ and of 0"),
        ("cifar-cnn", 0, (), "no such folder"),
        ("cifar-cnn", 10, None, "source=None: cifar-cnn is trained on a folder or archive of"),
        ("digits-cnn", 10, ("train", "test"), "digits-cnn takes none"),
    ],
)
def test_a_source_that_will_not_do_is_one_line(
    tmp_path, capsys, extractor, n_classes, splits, message
):
    arguments = [extractor, "--out", str(tmp_path / "out")]
    if splits is not None:
        source = labelled_folder(tmp_path / "images", n_classes, splits)
        arguments += ["--source", str(source)]
    assert train_extractor.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_it_runs_as_a_module():
    command = [sys.executable, "-W", "error", "-m", "scorekit.metrics.train_extractor"]
    done = subprocess.run(
        [*command, "--help"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "digits-cnn" in done.stdout
