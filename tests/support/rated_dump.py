"""Dumps whose truth is seen by brightness, and the rating page's server as a process of its own."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from places import ROOT


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
