"""The paper's data sets by name, from files in the formats they are distributed in."""

import io
import logging
import tarfile
import zipfile
from pathlib import Path

import lmdb
import numpy as np
import pytest
from PIL import Image
from places import SHARED

from ablations.pipeline.data import data_facts
from scorekit.data.registry import prepare
from scorekit.data.store import DataError, Dataset, check
from scorekit.files import read_sealed_json, write_sealed_json

CIFAR = SHARED / "data/cifar10-jpeg.tar.xz"


def picture(number: int, width: int, height: int) -> Image.Image:
    rng = np.random.Generator(np.random.Philox(number))
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return small.resize((width, height))


def encoded(image: Image.Image, kind: str) -> bytes:
    out = io.BytesIO()
    image.save(out, format=kind)
    return out.getvalue()


def decoded(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def channels_first(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image).transpose(2, 0, 1) for image in images])


# --- CelebA ---------------------------------------------------------------------------------------

PARTITION = [0, 0, 1, 2, 0, 2, 1]


def celeba(folder: Path, kind: str, corrupt: int | None = None) -> list[bytes]:
    files = [encoded(picture(i, 178, 218), "JPEG") for i in range(len(PARTITION))]
    if corrupt is not None:
        files[corrupt] = files[corrupt][:200]
    names = [f"{i + 1:06}.jpg" for i in range(len(files))]
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "zip":
        with zipfile.ZipFile(folder / "img_align_celeba.zip", "w") as archive:
            for name, data in zip(names, files, strict=True):
                archive.writestr(f"img_align_celeba/{name}", data)
    else:
        (folder / "img_align_celeba").mkdir()
        for name, data in zip(names, files, strict=True):
            (folder / "img_align_celeba" / name).write_bytes(data)
    lines = [f"{name} {part}" for name, part in zip(names, PARTITION, strict=True)]
    (folder / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")
    return files


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("zip", ""),
        ("zip", "img_align_celeba.zip"),
        ("folder", ""),
        ("folder", "img_align_celeba"),
    ],
)
def test_celeba_is_cropped_to_140_then_resized(tmp_path, kind, given):
    files = celeba(tmp_path / "in", kind)
    dataset = prepare(f"celeba:{tmp_path / 'in' / given}", tmp_path / "out")
    box = (19, 39, 159, 179)  # the centre 140x140 of 178x218
    squares = [
        decoded(data).crop(box).resize((64, 64), Image.Resampling.BILINEAR) for data in files
    ]
    for split, part in (("train", 0), ("test", 2)):
        wanted = [square for square, p in zip(squares, PARTITION, strict=True) if p == part]
        assert np.array_equal(getattr(dataset, split), channels_first(wanted))
    assert (dataset.name, dataset.flip, dataset.directory.name) == ("celeba", True, "celeba-64-v1")


def test_celeba_faults(tmp_path, caplog):
    celeba(tmp_path / "in", "zip", corrupt=4)
    with pytest.raises(DataError, match=r"celeba\.zip: img_align_celeba/000005\.jpg: cannot be"):
        prepare(f"celeba:{tmp_path / 'in'}", tmp_path / "out")
    with caplog.at_level(logging.WARNING, logger="scorekit"):
        dataset = prepare(f"celeba:{tmp_path / 'in'}", tmp_path / "out", skip_corrupt=True)
    assert dataset.left_out == ("img_align_celeba/000005.jpg",) and len(dataset.train) == 2
    assert "2" in caplog.text and "published: 162770 + 19962" in caplog.text
    partition = tmp_path / "in" / "list_eval_partition.txt"
    partition.write_text(partition.read_text() + "000099.jpg 2\n")
    with pytest.raises(DataError, match=r"lacks 1 images of list_eval_partition\.txt, 000099"):
        prepare(f"celeba:{tmp_path / 'in'}", tmp_path / "other")
    partition.write_text("000001.jpg 7\n")
    with pytest.raises(DataError, match=r"line 1 is '000001\.jpg 7'"):
        prepare(f"celeba:{tmp_path / 'in'}", tmp_path / "other")
    partition.unlink()
    with pytest.raises(DataError, match=r"list_eval_partition\.txt: no such file"):
        prepare(f"celeba:{tmp_path / 'in'}", tmp_path / "other")


# --- LSUN -----------------------------------------------------------------------------------------


def lsun(folder: Path, category: str, n: int = 5, corrupt: bool = False) -> dict[str, list[bytes]]:
    """Write the two lmdbs; return the encoded images of each in the order of their keys."""
    written = {}
    for part, count in (("train", n), ("val", 2)):
        items = {}
        for i in range(count):
            size = (300, 256) if i % 2 else (256, 341)
            data = encoded(picture(i + count, *size), "WEBP" if i % 2 else "JPEG")
            items[f"{(i * 7919) % 1000:03}{part}".encode()] = data
        if corrupt and part == "train":
            first = min(items)
            items[first] = items[first][:99]
        place = folder / f"{category}_{part}_lmdb"
        place.mkdir(parents=True)
        with lmdb.open(str(place), map_size=2**24) as database, database.begin(write=True) as t:
            for key, data in items.items():
                t.put(key, data)
        written[part] = [items[key] for key in sorted(items)]
    return written


@pytest.mark.parametrize(
    ("category", "size", "given"),
    [
        ("church_outdoor", 96, ""),
        ("bedroom", 128, "bedroom_train_lmdb"),
        ("tower", 128, "tower_val_lmdb"),
    ],
)
def test_lsun_smaller_side_then_centre(tmp_path, category, size, given):
    written = lsun(tmp_path / "in", category)
    dataset = prepare(f"{category}:{tmp_path / 'in' / given}", tmp_path / "out")
    assert (dataset.name, dataset.flip) == (category, True)
    assert dataset.directory.name == f"{category}-{size}-v1"
    for split, part in (("train", "train"), ("test", "val")):
        squares = []
        for data in written[part]:
            image = decoded(data)
            long = round(max(image.size) * size / 256)
            wide = image.width > image.height
            image = image.resize((long, size) if wide else (size, long), Image.Resampling.BILINEAR)
            edge = (long - size) // 2
            left, top = (edge, 0) if wide else (0, edge)
            squares.append(image.crop((left, top, left + size, top + size)))
        assert np.array_equal(getattr(dataset, split), channels_first(squares))


def test_another_size_is_another_store(tmp_path):
    lsun(tmp_path / "in", "tower")
    dataset = prepare(f"tower:{tmp_path / 'in'}", tmp_path / "out", image_size=32)
    assert dataset.directory.name == "tower-32-v1" and dataset.image_size == 32
    with pytest.raises(DataError, match="tower: is not prepared"):
        prepare("tower", tmp_path / "out")


def test_lsun_faults(tmp_path):
    lsun(tmp_path / "in", "tower", corrupt=True)
    with pytest.raises(DataError, match=r"tower_train_lmdb: 000train: cannot be decoded"):
        prepare(f"tower:{tmp_path / 'in'}", tmp_path / "out")
    data = tmp_path / "in" / "tower_train_lmdb" / "data.mdb"
    whole = data.read_bytes()
    data.write_bytes(whole[:-9000])
    with pytest.raises(DataError, match=r"data\.mdb: is cut off: \d+ of \d+ bytes"):
        prepare(f"tower:{tmp_path / 'in'}", tmp_path / "out")
    data.write_bytes(b"none" * 5000)
    with pytest.raises(DataError, match="tower_train_lmdb: is not a readable lmdb"):
        prepare(f"tower:{tmp_path / 'in'}", tmp_path / "out")
    data.unlink()
    with pytest.raises(DataError, match=r"has no data\.mdb; unpack tower_train_lmdb\.zip there"):
        prepare(f"tower:{tmp_path / 'in'}", tmp_path / "out")
    # the same process can open the data again once they are right
    data.write_bytes(whole)
    assert len(prepare(f"tower:{tmp_path / 'in'}", tmp_path / "out", skip_corrupt=True).train) == 4


# --- FFHQ and the JPEG copy of CIFAR-10 -----------------------------------------------------------


def ffhq(folder: Path, size: int = 64, n: int = 20) -> None:
    for i in range(n):
        path = folder / f"{i // 10 * 1000:05}" / f"{i:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(i, size, size).save(path)


@pytest.mark.parametrize("zipped", [False, True])
def test_ffhq_draws_a_tenth(tmp_path, zipped):
    ffhq(tmp_path / "in")
    path = tmp_path / "in"
    if zipped:
        path = tmp_path / "zipped" / "thumbnails.zip"
        path.parent.mkdir()
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted((tmp_path / "in").rglob("*.png")):
                archive.write(file, file.relative_to(tmp_path / "in"))
        path = path.parent  # a folder that holds the archive alone is as good
    one, two = (
        prepare(f"ffhq:{path}", tmp_path / "out", image_size=64, seed=seed) for seed in (0, 1)
    )
    assert one.train.shape == (18, 3, 64, 64) and one.test.shape == (2, 3, 64, 64)
    assert one.directory.name == "ffhq-64-seed0-v1" and one.flip

    def rows(dataset: Dataset) -> list[bytes]:
        return sorted(image.tobytes() for split in (dataset.train, dataset.test) for image in split)

    assert rows(one) == rows(two) and len(set(rows(one))) == 20
    assert not np.array_equal(one.test, two.test)


def test_small_faces_are_not_enlarged(tmp_path):
    ffhq(tmp_path / "in", size=64, n=3)
    with pytest.raises(DataError, match=r"00000\.png: is 64x64; sides of at least 256 are needed"):
        prepare(f"ffhq:{tmp_path / 'in'}", tmp_path / "out")


@pytest.mark.parametrize("corrupt", [False, True])
def test_cifar10_jpeg(tmp_path, corrupt):
    files = {
        f"{split}/{label}/{i:04}.jpg": encoded(picture(i, 32, 32), "JPEG")
        for split, n in (("train", 4), ("test", 2))
        for label in ("cat", "dog")
        for i in range(n)
    }
    if corrupt:
        files["test/dog/0001.jpg"] = files["test/dog/0001.jpg"][:100]
    path = tmp_path / "cifar.tar.xz"
    with tarfile.open(path, "w:xz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    if corrupt:
        with pytest.raises(DataError, match=r"tar\.xz: test/dog/0001\.jpg: cannot be decoded"):
            prepare(f"cifar10-jpeg:{path}", tmp_path / "out")
        return
    dataset = prepare(f"cifar10-jpeg:{path}", tmp_path / "out")
    assert (dataset.name, dataset.directory.name) == ("cifar10-jpeg", "cifar10-jpeg-32-v1")
    wanted = [decoded(data) for name, data in sorted(files.items()) if name.startswith("train")]
    assert np.array_equal(dataset.train, channels_first(wanted)) and len(dataset.test) == 4
    facts = data_facts(
        f"cifar10-jpeg:{path}", tmp_path / "out", image_size=None, inception_weights=None
    )
    by_name = data_facts("cifar10-jpeg", tmp_path / "out", image_size=32, inception_weights=None)
    assert facts == by_name and facts.name == "cifar10-jpeg"


def test_cifar10_jpeg_must_be_of_its_size_and_split(tmp_path):
    for split in ("train", "test"):
        (tmp_path / "in" / split).mkdir(parents=True)
        picture(0, 40, 32).save(tmp_path / "in" / split / "0.png")
    with pytest.raises(DataError, match="is 40x32; sides of 32 are needed"):
        prepare(f"cifar10-jpeg:{tmp_path / 'in'}", tmp_path / "out")
    with pytest.raises(DataError, match="has no images in both train/ and test/"):
        prepare(f"cifar10-jpeg:{tmp_path / 'in' / 'train'}", tmp_path / "out")


def jpegs(folder: Path, first: int) -> Path:
    for i in range(6):
        path = folder / ("train" if i < 4 else "test") / "cat" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture(first + i, 32, 32), "JPEG"))
    return folder


def test_a_store_is_only_taken_for_what_it_was_made_from(tmp_path, caplog):
    a, b = jpegs(tmp_path / "a", 0), jpegs(tmp_path / "b", 50)
    made = prepare(f"cifar10-jpeg:{a}", tmp_path / "out")

    def open_from(path: Path | str) -> str:
        return prepare(f"cifar10-jpeg{path and f':{path}'}", tmp_path / "out").fingerprint

    for other in (b, tmp_path / "none"):
        with pytest.raises(DataError, match=r"made from|no such folder") as caught:
            open_from(other)
        assert str(other) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(DataError, match=f"was made from {a}, not from {b}; leave the path out"):
        open_from(b)
    moved = a.rename(tmp_path / "moved")
    assert {open_from(path) for path in (a, moved, "")} == {made.fingerprint}
    (moved / "notes.txt").touch()  # looked at more closely: the same images
    assert open_from(moved) == made.fingerprint
    jpegs(a, 50)  # the same path, but other images
    with pytest.raises(DataError, match=f"was made from {a}, as it was before"):
        open_from(a)
    assert "does not say" not in caplog.text


def test_a_store_of_before_sources_were_recorded_is_taken_and_said(tmp_path, caplog):
    a = jpegs(tmp_path / "a", 0)
    made = prepare(f"cifar10-jpeg:{a}", tmp_path / "out")
    path = made.directory / "store.json"
    record = read_sealed_json(path)
    write_sealed_json(path, {k: v for k, v in record.items() if k != "source"})
    assert prepare(f"cifar10-jpeg:{a}", tmp_path / "out").fingerprint == made.fingerprint
    assert "does not say what it was made from" in caplog.text
    write_sealed_json(path, record | {"source": {"path": 1}})
    assert prepare(f"cifar10-jpeg:{a}", tmp_path / "out").fingerprint == made.fingerprint
    assert "data store damaged" in caplog.text and "its source is {'path': 1}" in caplog.text


@pytest.mark.slow
def test_the_whole_jpeg_copy(tmp_path):
    if not CIFAR.exists():
        pytest.skip(f"{CIFAR.name} is not beside the repository")
    dataset = prepare(f"cifar10-jpeg:{CIFAR}", tmp_path)
    assert dataset.train.shape == (50_000, 3, 32, 32) and dataset.test.shape == (10_000, 3, 32, 32)
    assert dataset.fingerprint.startswith("8f39ff08be7cbabc")
    check(dataset.directory)


# --- what is asked for ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cifar10", "mnist", "celeba", "bedroom", "ffhq", "cifar10-jpeg"])
def test_without_store_and_files_it_says_what_to_do(tmp_path, name):
    with pytest.raises(DataError) as caught:
        prepare(name, tmp_path)
    text = str(caught.value)
    assert "\n" not in text and f"put it into {tmp_path / 'raw' / name}" in text
    assert f"python -m scorekit.data prepare {name} --root {tmp_path}" in text
    assert ("--download" in text) == (name in ("cifar10", "mnist"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cifar10", {"image_size": 64}, "image_size=64: cifar10 has 32; leave it out"),
        ("mnist", {"image_size": 32}, "image_size=32: mnist has 28; leave it out"),
        ("cifar10:", {}, r"dataset=cifar10:: write cifar10\[:PATH\]"),
        ("bedroom", {"image_size": 2}, "image_size=2: a whole number from 4 to 1024"),
        ("ffhq", {"seed": -1}, "seed=-1: a whole number from 0"),
    ],
)
def test_bad_requests(tmp_path, name, options, message):
    with pytest.raises(DataError, match=message):
        prepare(name, tmp_path, **options)
