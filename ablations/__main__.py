"""``scorekit``, or ``python -m ablations``: every program of the project under one name."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

import scorekit
from ablations.engine.interruption import interrupt_on_sigterm
from ablations.engine.settings import nearest
from ablations.engine.surroundings import use_any_terminal

#: Module and what it does, by command.
COMMANDS = {
    "launch": ("ablations.launch", "run the grid of a study, and report it"),
    "report": ("ablations.report", "make the report of an output folder again"),
    "reproduce": ("ablations.reproduce", "make a table or figure of the papers by its name"),
    "hype": ("ablations.hype.__main__", "pack dumps, serve the rating page, score ratings"),
    "data": ("scorekit.data.__main__", "list, prepare and check data sets"),
    "clean": ("ablations.clean", "list or remove what a finished grid can do without"),
    "doctor": ("ablations.doctor", "say what this machine can do"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code, 2 for one that is none."""
    listed = "\n".join(f"  {name:<10} {about}" for name, (_, about) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="scorekit",
        description="A benchmark and ablation harness for score-based generative models.",
        epilog=f"commands:\n{listed}\n\nscorekit COMMAND --help says what each takes.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=scorekit.__version__)
    parser.add_argument("command", metavar="COMMAND")
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="...")
    args = parser.parse_args(argv)
    if args.command not in COMMANDS:
        hint = nearest(args.command, COMMANDS)
        print(
            f"error: command {args.command!r} is unknown{hint}; known: {', '.join(COMMANDS)}",
            file=sys.stderr,
        )
        return 2
    code: int = import_module(COMMANDS[args.command][0]).main(args.rest)
    return code


def console() -> int:
    """Run the console script."""
    use_any_terminal()
    interrupt_on_sigterm()
    return main()


if __name__ == "__main__":
    sys.exit(console())
