"""``python -m ablations.clean OUT``: remove what a finished grid can do without."""

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ablations.engine.context import Context
from ablations.engine.lock import launcher_lock
from ablations.engine.stages import Stage
from ablations.engine.surroundings import use_any_terminal
from ablations.pipeline.cell import Cell
from ablations.pipeline.dumps import dump_name
from ablations.pipeline.jobs import EvaluateJob
from ablations.pipeline.manifest import load_manifest
from ablations.pipeline.selection import selected_iterations
from scorekit.checkpoints.store import snapshot_path
from scorekit.files import CorruptFile


@dataclass(frozen=True, kw_only=True)
class Removable:
    """A file or folder below OUT, why it can go, and the stage whose result it belongs to."""

    path: Path
    reason: str
    stage: Stage | None = None

    @property
    def n_bytes(self) -> int:
        """What it takes on the disk, as the sizes of its files."""
        files = self.path.rglob("*") if self.path.is_dir() else [self.path]
        return sum(path.stat().st_size for path in files if path.is_file())


def find_removable(out: Path | str, *, keep_snapshots: str = "needed") -> list[Removable]:
    """Return what OUT can do without, in order of paths.

    Of finished trainings the checkpoints; where every cell of one is evaluated, and unless
    ``keep_snapshots`` is "all", the snapshots that are neither some cell's selected ones nor the
    last; dumps of no row; what damage set aside. Raises ValueError where OUT holds no grid.
    """
    out = Path(out)
    manifest = load_manifest(out)
    if manifest is None:
        raise ValueError(f"{out} holds no grid (no grid.json); give the --out of one")
    context = Context.reading(out, out / manifest.data_root)
    trainings: dict[Stage, list[Cell]] = {}
    for cell in manifest.units:
        trainings.setdefault(cell.train_stage(), []).append(cell)
    found = []
    for stage, cells in trainings.items():
        directory = context.store.directory(stage)
        if context.store.result(stage) is None:
            continue
        for path in directory.glob("checkpoint-*.pt"):
            found.append(Removable(path=path, reason="checkpoint of a finished training"))
        evaluated = (EvaluateJob(cell=c).is_done(context, thorough=False) for c in cells)
        if keep_snapshots == "all" or not all(evaluated):
            continue
        needed = {cells[0].train.iterations}.union(
            *(selected_iterations(cell, context.store).values() for cell in cells)
        )
        for iteration in cells[0].train.snapshot_iterations:
            path = snapshot_path(directory, iteration)
            if iteration not in needed and path.exists():
                found.append(Removable(path=path, reason="snapshot not selected", stage=stage))
    dumps = {dump_name(cell, denoise=d) for cell in manifest.units for d in (False, True)}
    for path in context.samples.glob("*/manifest.json"):
        if path.parent.name not in dumps:
            found.append(Removable(path=path.parent, reason="dump of no row"))
    for path in out.rglob("*.corrupt-*"):
        if not any(path.is_relative_to(other.path) for other in found):
            found.append(Removable(path=path, reason="damaged, and set aside"))
    return sorted(found, key=lambda item: item.path)


def remove(found: Sequence[Removable], out: Path) -> None:
    """Remove what :func:`find_removable` found; a killed removal is gone on with by the next."""
    store = Context.reading(out).store
    released: dict[Stage, list[str]] = {}
    for item in found:
        if item.stage is not None:
            released.setdefault(item.stage, []).append(item.path.name)
        elif item.path.is_dir():
            shutil.rmtree(item.path)
        else:
            item.path.unlink(missing_ok=True)
    for stage, names in released.items():
        store.release(stage, names)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m ablations.clean",
        description="List what a finished grid can do without; remove it with --yes.",
    )
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--yes", action="store_true", help="remove it (default: only list it)")
    parser.add_argument(
        "--keep-snapshots",
        choices=["needed", "all"],
        default="needed",
        help="needed (default): the selected and the last; other rows of a training, added later, "
        "need all",
    )
    args = parser.parse_args(argv)
    try:
        out = args.out.resolve()
        if not args.yes:
            found = find_removable(out, keep_snapshots=args.keep_snapshots)
            sizes = [item.n_bytes for item in found]
            for item, size in zip(found, sizes, strict=True):
                print(f"{size / 2**20:9.1f} MiB  {item.path.relative_to(out)}  ({item.reason})")
            print(f"{sum(sizes) / 2**20:9.1f} MiB in all; --yes removes them")
            return 0
        load_manifest(out)
        with launcher_lock(out):
            found = find_removable(out, keep_snapshots=args.keep_snapshots)
            size = sum(item.n_bytes for item in found)
            remove(found, out)
        print(f"removed {len(found)} files and folders, {size / 2**20:.1f} MiB")
    except (ValueError, OSError, CorruptFile) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    use_any_terminal()
    sys.exit(main())
