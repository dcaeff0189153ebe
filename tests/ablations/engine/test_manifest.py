import dataclasses
import json

import pytest

from ablations.engine.manifest import load_manifest, save_manifest


def test_a_manifest_survives_the_file_and_is_written_once(finished, tmp_path):
    manifest = load_manifest(finished / "out")
    assert manifest is not None
    assert save_manifest(manifest, tmp_path) is True
    assert load_manifest(tmp_path) == manifest
    assert save_manifest(manifest, tmp_path) is False
    assert load_manifest(tmp_path / "elsewhere") is None


def test_cells_are_added_and_settings_are_not_mixed(finished, tmp_path):
    manifest = load_manifest(finished / "out")
    first = dataclasses.replace(manifest, cells=manifest.cells[:1])
    assert first.merged(manifest, tmp_path).cells == manifest.cells
    assert manifest.merged(first, tmp_path).cells == manifest.cells
    other = dataclasses.replace(manifest, grid="paper")
    assert manifest.merged(other, tmp_path).grid == "tiny + paper"
    assert manifest.merged(other, tmp_path).merged(manifest, tmp_path).grid == "tiny + paper"
    for change in ({"budget": "paper"}, {"overrides": {"width": 3}}):
        with pytest.raises(ValueError, match=f"{next(iter(change))}.*choose another --out"):
            manifest.merged(dataclasses.replace(manifest, **change), tmp_path)
    changed = dataclasses.replace(manifest.cells[0], step_size=1e-5)
    with pytest.raises(ValueError, match="another digits/ncsn_124/seed0"):
        manifest.merged(dataclasses.replace(manifest, cells=[changed]), tmp_path)


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
