"""``python -m scorekit.checkpoints export``: a snapshot's weights for other programs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from scorekit.checkpoints.export import Weights, export_snapshot
from scorekit.files import CorruptFile


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, or 2 on an error (one line)."""
    parser = argparse.ArgumentParser(
        prog="python -m scorekit.checkpoints",
        description="Files of weights. Raw and averaged weights of each snapshot lie in "
        "OUT/stages/train/<digest> of a grid's output folder.",
    )
    command = parser.add_subparsers(dest="command", required=True)
    export = command.add_parser("export", help="write a snapshot's weights as one safetensors file")
    export.add_argument("snapshot", type=Path, metavar="SNAPSHOT", help="snapshot-<iteration>.pt")
    export.add_argument("out", type=Path, metavar="OUT", help="the file to write, *.safetensors")
    export.add_argument("--weights", choices=get_args(Weights), default="ema", help="default: ema")
    arguments = parser.parse_args(argv)
    try:
        export_snapshot(arguments.snapshot, arguments.out, weights=arguments.weights)
    except (CorruptFile, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{arguments.out}: the {arguments.weights} weights of {arguments.snapshot}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
