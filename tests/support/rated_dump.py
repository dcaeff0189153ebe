"""Dumps whose truth is seen by brightness, and the rating page's server as a process of its own."""

import json
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from places import ROOT

from ablations.hype.__main__ import main
from ablations.hype.ratings import Ratings


def make_dump(folder: Path, *, n=60, size=(8, 8), key=0, **manifest) -> Path:
    """Write a dump of `n` dark flat fakes and `n` light noisy reals, with comments that tell."""
    generator = np.random.default_rng(key)
    names = [f"{i:05d}.png" for i in range(n)]
    for kind, low in (("fake", 0), ("real", 156)):
        (folder / kind).mkdir(parents=True)
        comment = PngInfo()
        comment.add_text("Comment", kind)
        for name in names:
            pixels = generator.integers(low, low + 100, (*size[::-1], 3), dtype=np.uint8)
            if kind == "fake":  # flat, so that compression would tell them
                pixels[1:] = pixels[0, 0]
            Image.fromarray(pixels).save(folder / kind / name, pnginfo=comment)
    images = [{"file": name, "sample_index": i} for i, name in enumerate(names)]
    labels = {"dataset": "digits", "variant": "NCSNv2", "seed": 0, "denoise": True}
    (folder / "manifest.json").write_text(json.dumps(labels | {"images": images} | manifest))
    return folder


class Served:
    """`python -m ablations.hype serve` on `dumps`; at a free port, or at `port`."""

    def __init__(self, dumps: list[Path], ratings: Path, port: int = 0) -> None:
        command = [sys.executable, "-m", "ablations.hype.__main__", "serve", *map(str, dumps)]
        command += ["--ratings", str(ratings), "--port", str(port)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.fullmatch(r"rating page: (http://127\.0\.0\.1:(\d+)/)\n", line)
        assert found, line
        self.url, self.port = found[1], int(found[2])

    def kill(self) -> None:
        """As by kill -9: nothing is cleaned up."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def finish(
    ratings: Ratings, rater: str, choose: Callable[[bool], bool] = lambda truth: truth
) -> Any:
    """Answer a whole round of a rater; return what was shown."""
    current = ratings.begin(rater)
    for truth, _, _ in current.images:
        ratings.answer(rater, choose(truth))
    return current


def png(width=8, height=8, depth=8, colour=2, data=b""):
    def chunk(name, body):
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def refused(arguments, capsys, message):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and len(error) < 700
    assert message in error
