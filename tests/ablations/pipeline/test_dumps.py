import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from ablations.pipeline.dumps import dump_samples, encode_png
from ablations.pipeline.manifest import load_manifest


@pytest.fixture
def arguments(finished, tmp_path):
    generator = np.random.default_rng(0)
    return {
        "cell": load_manifest(finished / "out").units[0],
        "denoise": True,
        "checkpoint": "0" * 64,
        "iteration": 3,
        "fake": generator.integers(0, 256, (5, 1, 8, 8), dtype=np.uint8),
        "real": generator.integers(0, 256, (9, 1, 8, 8), dtype=np.uint8),
        "directory": tmp_path / "samples",
    }


@pytest.mark.parametrize("channels", [1, 3])
def test_png_keeps_every_value(channels, tmp_path):
    image = np.arange(channels * 64, dtype=np.uint8).reshape(channels, 8, 8)
    path = tmp_path / "x.png"
    path.write_bytes(encode_png(image))
    shown = np.asarray(Image.open(path))
    assert np.array_equal(shown if channels == 1 else np.moveaxis(shown, -1, 0), np.squeeze(image))


def test_a_dump_is_complete_and_left_alone_when_it_is_there(arguments):
    folder = dump_samples(**arguments)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert len(manifest["images"]) == 5
    assert len({image["real_train_index"] for image in manifest["images"]}) == 5
    for i, image in enumerate(manifest["images"]):
        shown = np.asarray(Image.open(folder / "fake" / image["file"]))
        assert np.array_equal(shown, arguments["fake"][i, 0])
    before = (folder / "manifest.json").stat().st_mtime_ns
    assert dump_samples(**arguments) == folder
    assert (folder / "manifest.json").stat().st_mtime_ns == before


def test_another_checkpoint_replaces_the_whole_dump(arguments):
    folder = dump_samples(**arguments)
    (folder / "fake" / "stray.png").write_bytes(b"")
    dump_samples(**arguments | {"checkpoint": "1" * 64, "fake": arguments["fake"][:2]})
    assert json.loads((folder / "manifest.json").read_text())["checkpoint_sha256"] == "1" * 64
    assert sorted(p.name for p in (folder / "fake").iterdir()) == ["00000.png", "00001.png"]


def test_seeds_pair_with_different_real_images(arguments):
    first = dump_samples(**arguments)
    cell = dataclasses.replace(arguments["cell"], seed=1)
    second = dump_samples(**arguments | {"cell": cell})
    assert first != second
    indices = [
        [i["real_train_index"] for i in json.loads((f / "manifest.json").read_text())["images"]]
        for f in (first, second)
    ]
    assert indices[0] != indices[1]
