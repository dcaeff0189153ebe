"""Who rates which images in which order, and the answers, saved so that no crash loses one.

A rater is one JSON-lines file, `<rater>.jsonl`: a line for each round, with its images and their
truth in the order shown, and a line for each answer, forced to the disk before it is confirmed.
Appending to a file of one's own needs no database: raters do not touch one another's data, a kill
leaves at most half a last line, which readers drop, and the file can be read by eye.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ablations.hype.dumps import KINDS, HypeDump
from scorekit.files import CorruptFile, fsync_directory

N_EACH = 50  # fakes, and reals, that a rater sees of one dump (HYPE∞, Zhou et al. 2019)
RATER_ID = re.compile(r"[0-9a-f]{32}")
_LABEL: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("dump", "name", "model", "dataset"), (str,)),
    "seed": (int, type(None)),
    "denoise": (bool, type(None)),
}


@dataclass(frozen=True, kw_only=True)
class Round:
    """One rater's images of one dump, (truth, file name, SHA-256) in the order shown."""

    number: int
    label: dict[str, Any]
    seed: int
    images: list[tuple[str, str, str]]
    answers: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return len(self.answers) == len(self.images)

    def n_wrong(self, truth: str) -> int:
        """How many images that are `truth` were answered otherwise."""
        return sum(
            image[0] == truth != answer
            for image, answer in zip(self.images, self.answers, strict=False)
        )


def read_rounds(path: Path) -> list[Round]:
    """The rounds in a rater's file; a last line without its end was never confirmed and is dropped.

    Raises CorruptFile for anything else that is not as it was written.
    """
    rounds: list[Round] = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            _replay(json.loads(line), rounds)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CorruptFile(path, f"line {number} is no round and no answer") from error
    return rounds


def _replay(record: dict[str, Any], rounds: list[Round]) -> None:
    if "images" not in record:
        current = rounds[-1] if rounds else None
        expected = (len(rounds) - 1, len(current.answers)) if current else None
        if (record["round"], record["position"]) != expected or record["answer"] not in KINDS:
            raise ValueError("out of order")
        assert current is not None
        if current.complete:
            raise ValueError("more answers than images")
        current.answers.append(record["answer"])
        return
    label = record["dump"]
    images = [(str(truth), str(name), str(digest)) for truth, name, digest in record["images"]]
    typed = all(isinstance(label[key], kinds) for key, kinds in _LABEL.items())
    typed &= all(text.isprintable() for text in label.values() if isinstance(text, str))
    truths = [truth for truth, _, _ in images]
    if record["round"] != len(rounds) or not typed or not set(truths) <= set(KINDS):
        raise ValueError("not a round")
    rounds.append(Round(number=len(rounds), label=label, seed=record["seed"], images=images))


def choose_images(
    dump: HypeDump, seed: int, seen: Collection[str] = ()
) -> list[tuple[str, str, str]]:
    """50 fakes and 50 reals of `dump` in random order: the same for the same seed.

    Images whose SHA-256 is in `seen` come only where there are no others left: the reals of two
    dumps of one data set overlap, and an image met before would be known for real.
    """
    generator = np.random.Generator(np.random.Philox(key=seed))
    chosen = []
    for kind in KINDS:
        digests = dump.images[kind]
        names = [str(name) for name in generator.permutation(sorted(digests))]
        names.sort(key=lambda name: digests[name] in seen)
        chosen += [(kind, name, digests[name]) for name in names[:N_EACH]]
    return [chosen[i] for i in generator.permutation(len(chosen))]


class Ratings:
    """The ratings folder while raters are at work; one process at a time holds it.

    Not safe for threads by itself. Raises ValueError where another process holds the folder or a
    dump is too small or given twice, CorruptFile where a rater's file is damaged.
    """

    def __init__(self, directory: Path, dumps: Sequence[HypeDump], *, seed: int = 0) -> None:
        self.directory, self.seed = directory, seed
        self.dumps: dict[str, HypeDump] = {}
        for dump in dumps:
            n = len(dump.images["fake"])
            if n < N_EACH:
                raise ValueError(f"{dump.path}: {n} fakes and reals; a round needs {N_EACH} each")
            if dump.digest in self.dumps:
                raise ValueError(f"{dump.path}: the same dump as {self.dumps[dump.digest].path}")
            self.dumps[dump.digest] = dump
        directory.mkdir(parents=True, exist_ok=True)
        self._lock = open(directory / "server.lock", "a")  # noqa: SIM115 - held till close()
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"--ratings {directory} is in use by another server") from error
        self.raters = {path.stem: read_rounds(path) for path in rater_files(directory)}

    def close(self) -> None:
        """Let another process have the folder."""
        self._lock.close()

    def new_rater(self) -> str:
        """A name for a rater that nobody can guess; its file comes with the first round."""
        return secrets.token_hex(16)

    def current(self, rater: str) -> Round | None:
        """The round that a rater is in: the last one, if its dump is being served."""
        rounds = self.raters.get(rater)
        return rounds[-1] if rounds and rounds[-1].label["dump"] in self.dumps else None

    def unrated(self, rater: str) -> list[HypeDump]:
        """The dumps that a rater has not begun: nobody rates one twice."""
        begun = {r.label["dump"] for r in self.raters.get(rater, [])}
        return [dump for digest, dump in self.dumps.items() if digest not in begun]

    def begin(self, rater: str) -> Round:
        """Give a rater the unrated dump with the fewest finished raters, then fewest begun."""
        dump = min(self.unrated(rater), key=self._load)
        rounds = self.raters.get(rater, [])
        text = f"{self.seed} {rater} {len(rounds)} {dump.digest}"
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])
        seen = {image[2] for earlier in rounds for image in earlier.images}
        images = choose_images(dump, seed, seen)
        new = Round(number=len(rounds), label=dump.label, seed=seed, images=images)
        record = {"round": new.number, "dump": new.label, "seed": seed, "images": images}
        self._append(rater, record)
        self.raters.setdefault(rater, []).append(new)
        return new

    def answer(self, rater: str, answer: str) -> None:
        """Save the answer, "fake" or "real", to the image that a rater is at."""
        current = self.raters[rater][-1]
        position = len(current.answers)
        self._append(rater, {"round": current.number, "position": position, "answer": answer})
        current.answers.append(answer)

    def _load(self, dump: HypeDump) -> tuple[int, int]:
        rounds = [r for rs in self.raters.values() for r in rs if r.label["dump"] == dump.digest]
        return sum(r.complete for r in rounds), len(rounds)

    def _append(self, rater: str, record: dict[str, Any]) -> None:
        path = self.directory / f"{rater}.jsonl"
        line = json.dumps(record | {"at": datetime.now(UTC).isoformat(timespec="milliseconds")})
        new = not path.exists()
        with open(path, "ab") as file:
            # Behind the last whole line: a kill or a full disk may have left part of one.
            whole = 0 if new else path.read_bytes().rfind(b"\n") + 1
            file.truncate(whole)
            try:
                file.write(line.encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                # It was not confirmed, so it must not be there when it is sent again.
                os.truncate(path, whole)
                raise
        if new:
            fsync_directory(self.directory)


def rater_files(directory: Path) -> list[Path]:
    """The raters' files of a ratings folder, sorted; anything else there is left alone."""
    return sorted(p for p in directory.glob("*.jsonl") if RATER_ID.fullmatch(p.stem))
