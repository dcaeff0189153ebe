import errno
import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from ablations.engine import intact
from ablations.engine.intact import MIN_BYTES, NOTES, IntactFiles
from scorekit.files import CorruptFile

CONTENT = b"0123456789"
CHECKSUMS = {"data.bin": hashlib.sha256(CONTENT).hexdigest()}


@pytest.fixture
def read(monkeypatch):
    """The files that are read, in order; from 10 bytes on they are large."""
    monkeypatch.setattr(intact, "MIN_BYTES", len(CONTENT))
    found, sha256 = [], intact.sha256_file
    monkeypatch.setattr(
        intact, "sha256_file", lambda path: found.append(Path(path).name) or sha256(path)
    )
    return found


@pytest.fixture
def folder(tmp_path, read, monkeypatch):
    """A folder whose one file an earlier process found intact, long after it was written."""
    place = tmp_path / "stage"
    place.mkdir()
    (place / "data.bin").write_bytes(CONTENT)
    with monkeypatch.context() as later:
        later.setattr(intact, "_SETTLED_S", -1.0)
        look(place)
    assert read == ["data.bin"]
    read.clear()
    return place


def look(place, **attributes):
    """Compare the file with its checksum, as a new process does."""
    files = IntactFiles()
    files.__dict__.update(attributes)
    files.check(str(place), CHECKSUMS)


def test_a_large_file_is_read_once_for_all_processes(folder, read):
    look(folder)
    assert read == []
    assert not list(folder.glob(".*"))


def test_damage_of_the_same_size_and_time_of_writing_is_seen(folder):
    path = folder / "data.bin"
    before = path.stat()
    path.write_bytes(CONTENT[::-1])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    with pytest.raises(CorruptFile, match=r"data\.bin: its checksum"):
        look(folder)


def test_a_file_of_another_size_is_damaged(folder):
    (folder / "data.bin").write_bytes(CONTENT + b"!")
    with pytest.raises(CorruptFile, match="checksum"):
        look(folder)


def test_a_copied_folder_is_read_again(folder, read):
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)  # with the notes, and the times of writing
    assert (copy / "data.bin").stat().st_mtime_ns == (folder / "data.bin").stat().st_mtime_ns
    look(copy)
    assert read == ["data.bin"]


def test_damage_behind_the_systems_back_is_seen_when_all_is_read(folder, monkeypatch):
    """A disk that fails changes bytes and no times: the note is made to say what it would."""
    path = folder / "data.bin"
    path.write_bytes(CONTENT[::-1])
    stat = path.stat()
    notes = json.loads((folder / NOTES).read_text())
    notes["data.bin"] |= {"mtime_ns": stat.st_mtime_ns, "ctime_ns": stat.st_ctime_ns}
    (folder / NOTES).write_text(json.dumps(notes))
    look(folder)
    with pytest.raises(CorruptFile, match="checksum"):
        look(folder, reads_all=True)


def test_another_result_of_the_same_file_is_not_taken_for_intact(folder):
    with pytest.raises(CorruptFile, match="checksum"):
        IntactFiles().check(str(folder), {"data.bin": hashlib.sha256(b"").hexdigest()})


@pytest.mark.parametrize("content", ["", "[]", '{"data.bin": 3}', '{"data.bin": {"size"', "\xff"])
def test_damaged_notes_are_as_good_as_none(folder, read, content):
    (folder / NOTES).write_bytes(content.encode("latin-1"))
    look(folder)
    assert read == ["data.bin"]


def test_what_was_written_just_now_gets_no_note(tmp_path, read):
    """Within a tick of the disk's clock it may be written again and keep its times."""
    (tmp_path / "data.bin").write_bytes(CONTENT)
    look(tmp_path)
    assert not (tmp_path / NOTES).exists()


def test_small_files_get_no_note(tmp_path, monkeypatch):
    monkeypatch.setattr(intact, "_SETTLED_S", -1.0)
    (tmp_path / "data.bin").write_bytes(CONTENT)
    assert len(CONTENT) < MIN_BYTES
    look(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["data.bin"]


def test_where_no_note_can_be_written_files_are_read(folder, read, monkeypatch):
    (folder / NOTES).unlink()

    def refuse(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(intact, "_SETTLED_S", -1.0)
    monkeypatch.setattr(intact.os, "replace", refuse)
    look(folder)
    look(folder)
    assert read == ["data.bin"] * 2
    assert [path.name for path in folder.iterdir()] == ["data.bin"]
