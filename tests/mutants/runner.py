"""Deliberate errors, one at a time, and whether the tests notice.

Lists of errors are the ``MUTANTS`` of the modules :data:`LISTS`. Each error is put into a
temporary copy of the checkout, never into the checkout itself, and the test files that should
notice it are run there; before that they have to pass without it. A regular expression limits the
run to the errors whose path, old or new text it is found in.
"""

import argparse
import importlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

LISTS = ("grid", "training", "trials")
#: Seconds after which tests count as hanging, which is noticing.
TIMEOUT_S = 900


@dataclass(frozen=True)
class Mutant:
    """One error: ``old``, which is in the file ``path`` once, becomes ``new``.

    ``tests`` are what pytest is given, from the checkout's root: files or names of tests. ``why``
    says of one that no test notices why that is right.
    """

    path: str
    old: str
    new: str
    tests: tuple[str, ...]
    why: str = ""

    def __str__(self) -> str:
        def first_difference(lines: list[str], others: list[str]) -> str:
            return next((line for line in lines if line not in others), lines[0]).strip()

        old, new = self.old.splitlines() or [""], self.new.splitlines() or [""]
        return f"{self.path}: {first_difference(old, new)} -> {first_difference(new, old)}"

    def put_into(self, checkout: Path) -> str:
        """Change the file; return its text as it was. ValueError unless ``old`` is there once."""
        path = checkout / self.path
        text = path.read_text()
        if (count := text.count(self.old)) != 1:
            raise ValueError(f"{self.path}: the old text is there {count} times, not once: {self}")
        path.write_text(text.replace(self.old, self.new))
        return text


def all_mutants() -> list[Mutant]:
    """Return the errors of every list, by path."""
    lists = [importlib.import_module(f"tests.mutants.{name}").MUTANTS for name in LISTS]
    return sorted((mutant for each in lists for mutant in each), key=lambda m: (m.path, str(m)))


def copy_checkout(folder: Path) -> Path:
    """Return a copy of the checkout's files below ``folder``; ``../shared`` is linked to."""
    copy = folder / "checkout"
    listed = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():  # one that is deleted and not committed is not
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    if (ROOT.parent / "shared").exists():
        (folder / "shared").symlink_to((ROOT.parent / "shared").resolve())
    return copy


def run_tests(tests: tuple[str, ...], checkout: Path) -> str:
    """Return "passed", "failed", "hung", or the end of what pytest says where it could not run."""
    command = (sys.executable, "-m", "pytest", "-m", "", "-x", "-q", "-p", "no:cacheprovider")
    # No bytecode: two texts of one file within a second would share it.
    variables = {"PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1"}
    with tempfile.TemporaryDirectory() as scratch:
        try:
            done = subprocess.run(
                (*command, "--basetemp", str(Path(scratch) / "pytest"), *tests),
                cwd=checkout,
                env=os.environ | variables,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            return "hung"
    if done.returncode in (0, 1):
        return ("passed", "failed")[done.returncode]
    return (done.stdout + done.stderr)[-2000:]


def main(arguments: list[str] | None = None) -> int:
    """Return 0 where every error that has no explanation was noticed, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("pattern", nargs="?", default="", help="a regular expression; all without")
    pattern = re.compile(parser.parse_args(arguments).pattern)
    mutants = [m for m in all_mutants() if any(map(pattern.search, (m.path, m.old, m.new)))]
    if not mutants:
        parser.error(f"no error matches {pattern.pattern!r}")
    noticed: dict[str, int] = defaultdict(int)
    total: dict[str, int] = defaultdict(int)
    unexplained = 0
    with tempfile.TemporaryDirectory() as folder:
        checkout = copy_checkout(Path(folder))
        for tests in sorted({m.tests for m in mutants}):
            if (outcome := run_tests(tests, checkout)) != "passed":
                print(f"without an error, {' '.join(tests)}: {outcome}", file=sys.stderr)
                return 1
        for mutant in mutants:
            began = time.monotonic()
            before = mutant.put_into(checkout)
            outcome = run_tests(mutant.tests, checkout)
            (checkout / mutant.path).write_text(before)
            place = mutant.path.split("/")[0]
            total[place] += 1
            seen = outcome in ("failed", "hung")
            noticed[place] += seen
            unexplained += not seen and not mutant.why
            word = "noticed" if seen else "SURVIVED" if outcome == "passed" else "COULD NOT RUN"
            seconds = f"{time.monotonic() - began:.0f} s"
            print(f"{word} ({seconds}) {mutant}", *filter(None, [mutant.why]), sep="; ", flush=True)
            if word == "COULD NOT RUN":
                print(outcome, flush=True)
    for place in (*sorted(total), "total"):
        all_, some = (sum(d.values()) if place == "total" else d[place] for d in (total, noticed))
        print(f"{place}: {some} of {all_} noticed ({some / all_:.0%})")
    return int(unexplained > 0)
