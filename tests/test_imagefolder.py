"""Folders and archives of images as data sets."""

import io
import logging
import os
import resource
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from scorekit import imagefolder
from scorekit.data import DataError, check, prepare

CIFAR = Path(__file__).parents[1] / "../shared/data/cifar10-jpeg.tar.xz"


def picture(number: int, size: tuple[int, int] = (10, 8)) -> np.ndarray:
    rng = np.random.Generator(np.random.Philox(number))
    return rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


def png(number: int, size: tuple[int, int] = (10, 8), **options) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture(number, size)).save(out, format="PNG", **options)
    return out.getvalue()


def folder(root: Path, names: list[str]) -> Path:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(number))
    return root


def tarball(path: Path, source: Path, prefix: str = "") -> Path:
    mode = "w" if path.suffix == ".tar" else f"w:{path.suffix[1:]}"
    with tarfile.open(path, mode) as archive:
        archive.add(source, arcname=prefix or ".")
    return path


def test_random_split_is_seeded_disjoint_and_complete(tmp_path):
    path = folder(tmp_path / "in", [f"{i % 3}/{i:02}.png" for i in range(25)])
    (path / "notes.txt").write_text("no image")
    (path / "._00.png").write_bytes(b"macOS")
    one = prepare(f"imagefolder:{path}", tmp_path / "out", image_size=8)
    assert one.train.shape == (23, 3, 8, 8) and one.test.shape == (2, 3, 8, 8)
    assert one.name == "imagefolder:in" and one.flip
    other = prepare(f"imagefolder:{path}", tmp_path / "out", image_size=8, seed=1)
    assert other.directory != one.directory

    def rows(dataset):
        return sorted(image.tobytes() for split in (dataset.train, dataset.test) for image in split)

    assert rows(one) == rows(other) and len(set(rows(one))) == 25


@settings(max_examples=50, deadline=None)
@given(st.integers(3, 400), st.integers(0, 2**31))
def test_split_images_any_count_any_seed(n, seed):
    names = [f"{i:05}.png" for i in range(n)]
    splits = imagefolder.split_images(names, seed)
    assert sorted(splits["train"] + splits["test"]) == names
    assert splits["train"] == sorted(splits["train"]) and splits["test"] == sorted(splits["test"])
    assert len(splits["test"]) == max(1, n // 10)
    assert splits == imagefolder.split_images(names, seed)


def test_at_most_ten_thousand_test_images():
    splits = imagefolder.split_images([f"{i:06}.png" for i in range(150_000)], 0)
    assert (len(splits["train"]), len(splits["test"])) == (140_000, 10_000)


@pytest.mark.parametrize("kind", ["folder", "tar", "tar.gz", "tar.xz", "zip"])
@pytest.mark.parametrize("top", ["", "cifar/"])
def test_train_and_test_folders_are_the_splits_in_sorted_order(tmp_path, kind, top):
    names = ["train/b/1.png", "train/a/2.png", "test/z/0.png", "train/a/1.png", "test/y/9.png"]
    source = folder(tmp_path / "in", [top + name for name in names])
    path = source
    if kind == "zip":
        path = tmp_path / "in.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.write(source / top / name, top + name)
    elif kind != "folder":
        path = tarball(tmp_path / f"in.{kind}", source)
    dataset = prepare(f"imagefolder:{path}", tmp_path / "out", image_size=8)
    # 10x8 pictures: the smaller side is 8 already, so this is the crop alone, exact
    expected = {"train": [3, 1, 0], "test": [4, 2]}
    for split, numbers in expected.items():
        wanted = [picture(number)[:, 1:9].transpose(2, 0, 1) for number in numbers]
        assert np.array_equal(getattr(dataset, split), np.stack(wanted))
    assert dataset.name == f"imagefolder:{path.name}"


@pytest.mark.parametrize(
    ("extension", "mode"),
    [
        ("jpg", "RGB"),
        ("jpeg", "L"),
        ("bmp", "RGB"),
        ("webp", "RGB"),
        ("gif", "P"),
        ("png", "RGBA"),
        ("PNG", "1"),
        ("png", "LA"),
    ],
)
def test_formats_and_modes_become_rgb(tmp_path, extension, mode):
    (tmp_path / "in").mkdir()
    for i in range(3):
        image = Image.fromarray(np.full((12, 12, 3), 200, np.uint8))
        image = image.quantize() if mode == "P" else image.convert(mode)
        image.save(tmp_path / "in" / f"{i}.{extension}")
    dataset = prepare(f"imagefolder:{tmp_path / 'in'}", tmp_path / "out", image_size=8)
    assert dataset.train.shape == (2, 3, 8, 8)
    if mode != "1":
        assert np.abs(dataset.train.astype(int) - 200).max() <= 3


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(4, 40))
def test_any_shape_becomes_a_square_of_the_same_colour(width, height, size):
    file = io.BytesIO()
    Image.new("RGB", (width, height), (10, 200, 90)).save(file, format="PNG")
    file.seek(0)
    square = imagefolder.image_square(file, imagefolder.Square(size=size), "x.png")
    assert square.shape == (3, size, size) and square.dtype == np.uint8
    assert (square == np.array([10, 200, 90], np.uint8)[:, None, None]).all()


def test_downscaling_is_antialiased():
    checker = np.indices((64, 64)).sum(0) % 2 * 255
    file = io.BytesIO()
    Image.fromarray(np.stack([checker] * 3, -1).astype(np.uint8)).save(file, format="PNG")
    file.seek(0)
    square = imagefolder.image_square(file, imagefolder.Square(size=8), "x.png")
    assert np.abs(square.astype(int) - 127).max() < 12


def test_one_damaged_image_is_named_and_leaves_no_store(tmp_path):
    path = folder(tmp_path / "in", [f"{i}.png" for i in range(5)])
    (path / "3.png").write_bytes(png(3)[:60])
    with pytest.raises(DataError, match=r"in/3\.png: cannot be decoded"):
        prepare(f"imagefolder:{path}", tmp_path / "out", image_size=8)
    assert list((tmp_path / "out").iterdir()) == []
    archive = tarball(tmp_path / "in.tar.gz", path)
    with pytest.raises(DataError, match=r"in\.tar\.gz: .*3\.png: cannot be decoded"):
        prepare(f"imagefolder:{archive}", tmp_path / "out", image_size=8)


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path):
    path = folder(tmp_path / "in", [f"{i}.png" for i in range(3)])
    Image.new("1", (9000, 9000)).save(path / "bomb.png")
    with pytest.raises(DataError, match=r"bomb\.png: over \d+ pixels: refused"):
        prepare(f"imagefolder:{path}", tmp_path / "out", image_size=8)


def test_sixteen_bit_images_are_refused(tmp_path):
    path = folder(tmp_path / "in", ["0.png", "1.png"])
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(path / "deep.png")
    with pytest.raises(DataError, match=r"deep\.png: .*8 bits"):
        prepare(f"imagefolder:{path}", tmp_path / "out", image_size=8)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "has 0 images"),
        (["a.png", "b.png"], "has 2 images; at least 2 to train"),
        (["train/a.png", "test/b.png", "test/c.png"], "train/ has 1 image; at least 2"),
    ],
)
def test_too_few_images(tmp_path, names, message):
    (tmp_path / "in").mkdir()
    path = folder(tmp_path / "in", names)
    with pytest.raises(DataError, match=message):
        prepare(f"imagefolder:{path}", tmp_path / "out", image_size=8)


@pytest.mark.parametrize("name", ["x.tar.xz", "x.tar", "x.zip", "x.tgz"])
@pytest.mark.parametrize("content", [b"", b"not an archive" * 50])
def test_archives_that_are_none(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}: (is not a readable archive|has 0 images)"):
        prepare(f"imagefolder:{tmp_path / name}", tmp_path / "out", image_size=8)


def test_a_truncated_archive_and_a_file_of_another_kind(tmp_path):
    path = tarball(tmp_path / "in.tar.xz", folder(tmp_path / "in", [f"{i}.png" for i in range(9)]))
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(DataError, match="not a readable archive"):
        prepare(f"imagefolder:{path}", tmp_path / "out", image_size=8)
    (tmp_path / "x.rar").write_bytes(b"Rar!")
    with pytest.raises(DataError, match="neither a folder nor"):
        prepare(f"imagefolder:{tmp_path / 'x.rar'}", tmp_path / "out", image_size=8)


def test_links_in_a_tar_are_not_followed(tmp_path, caplog):
    path = tmp_path / "in.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(folder(tmp_path / "in", ["0.png", "1.png", "2.png"]), arcname=".")
        link = tarfile.TarInfo("evil.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
    with caplog.at_level(logging.WARNING, logger="scorekit"):
        dataset = prepare(f"imagefolder:{path}", tmp_path / "out", image_size=8)
    assert len(dataset.train) + len(dataset.test) == 3
    assert "1 links in the archive are not followed" in caplog.text


def test_a_changed_folder_is_a_new_store_and_the_order_of_creation_is_none(tmp_path):
    path = folder(tmp_path / "in", [f"{i}.png" for i in range(6)])
    one = prepare(f"imagefolder:{path}", tmp_path / "out", image_size=8)
    again = prepare(f"imagefolder:{path}", tmp_path / "out", image_size=8)
    assert again.directory == one.directory
    (path / "6.png").write_bytes(png(6))
    two = prepare(f"imagefolder:{path}", tmp_path / "out", image_size=8)
    assert two.directory != one.directory and two.fingerprint != one.fingerprint
    assert len(two.train) + len(two.test) == 7


def test_a_folder_linked_into_itself_is_read_once(tmp_path):
    path = folder(tmp_path / "in", [f"a/{i}.png" for i in range(4)])
    (path / "a" / "loop").symlink_to(path, target_is_directory=True)
    dataset = prepare(f"imagefolder:{path}", tmp_path / "out", image_size=8)
    assert len(dataset.train) + len(dataset.test) == 4


@pytest.mark.slow
def test_cifar_archive_in_bounded_memory(tmp_path):
    if not CIFAR.exists():
        pytest.skip(f"{CIFAR.name} is not beside the repository")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    dataset = prepare(f"imagefolder:{CIFAR}", tmp_path, image_size=32)
    assert dataset.train.shape == (50_000, 3, 32, 32) and dataset.test.shape == (10_000, 3, 32, 32)
    check(dataset.directory)
    # 184 MB of mapped pages and the list of names; twice the images would be 370 MB
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 450
    with tarfile.open(CIFAR) as archive:
        names = sorted(m.name for m in archive if m.name.startswith("test/") and m.isreg())
        wanted = archive.extractfile(names[0])
        assert wanted is not None
        first = np.asarray(Image.open(wanted).convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(dataset.test[0], first)
