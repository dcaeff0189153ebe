"""Dumps of strangers: packed, opened, refused."""

import hashlib
import io
import shutil
import stat
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rated_dump import make_dump, png, refused

from ablations.hype.__main__ import main
from ablations.hype.dumps import open_dumps, pack_dumps
from ablations.hype.ratings import Ratings
from ablations.hype.score import (
    hype_scores,
    hype_table,
    read_ratings,
)
from ablations.reporting.page import rich
from ablations.reporting.table_files import markdown


def test_a_dump_that_is_too_small_or_given_twice_is_refused(dump, opened, tmp_path):
    small = open_dumps(make_dump(tmp_path / "small", n=49))
    with pytest.raises(ValueError, match="49 fakes and reals; a round needs 50 each"):
        Ratings(tmp_path / "ratings", small)
    with pytest.raises(ValueError, match="the same dump as"):
        Ratings(tmp_path / "ratings", [opened, opened])


def test_a_zip_has_the_same_bytes_each_time_and_is_the_same_dump(dump, opened, tmp_path):
    copy = shutil.copytree(dump, tmp_path / "x" / dump.name)
    first = pack_dumps([opened], tmp_path / "a.zip").read_bytes()
    assert pack_dumps(open_dumps(copy), tmp_path / "b.zip").read_bytes() == first
    (packed,) = open_dumps(tmp_path / "a.zip")
    assert (packed.digest, packed.label, packed.images) == (
        opened.digest,
        opened.label,
        opened.images,
    )
    entry = packed.manifest["images"][7]
    for kind in ("fake", "real"):
        data = (dump / kind / entry["file"]).read_bytes()
        assert entry[f"{kind}_sha256"] == hashlib.sha256(data).hexdigest()
        assert np.array_equal(packed.pixels(kind, entry["file"]), Image.open(io.BytesIO(data)))
    assert pack_dumps([packed], tmp_path / "c.zip").read_bytes() == first
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:  # no clock and no zlib in the bytes
        members = {(m.date_time, m.compress_type) for m in archive.infolist()}
    assert members == {((1980, 1, 1, 0, 0, 0), zipfile.ZIP_STORED)}


def test_one_zip_holds_several_dumps(opened, tmp_path, capsys):
    other = make_dump(tmp_path / "other", key=1)
    out = tmp_path / "both.zip"
    assert main(["zip", str(opened.path), str(other), "--out", str(out)]) == 0
    assert "120 fakes, 120 reals" in capsys.readouterr().out
    assert [dump.name for dump in open_dumps(out)] == [opened.name, "other"]
    Ratings(tmp_path / "ratings", open_dumps(out)).close()
    assert main(["score", str(out), str(tmp_path / "ratings")]) == 0
    assert capsys.readouterr().out.count("not rated yet") == 2


def add(archive, name, data=b"", mode=stat.S_IFREG | 0o644):
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, mode << 16
    archive.writestr(info, data)


@pytest.mark.parametrize(
    ("name", "mode", "message"),
    [
        ("../evil.png", stat.S_IFREG, "is not NAME/manifest.json"),
        ("/etc/passwd", stat.S_IFREG, "is not NAME/manifest.json"),
        ("d/fake/../../x.png", stat.S_IFREG, "is not NAME/manifest.json"),
        ("d\\fake\\x.png", stat.S_IFREG, "is not NAME/manifest.json"),
        ("d/fake/<b>.png", stat.S_IFREG, "is not NAME/manifest.json"),
        ("d/fake/\x1b[31m.png", stat.S_IFREG, r"'d/fake/\x1b[31m.png' is not NAME"),
        ("d/fake/99999.png", stat.S_IFLNK | 0o777, "is a symbolic link"),
        ("d/manifest.json", stat.S_IFREG, "two members have the same name"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_hostile_members_of_a_zip_are_refused(opened, tmp_path, capsys, name, mode, message):
    path = pack_dumps([opened], tmp_path / "d.zip")
    with zipfile.ZipFile(path, "a") as archive:
        target = name.replace("d/manifest", f"{opened.name}/manifest")
        add(archive, target, b"/etc/passwd", mode)
    refused(["serve", str(path)], capsys, message)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"<svg onload=alert(1)>", "fake/00003.png is not a PNG"),
        (b"", "fake/00003.png is not a PNG"),
        (png(100_000, 100_000), "100000×100000 pixels; at most 1024 a side"),
        (png(0, 8), "0×8 pixels"),
        (png(9, 8, data=b"\0" * 28 * 8), "9×8 pixels, others 8×8: the size would give"),
        (png(8, 8, colour=3), "is not 8-bit grey or RGB"),
        (png(8, 8, depth=16), "is not 8-bit grey or RGB"),
        (png(8, 8, data=b"\0" * 10), "fake/00003.png cannot be decoded"),
        (png()[:60], "fake/00003.png cannot be decoded"),
        (png() + b"\0" * 2**24, "larger than 16,777,216 bytes"),
    ],
)
def test_hostile_images_are_refused(dump, tmp_path, capsys, data, message):
    copy = shutil.copytree(dump, tmp_path / "copy")
    (copy / "fake" / "00003.png").write_bytes(data)
    refused(["zip", str(copy)], capsys, message)
    assert list(tmp_path.iterdir()) == [copy]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "must list 1 to 100,000 images"),
        ('{"images": []}', "must list 1 to 100,000 images"),
        ('{"images": [7]}', "names an image None"),
        ('{"images": [{"file": "../../secret.png"}]}', "names an image '../../secret.png'"),
        ('{"images": [{"file": "/etc/passwd"}]}', "names an image '/etc/passwd'"),
        ('{"images": [{"file": "a.png\\n"}]}', r"names an image 'a.png\n'"),
        ('{"images": [{"file": "00000.png"}, {"file": "00000.png"}]}', "an image twice"),
        ('{"images": [{"file": "77777.png"}]}', "fake/77777.png is missing"),
        ('{"images": [{"file": "00000.png", "real_sha256": "0"}]}', "does not have the SHA-256"),
    ],
)
def test_hostile_manifests_are_refused(dump, tmp_path, capsys, text, message):
    copy = shutil.copytree(dump, tmp_path / "copy")
    (copy / "manifest.json").write_text(text)
    refused(["score", str(copy)], capsys, message)


@pytest.mark.parametrize("where", ["fake/00000.png", "fake", "manifest.json"])
def test_symbolic_links_are_refused(dump, tmp_path, capsys, where):
    copy = shutil.copytree(dump, tmp_path / "copy")
    (copy / where).rename(tmp_path / "elsewhere")
    (copy / where).symlink_to(tmp_path / "elsewhere")
    refused(["serve", str(copy)], capsys, "is a symbolic link; a dump holds plain files only")


@given(position=st.integers(0, 10**6), value=st.integers(0, 255))
@settings(max_examples=40, deadline=None)
def test_a_damaged_zip_is_refused_in_one_line_or_says_the_same(
    opened, tmp_path_factory, position, value
):
    path = pack_dumps([opened], tmp_path_factory.mktemp("zip") / "d.zip")
    data = bytearray(path.read_bytes())
    data[position % len(data)] = value
    path.write_bytes(data)
    found = images_or_reason(path)
    assert found == [opened.images] or "\n" not in found


def images_or_reason(path):
    try:
        return [dump.images for dump in open_dumps(path)]
    except ValueError as error:
        return str(error)


def test_no_zip_is_no_dump(tmp_path, capsys):
    (tmp_path / "x.zip").write_bytes(b"PK\3\4 no")
    refused(["serve", str(tmp_path / "x.zip")], capsys, "cannot be read as a zip")
    refused(["serve", str(tmp_path / "absent")], capsys, "no such dump")


def test_a_strangers_words_are_text(tmp_path, capsys):
    words = "<script>alert(1)</script>|*\x1b[31m\n" + "x" * 500
    dump = make_dump(tmp_path / "d", variant=words, dataset=["<b>"], seed="<i>", denoise=None)
    (opened,) = open_dumps(dump)
    table = hype_table(hype_scores(read_ratings([]), [opened]))
    assert r"\<script\>alert(1)\</script\>\|\*" in markdown(table)
    assert "\x1b" not in markdown(table) and "x" * 100 not in markdown(table)
    assert "<script" not in rich(table.display["Model"][0])
    assert table.display["Dataset"][0] == "—"
