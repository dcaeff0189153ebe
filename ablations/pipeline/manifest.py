"""``OUT/grid.json``: which cells an output folder holds."""

from pathlib import Path

from ablations.engine.manifest import Manifest, ManifestFile
from ablations.pipeline.cell import Cell, cell_from_json

GRID_FILE = ManifestFile(
    name="grid.json",
    version=2,
    key="cells",
    to_json=Cell.to_json,
    from_json=cell_from_json,
    grid="",
)


def load_manifest(out: Path) -> Manifest | None:
    """Return what a folder of cells holds, or None; raises as :meth:`ManifestFile.load`."""
    return GRID_FILE.load(out)
