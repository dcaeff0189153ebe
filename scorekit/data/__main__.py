"""``python -m scorekit.data``: prepare data sets by name, list them, and check them."""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from scorekit.data.registry import KNOWN, known_dataset, prepare
from scorekit.data.store import DataError, Dataset, check, open_store
from scorekit.files import CorruptFile, read_json

DEFAULT_ROOT = Path("runs/data")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the parsed command line; argparse exits with code 2 on a bad one."""
    parser = argparse.ArgumentParser(
        prog="python -m scorekit.data",
        description="Prepare data sets for training: decoded once, kept under one root. Give "
        "`python -m ablations.launch` the same root as --data-root.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="prepare|list|check")
    described = {
        "prepare": "make a data set's store; the same command goes on where it was interrupted",
        "list": "every known name, where its files are to be had, and what is prepared",
        "check": "compare every byte of the stores with their digests",
    }
    added = {name: commands.add_parser(name, help=text) for name, text in described.items()}
    for command in added.values():
        command.add_argument(
            "--root",
            type=Path,
            default=DEFAULT_ROOT,
            metavar="DIR",
            help=f"where stores are kept: launch's --data-root (default: {DEFAULT_ROOT})",
        )
    add = added["prepare"].add_argument
    add("name", metavar="NAME[:PATH]", help="a name that `list` shows")
    add("--source", metavar="PATH", help="the files to read, as PATH (default: ROOT/raw/NAME)")
    add("--image-size", type=int, metavar="N", help="for imagefolder, CelebA, LSUN and FFHQ")
    add("--seed", type=int, default=0, metavar="N", help="draws FFHQ's and imagefolder's test set")
    add("--workers", type=int, metavar="N", help="decoding threads (default: all cores)")
    add("--skip-corrupt", action="store_true", help="leave out images that cannot be decoded")
    add("--download", action="store_true", help="fetch the files first, where torchvision can")
    added["check"].add_argument("names", nargs="*", metavar="NAME", help="default: every store")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return 0, 2 where the input or a store is bad, or 130 where interrupted."""
    args = parse_arguments(argv)
    logging.basicConfig(format="%(levelname)s: %(message)s")
    try:
        commands = {"prepare": _prepare, "list": _list, "check": _check}
        commands[args.command](args)
    except (DataError, CorruptFile, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command goes on where it stopped", file=sys.stderr)
        return 130
    return 0


def _prepare(args: argparse.Namespace) -> None:
    name = args.name
    if args.source is not None:
        if ":" in name:
            raise DataError(f"--source {args.source}: {name} has a path already; give one")
        name = f"{name}:{args.source}"
    known = known_dataset(name)
    if args.download:
        if known.download is None:
            raise DataError(f"--download: {name} has no downloader; {known.place or known.about}")
        if ":" in name:
            raise DataError(f"--download: {name} says where the files are; give one of the two")
        _download(name, args.root)
    dataset = prepare(
        name,
        args.root,
        image_size=args.image_size,
        seed=args.seed,
        workers=args.workers,
        skip_corrupt=args.skip_corrupt,
    )
    print(f"{dataset.name}: {_described(dataset)}")
    print(f"to use it: --datasets {args.name.partition(':')[0]} --data-root {args.root}")


def _download(name: str, root: Path) -> None:
    folder = root / "raw" / name
    folder.mkdir(parents=True, exist_ok=True)
    download = KNOWN[name].download
    assert download is not None
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            download(folder)
    except (OSError, RuntimeError) as error:  # RuntimeError: no mirror left, or a wrong digest
        raise DataError(
            f"--download: {name} was not fetched ({error}); {KNOWN[name].place} go into {folder}"
        ) from error


def _list(args: argparse.Namespace) -> None:
    prepared: dict[str, list[str]] = {}
    for path, dataset in _stores(args.root):
        if isinstance(dataset, Dataset):
            prepared.setdefault(_base(dataset), []).append(f"prepared: {_described(dataset)}")
        else:
            prepared.setdefault("", []).append(f"damaged: {path} ({dataset.reason})")
    for path in sorted(args.root.glob("*.partial/progress.json")):
        with contextlib.suppress(CorruptFile, KeyError, TypeError, FileNotFoundError):
            record = read_json(path)
            total = sum(record["of"]["counts"].values())
            text = f"interrupted: {record['n_done']:,} of {total:,} images in {path.parent}"
            prepared.setdefault("", []).append(text)
    for name, known in KNOWN.items():
        counts = "" if known.counts is None else "; {:,} + {:,} images".format(*known.counts)
        print(f"{known.spelling}\n    {known.about}{counts}")
        if known.place:
            print(f"    {known.place}{'; or --download' if known.download else ''}")
        for line in prepared.pop(name, ["not prepared"]):
            print(f"    {line}")
    for lines in prepared.values():
        print("\n".join(lines))


def _check(args: argparse.Namespace) -> None:
    stores = list(_stores(args.root))
    known = {_base(dataset) for _, dataset in stores if isinstance(dataset, Dataset)}
    known |= {path.name for path, _ in stores}
    if missing := [name for name in args.names if name not in known]:
        raise DataError(f"{missing[0]}: is not prepared under {args.root}")
    bad: list[CorruptFile] = []
    for path, dataset in stores:
        base = _base(dataset) if isinstance(dataset, Dataset) else ""
        if args.names and not {base, path.name} & set(args.names):
            continue
        try:
            check(path)
        except CorruptFile as error:
            bad.append(error)
        else:
            print(f"{path}: whole")
    if bad:
        raise DataError("; ".join(str(error) for error in bad))
    if not stores:
        print(f"{args.root}: nothing is prepared")


def _stores(root: Path) -> Iterator[tuple[Path, Dataset | CorruptFile]]:
    for record in sorted(root.glob("*/store.json")):
        if ".corrupt-" not in record.parent.name and record.parent.suffix != ".partial":
            try:
                yield record.parent, open_store(record.parent)
            except CorruptFile as error:
                yield record.parent, error


def _base(dataset: Dataset) -> str:
    return dataset.name.partition(":")[0]


def _described(dataset: Dataset) -> str:
    c, h, w = dataset.train.shape[1:]
    left_out = f"; {len(dataset.left_out)} corrupt left out" if dataset.left_out else ""
    return (
        f"{len(dataset.train):,} + {len(dataset.test):,} images of {c}x{h}x{w} "
        f"in {dataset.directory} (fingerprint {dataset.fingerprint[:16]}){left_out}"
    )


if __name__ == "__main__":
    sys.exit(main())
