"""Stages: units of work named by a digest of all that can change their result.

A stage is a directory ``<root>/<kind>/<digest>``; its ``result.json`` is written last and
atomically, with the checksum of every file of the result and of itself. Done means that it is
whole, that its digest agrees and that the files are what it says.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ablations.engine.code_snapshot import code_digest
from ablations.engine.intact import IntactFiles
from ablations.engine.provenance import made_by
from scorekit.files import (
    CorruptFile,
    read_sealed_json,
    remove_temporaries,
    set_aside,
    sha256_file,
    write_json,
    write_sealed_json,
)
from scorekit.runtime.distributed import World
from scorekit.runtime.locks import hold

_log = logging.getLogger("scorekit")

#: Raised when a change of the code changes results: old results are then no longer taken for new.
RESULTS_VERSION = 6

#: What a rank returns from a stage that rank 0 finishes.
FOLLOWED: tuple[dict[str, Any], list[Path]] = ({}, [])

_CANONICAL_JSON = json.JSONEncoder(sort_keys=True, allow_nan=False)


@dataclass(frozen=True)
class Stage:
    """Work of one kind with resolved settings (JSON values) and the stages it reads from.

    ``code`` are the modules that make it, by which a change of the code that is its own is told
    from others (:mod:`ablations.engine.provenance`). It is no part of the digest.
    """

    kind: str
    settings: dict[str, Any]
    needs: tuple["Stage", ...] = ()
    code: tuple[str, ...] = ()

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits over kind, settings, inputs and the version of results."""
        identity = [RESULTS_VERSION, self.kind, self.settings, [s.digest for s in self.needs]]
        return hashlib.sha256(_CANONICAL_JSON.encode(identity).encode()).hexdigest()[:16]

    def __hash__(self) -> int:
        return hash(self.digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stage) and self.digest == other.digest


class StageStore:
    """The stages' directories below one root; ``elsewhere`` gives kinds a root of their own.

    What is not there, where that root is read-only, is made below the first.
    ``world`` is of the processes that work on each stage together. ``codes`` are the versions of
    the code that made the results read so far, ``outdated`` those results whose own code, or that
    of what they were made from, is another now; with ``rerun`` these count as unfinished.
    """

    def __init__(
        self,
        root: Path,
        elsewhere: dict[str, Path] | None = None,
        world: World | None = None,
        *,
        rerun: bool = False,
    ) -> None:
        self.rerun = rerun
        self.outdated: set[Stage] = set()
        self.root, self.elsewhere = root, elsewhere or {}
        self.world = World() if world is None else world
        self.codes: set[str] = set()
        self.intact = IntactFiles()

    def directory(self, stage: Stage) -> Path:
        """Return the stage's directory, which need not exist."""
        return Path(self._directory(stage))

    def _directory(self, stage: Stage) -> str:
        # Texts and not paths: a collection looks at a hundred thousand of them.
        own = f"{self.root}/{stage.kind}/{stage.digest}"
        if (root := self.elsewhere.get(stage.kind)) is None:
            return own
        shared = f"{root}/{stage.kind}/{stage.digest}"
        if os.path.exists(f"{shared}/result.json"):
            return shared
        may_write = os.access(root if os.path.exists(root) else os.path.dirname(root), os.W_OK)
        return own if os.path.exists(f"{own}/result.json") or not may_write else shared

    def result(self, stage: Stage) -> dict[str, Any] | None:
        """Return the result of a finished stage, or None; it is read anew at each call.

        A damaged result, or one whose files are damaged, is named in the log and set aside, so that
        the stage counts as unfinished. Large files that were found intact and were not touched
        since are not read again (:mod:`ablations.engine.intact`).
        """
        record = self._record(self._directory(stage), stage.digest)
        if record is None:
            return None
        if _is_outdated(stage, record):
            self.outdated.add(stage)
            if self.rerun:
                return None
        self.codes.update(record["codes"])
        return record["result"]

    def _record(self, directory: str, digest: str) -> dict[str, Any] | None:
        path = f"{directory}/result.json"
        try:
            record = read_sealed_json(path)
            if record.get("digest") != digest:
                raise CorruptFile(path, "it does not carry its stage's digest")
            for key, kind in (("files", dict), ("result", dict), ("code", str), ("codes", list)):
                if not isinstance(record.get(key), kind):
                    raise CorruptFile(path, f"its entry {key!r} is no {kind.__name__}")
            self.intact.check(directory, record["files"])
        except FileNotFoundError:
            return None
        except CorruptFile as error:
            for damaged in {error.path, Path(path)}:
                # The damage may be that the file is not there, or another process was faster.
                with suppress(FileNotFoundError):
                    set_aside(damaged)
            _log.warning("%s; set aside as *.corrupt-<n>, and its stage runs again", error)
            return None
        return record

    def read_all(self) -> tuple[int, int]:
        """Read every byte of every finished stage; return how many are intact and how many not.

        The damaged ones are set aside, as by :meth:`result`. Nothing is taken from notes, now or
        later.
        """
        self.intact.reads_all = True
        roots = [self.root, *(root / kind for kind, root in self.elsewhere.items())]
        paths = [*roots[0].glob("*/*/result.json")]
        for root in roots[1:]:
            paths += root.glob("*/result.json")
        found = [self._record(str(p.parent), p.parent.name) is not None for p in sorted(paths)]
        return sum(found), len(found) - sum(found)

    def checksum(self, stage: Stage, name: str) -> str:
        """Return the SHA-256 of a finished stage's file; CorruptFile where its record lacks it."""
        path = self.directory(stage) / "result.json"
        files = read_sealed_json(path).get("files")
        if not isinstance(files, dict) or not isinstance(files.get(name), str):
            raise CorruptFile(path, f"it has no checksum of {name}")
        return files[name]

    def _code_of(self, stage: Stage) -> tuple[set[str], str]:
        """Return the versions of the code that made a stage, and that of its own modules."""
        try:
            record = read_sealed_json(self.directory(stage) / "result.json")
            return set(record["codes"]), record.get("made_by", "")
        except (FileNotFoundError, CorruptFile):
            return set(), made_by(stage)

    def release(self, stage: Stage, names: Collection[str]) -> None:
        """Remove files of a finished stage, of which it is then whole without them."""
        directory = self.directory(stage)
        with _locked(directory / "lock"):
            record = read_sealed_json(directory / "result.json")
            removed = {*record.get("removed", ()), *names}
            files = {name: sha for name, sha in record["files"].items() if name not in removed}
            # The record first: a kill leaves a file too many, and no stage that lacks one.
            changed = record | {"files": files, "removed": sorted(removed)}
            write_sealed_json(directory / "result.json", changed)
            for name in names:
                (directory / name).unlink(missing_ok=True)

    def run(
        self, stage: Stage, execute: Callable[[Path], tuple[dict[str, Any], list[Path]]]
    ) -> dict[str, Any]:
        """Return the stage's result, made by ``execute(directory)`` unless it is there already.

        ``execute`` returns the result (JSON values) and the files that belong to it. One process
        works on a stage at a time; others wait, and then find it done. The ranks of a world count
        as one: all call this, rank 0 holds the lock and says whether there is work, all execute
        it, and what rank 0 returned, once it is written, is the result on each.
        """
        directory = self.directory(stage)
        if not self.world.is_main:
            found: dict[str, Any] | None = self.world.broadcast(None)
            if found is None:
                execute(directory)
                found = self.world.broadcast(None)
            assert found is not None
            return found
        # Looked for without the lock first: where others finished it, this one may not write.
        if (finished := self.result(stage)) is not None:
            return self.world.broadcast(finished)
        directory.mkdir(parents=True, exist_ok=True)
        with _locked(directory / "lock") as alone:
            if (finished := self.result(stage)) is not None:
                return self.world.broadcast(finished)
            self._remove_outdated(stage)
            remove_temporaries(directory, older_s=0 if alone else 3600)
            write_json(directory / "settings.json", {"kind": stage.kind, **stage.settings})
            self.world.broadcast(None)
            # The code as it was begun: files may be edited while it runs.
            code, started = code_digest(), time.time()
            made_by(stage)  # which is remembered
            result, files = execute(directory)
            # Only now: what it is made from may be made, or made again, on the way.
            below = [self._code_of(need) for need in stage.needs]
            codes = {code}.union(*(of for of, _ in below))
            makers = made_by(stage, [makers for _, makers in below])
            checksums = {str(path.relative_to(directory)): sha256_file(path) for path in files}
            record = {
                "digest": stage.digest,
                "kind": stage.kind,
                "code": code,
                # Of what it was made from too, which may be gone when this is read.
                "codes": sorted(codes),
                "made_by": makers,
                "needs": [need.digest for need in stage.needs],
                "result": result,
                "files": checksums,
                "started": started,
                "finished": time.time(),
            }
            write_sealed_json(directory / "result.json", record)
        return self.world.broadcast(result)

    def _remove_outdated(self, stage: Stage) -> None:
        """Remove what other code made, checkpoints of a training too; its lock is held."""
        directory = self.directory(stage)
        try:
            record = read_sealed_json(directory / "result.json")
        except (FileNotFoundError, CorruptFile):
            return
        if not (self.rerun and _is_outdated(stage, record)):
            return
        # The record last: a kill leaves a stage that is still seen to be outdated.
        for path in sorted(directory.iterdir(), key=lambda path: path.name == "result.json"):
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "lock":
                path.unlink(missing_ok=True)
        self.outdated.discard(stage)


def _is_outdated(stage: Stage, record: dict[str, Any]) -> bool:
    """Return whether other code made a result; one of before it was recorded may be."""
    return set(record["codes"]) != {code_digest()} and record.get("made_by") != made_by(stage)


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold an advisory lock; False where the disk has none."""
    with open(path, "a") as file:
        yield hold(
            file,
            lambda: _log.info(
                "%s is being worked on by another process: waiting for it", path.parent
            ),
        )
