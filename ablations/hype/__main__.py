"""Human evaluation: pack dumps, serve the rating page, score the ratings (HYPE∞)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ablations.engine.interruption import interrupt_on_sigterm
from ablations.engine.surroundings import use_any_terminal
from ablations.hype.dumps import HypeDump, open_dumps, pack_dumps
from ablations.hype.ratings import Ratings
from ablations.hype.score import hype_scores, hype_table, read_ratings
from ablations.hype.server import HypeServer
from ablations.reporting.table_files import markdown, save_table
from scorekit.files import CorruptFile

RATINGS = Path("hype-ratings")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m ablations.hype", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    dump_help = "folder that a grid wrote below samples/, or a zip of such"

    pack = commands.add_parser("zip", help="one zip with a manifest, to hand to somebody else")
    pack.add_argument("dumps", nargs="+", type=Path, metavar="DUMP", help=dump_help)
    pack.add_argument("--out", type=Path, metavar="FILE.zip", help="default: DUMP.zip, one each")

    serve = commands.add_parser("serve", help="the rating page")
    serve.add_argument("dumps", nargs="+", type=Path, metavar="DUMP", help=dump_help)
    serve.add_argument(
        "--ratings", type=Path, default=RATINGS, metavar="DIR", help="default: ./%(default)s"
    )
    serve.add_argument("--port", type=int, default=8765, help="0: a free one; default %(default)s")
    serve.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen at; any but this machine's own lets others in, unencrypted",
    )
    serve.add_argument("--seed", type=int, default=0, help="of the choice of images")

    score = commands.add_parser("score", help="HYPE∞, as Table 5 has it")
    score.add_argument(
        "paths",
        nargs="+",
        type=Path,
        metavar="DIR_OR_DUMP",
        help=f"folders of ratings (default ./{RATINGS}), and dumps to list even if not rated",
    )
    score.add_argument("--bootstrap", type=int, default=10_000, metavar="N", help="draws of raters")
    score.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    score.add_argument("--out", type=Path, metavar="DIR", help="save table5.* there")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0, or 2 after one line on stderr for bad input."""
    args = parse_arguments(argv)
    command = {"zip": _zip, "serve": _serve, "score": _score}[args.command]
    try:
        command(args)
    except (ValueError, OSError, CorruptFile) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _open_all(paths: Sequence[Path], *, decode: bool = True) -> list[HypeDump]:
    return [dump for path in paths for dump in open_dumps(path, decode=decode)]


def _zip(args: argparse.Namespace) -> None:
    dumps = _open_all(args.dumps)
    groups = {args.out: dumps} if args.out else {_beside(dump): [dump] for dump in dumps}
    if sum(map(len, groups.values())) < len(dumps):
        raise ValueError("two of the dumps would become the same zip; give --out or rename one")
    for out, group in groups.items():
        pack_dumps(group, out)
        n = sum(len(dump.images["fake"]) for dump in group)
        print(f"{out}: {n:,} fakes, {n:,} reals, {out.stat().st_size:,} bytes")


def _beside(dump: HypeDump) -> Path:
    return dump.path.resolve().parent / f"{dump.name}.zip"


def _serve(args: argparse.Namespace) -> None:
    if not 0 <= args.port < 2**16:
        raise ValueError(f"--port {args.port} must be from 0 to 65535")
    ratings = Ratings(args.ratings, _open_all(args.dumps), seed=args.seed)
    interrupt_on_sigterm()
    try:
        with HypeServer(ratings, args.host, args.port) as server:
            print(f"rating page: {server.url}", flush=True)
            print(f"{len(ratings.dumps)} dumps; answers are saved in {args.ratings}; Ctrl-C stops")
            if server.hosts is None:
                print("everybody who can reach this address can rate; nothing is encrypted")
            sys.stdout.flush()
            server.serve_forever()
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on where raters are")
    ratings.close()


def _score(args: argparse.Namespace) -> None:
    def is_dump(path: Path) -> bool:
        return not path.is_dir() or (path / "manifest.json").exists()

    dumps = _open_all([path for path in args.paths if is_dump(path)], decode=False)
    folders = [path for path in args.paths if not is_dump(path)]
    if not folders and RATINGS.is_dir():
        folders = [RATINGS]
    scores = hype_scores(read_ratings(folders), dumps, n_bootstrap=args.bootstrap, seed=args.seed)
    table = hype_table(scores)
    if args.out:
        for path in save_table(table, args.out):
            print(path)
        print()
    print(markdown(table))


if __name__ == "__main__":
    use_any_terminal()
    sys.exit(main())
