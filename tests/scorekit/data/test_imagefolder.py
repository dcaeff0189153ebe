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
from PIL import Image, ImageOps

from scorekit.data import imagefolder
from scorekit.data.registry import prepare
from scorekit.data.store import DataError


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
    assert "in.tar: left out: 1 links" in caplog.text


def tree(root: Path) -> Path:
    return folder(root, [f"{i:02}.png" for i in range(20)])


def numbers(dataset) -> list[int]:
    """Return which of `picture(number)`, 10x8, the images of both splits are."""
    known = {picture(i)[:, 1:9].transpose(2, 0, 1).tobytes(): i for i in range(99)}
    return [known[x.tobytes()] for split in (dataset.train, dataset.test) for x in split]


@pytest.mark.parametrize(
    "dropping",
    [
        ".ipynb_checkpoints/00-checkpoint.png",
        "a/.thumbnails/large/00.png",
        ".Trash-1000/files/00.png",
        "@eaDir/00.png/SYNOPHOTO_THUMB_M.png",
        "__MACOSX/00.png",
        "$RECYCLE.BIN/S-1/00.png",
        ".hidden.png",
        "a/._00.png",
    ],
)
@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_what_tools_keep_beside_images_is_none_of_them(tmp_path, caplog, kind, dropping):
    source = tree(tmp_path / "in")
    before = imagefolder.listing_digest(source)
    (source / dropping).parent.mkdir(parents=True, exist_ok=True)
    (source / dropping).write_bytes(png(0))
    assert imagefolder.listing_digest(source) == before
    path = source
    if kind == "tar":
        path = tarball(tmp_path / "in.tar", source)
    if kind == "zip":
        path = tmp_path / "in.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for file in source.rglob("*"):
                archive.write(file, str(file.relative_to(source)))
    with caplog.at_level(logging.WARNING, logger="scorekit"):
        dataset = prepare(f"imagefolder:{path}", tmp_path / "out", image_size=8)
    assert sorted(numbers(dataset)) == list(range(20))
    assert "left out: 1 " in caplog.text and "hidden" in caplog.text


def test_files_of_other_kinds_are_counted_and_said(tmp_path, caplog):
    source = tree(tmp_path / "in")
    for name in ("a.tiff", "b.TIFF", "c.heic", "notes"):
        (source / name).write_bytes(b"")
    (source / "gone.png").symlink_to("nowhere.png")
    (source / "self.png").symlink_to("self.png")
    os.mkfifo(source / "fifo.png")
    with caplog.at_level(logging.WARNING, logger="scorekit"):
        dataset = prepare(f"imagefolder:{source}", tmp_path / "out", image_size=8)
        prepare(f"imagefolder:{source}", tmp_path / "out", image_size=8)
    assert len(dataset.train) + len(dataset.test) == 20
    (said,) = caplog.messages
    assert said == (
        f"{source}: left out: 3 links to nothing, or no files, 2 .tiff, 1 .heic, 1 without a suffix"
    )


def test_a_file_with_several_names_is_one_image(tmp_path, caplog):
    source, other = tree(tmp_path / "in"), folder(tmp_path / "other", ["x/20.png", "21.png"])
    (source / "other").symlink_to(other)  # links to folders are followed,
    (source / "again").symlink_to(other)  # once
    (source / "02b.png").symlink_to("02.png")
    (source / "latest.png").symlink_to(other / "21.png")
    (source / "here").symlink_to(source)
    with caplog.at_level(logging.WARNING, logger="scorekit"):
        assert sorted(imagefolder.list_images(source)) == [
            *(f"{i:02}.png" for i in range(20)),
            "again/21.png",
            "again/x/20.png",
        ]
    assert "2 links to folders that are here, 2 other names of the same images" in caplog.text


def test_links_in_train_and_test_folders_are_the_split(tmp_path):
    source = tree(tmp_path / "in")
    for i in range(20):
        link = source / ("train" if i < 15 else "test") / f"{i:02}.png"
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(source / f"{i:02}.png")
    dataset = prepare(f"imagefolder:{source}", tmp_path / "out", image_size=8)
    assert numbers(dataset) == list(range(20)) and len(dataset.test) == 5
    (source / "test" / "a.png").symlink_to("../train/03.png")
    with pytest.raises(DataError, match=r"train/03\.png and test/a\.png are the same file"):
        prepare(f"imagefolder:{source}", tmp_path / "out", image_size=8)


def test_links_in_a_zip_are_not_followed(tmp_path, caplog):
    path = tmp_path / "in.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(4):
            archive.writestr(f"{i}.png", png(i))
        link = zipfile.ZipInfo("evil.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/hostname")
    with caplog.at_level(logging.WARNING, logger="scorekit"):
        dataset = prepare(f"imagefolder:{path}", tmp_path / "out", image_size=8)
    assert numbers(dataset) and len(dataset.train) + len(dataset.test) == 4
    assert "in.zip: left out: 1 links" in caplog.text


def test_a_zip_with_backslashes_has_folders(tmp_path):
    path = tmp_path / "in.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(9):
            info = zipfile.ZipInfo("x")
            info.filename = f"in\\{'train' if i < 6 else 'test'}\\{i}.png"
            archive.writestr(info, png(i))
    dataset = prepare(f"imagefolder:{path}", tmp_path / "out", image_size=8)
    assert numbers(dataset) == list(range(9)) and len(dataset.test) == 3


# --- pictures as they are shown -------------------------------------------------------------------


def square_of(image: Image.Image, kind: str, size: int = 16, **options) -> np.ndarray:
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    file.seek(0)
    return imagefolder.image_square(file, imagefolder.Square(size=size), "x")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_tag_is_obeyed(kind, orientation):
    image = Image.new("RGB", (16, 16), (0, 0, 255))
    image.paste((200, 30, 40), (0, 0, 16, 8))
    image.paste((20, 230, 40), (0, 0, 4, 4))
    exif = Image.Exif()
    exif[0x112] = orientation
    file = io.BytesIO()
    image.save(file, format=kind, exif=exif)
    shown = ImageOps.exif_transpose(Image.open(file)).convert("RGB")
    got = imagefolder.decode_image(
        lambda: io.BytesIO(file.getvalue()), "x", imagefolder.Square(size=16)
    )
    assert np.array_equal(got, np.asarray(shown).transpose(2, 0, 1))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_damaged_tag_leaves_the_picture_as_it_is_stored():
    image = Image.fromarray(picture(1, (16, 16)))
    got = square_of(image, "PNG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01")
    assert np.array_equal(got, np.asarray(image).transpose(2, 0, 1))


def rgba(hidden):
    image = Image.new("RGBA", (8, 8), (*hidden, 0))
    image.paste((200, 30, 40, 255), (0, 0, 8, 4))
    return image


def palette(hidden):
    image = Image.new("P", (8, 8), 0)
    image.putpalette([*hidden, 200, 30, 40] + [0] * 762)
    image.paste(1, (0, 0, 8, 4))
    return image


def grey(hidden):
    image = Image.new("LA", (8, 8), (hidden[0], 0))
    image.paste((200, 255), (0, 0, 8, 4))
    return image


def keyed(hidden):
    image = Image.new("RGB", (8, 8), hidden)
    image.paste((200, 30, 40), (0, 0, 8, 4))
    return image


@pytest.mark.parametrize(
    ("make", "kind", "options"),
    [
        (rgba, "PNG", {}),
        (rgba, "WEBP", {"lossless": True, "exact": True}),
        (palette, "PNG", {"transparency": 0}),
        (palette, "GIF", {"transparency": 0}),
        (grey, "PNG", {}),
        (keyed, "PNG", {}),
    ],
)
def test_what_is_transparent_lies_on_white(make, kind, options):
    for hidden in ((0, 0, 0), (13, 250, 77)):
        if make is keyed:
            options = {"transparency": hidden}
        got = square_of(make(hidden), kind, 8, **options)
        assert (got[:, 4:] == 255).all()
        colour = (200, 200, 200) if make is grey else (200, 30, 40)
        assert (got[:, :4] == np.array(colour)[:, None, None]).all()


def test_an_opaque_picture_is_not_changed_by_its_alpha():
    pixels = picture(3, (16, 16))
    image = Image.fromarray(pixels).convert("RGBA")
    assert np.array_equal(square_of(image, "PNG"), pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("size", [(200_000, 1), (1, 200_000), (65_535, 2)])
def test_a_thin_picture_is_its_middle_in_little_memory(size):
    pixels = np.full((max(size), min(size), 3), (255, 0, 0), np.uint8)
    pixels[max(size) // 2 - 30 : max(size) // 2 + 30] = (0, 40, 250)
    image = Image.fromarray(pixels if size[1] > size[0] else pixels.transpose(1, 0, 2).copy())
    file = io.BytesIO()
    image.save(file, format="PNG")
    low, high = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**28, high))
    try:
        got = imagefolder.decode_image(
            lambda: io.BytesIO(file.getvalue()), "x", imagefolder.Square(size=64)
        )
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (low, high))
    assert (got == np.array([0, 40, 250], np.uint8)[:, None, None]).all()


def test_out_of_memory_is_a_picture_that_can_be_passed_over(tmp_path, monkeypatch):
    def no_room(*arguments):
        raise MemoryError

    monkeypatch.setattr(Image.Image, "resize", no_room)
    with pytest.raises(DataError, match=r"x: cannot be decoded as an image \(MemoryError\)"):
        square_of(Image.new("RGB", (9, 9)), "PNG", 8)


@pytest.mark.parametrize("kind", ["EPS", "TIFF", "PPM", "ICO"])
def test_bytes_of_another_format_are_given_to_no_decoder(monkeypatch, kind):
    def started(*arguments, **options):
        raise AssertionError(arguments)

    monkeypatch.setattr("subprocess.Popen", started)
    monkeypatch.setattr("subprocess.check_call", started)
    with pytest.raises(DataError, match="is none of PNG, JPEG, BMP, WEBP, GIF"):
        square_of(Image.new("RGB", (16, 16)), kind)


def test_a_jpeg_with_a_second_picture_is_its_first():
    image = Image.fromarray(np.full((16, 16, 3), 90, np.uint8))
    other = Image.new("RGB", (16, 16))
    assert np.array_equal(
        square_of(image, "MPO", save_all=True, append_images=[other]), square_of(image, "JPEG")
    )


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
