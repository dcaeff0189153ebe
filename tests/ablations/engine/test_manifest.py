import dataclasses
import json

import pytest

from ablations.pipeline.manifest import GRID_FILE, load_manifest


def test_a_manifest_survives_the_file_and_is_written_once(finished, tmp_path):
    manifest = load_manifest(finished / "out")
    assert manifest is not None
    assert GRID_FILE.save(manifest, tmp_path) is True
    assert load_manifest(tmp_path) == manifest
    assert GRID_FILE.save(manifest, tmp_path) is False
    assert load_manifest(tmp_path / "elsewhere") is None


def test_units_are_added_and_settings_are_not_mixed(finished, tmp_path):
    manifest = load_manifest(finished / "out")

    def merged(begun, added):
        return GRID_FILE.merged(begun, added, tmp_path)

    first = dataclasses.replace(manifest, units=manifest.units[:1])
    assert merged(first, manifest).units == manifest.units
    assert merged(manifest, first).units == manifest.units
    other = dataclasses.replace(manifest, grid="paper")
    assert merged(manifest, other).grid == "tiny + paper"
    assert merged(merged(manifest, other), manifest).grid == "tiny + paper"
    for change in ({"budget": "paper"}, {"overrides": {"width": 3}}):
        with pytest.raises(ValueError, match=f"{next(iter(change))}.*choose another --out"):
            merged(manifest, dataclasses.replace(manifest, **change))
    changed = dataclasses.replace(manifest.units[0], step_size=1e-5)
    with pytest.raises(ValueError, match="another digits/ncsn_124/seed0: step_size changed since"):
        merged(manifest, dataclasses.replace(manifest, units=[changed]))


def test_a_folder_of_an_earlier_launcher_is_read(finished, tmp_path):
    """Its manifest has the format, the version and the entries that it had before."""
    record = json.loads((finished / "out" / "grid.json").read_text())
    assert (record["format"], record["results_version"]) == (2, 6)
    for new in ("sha256", "skipped"):
        del record[new]
    (tmp_path / "grid.json").write_text(json.dumps(record))
    assert load_manifest(tmp_path) == load_manifest(finished / "out")


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null", '"x"', '{"format": 2}'])
def test_a_damaged_or_foreign_manifest_is_one_clear_line(tmp_path, text):
    (tmp_path / "grid.json").write_text(text)
    with pytest.raises(ValueError, match=r"grid\.json|incompatible version"):
        load_manifest(tmp_path)


def test_a_manifest_with_a_value_out_of_range_is_refused(finished, tmp_path):
    record = json.loads((finished / "out" / "grid.json").read_text())
    del record["sha256"]  # as a folder of before there were checksums
    (tmp_path / "grid.json").write_text(json.dumps(record))
    assert load_manifest(tmp_path) == load_manifest(finished / "out")
    record["cells"][0]["train"]["ema_momentum"] = 2.0
    (tmp_path / "grid.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"is damaged.*ema_momentum"):
        load_manifest(tmp_path)


def test_a_manifest_of_which_a_letter_changed_is_refused(finished, tmp_path):
    text = (finished / "out" / "grid.json").read_text()
    assert '"grid": "tiny"' in text
    (tmp_path / "grid.json").write_text(text.replace('"grid": "tiny"', '"grid": "tine"'))
    with pytest.raises(ValueError, match=r"grid\.json: its checksum does not agree.*remove it"):
        load_manifest(tmp_path)
