"""Which code a result depends on: the modules that make it, and what those import."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from ablations.engine.code_snapshot import code_digest

if TYPE_CHECKING:
    from ablations.engine.stages import Stage

_ROOT = Path(__file__).resolve().parents[2]
#: Packages whose imports are followed: what is computed, and not how it is planned and shown.
_FOLLOWED = ("kernels", "scorekit")
#: Where, how fast and how safely, which changes no result.
_NO_PART = ("scorekit.files", "scorekit.runtime", "scorekit.checkpoints")
_PART = ("scorekit.runtime.compilation",)  # which has the precisions

_IMPORT = re.compile(r"^[ \t]*import[ \t]+([\w., \t]+)", re.M)
_FROM = re.compile(r"^[ \t]*from[ \t]+([\w.]+)[ \t]+import[ \t]+(\([^)]*\)|[^\n]+)", re.M)
_DOCSTRING = re.compile(r'^[ \t]*"""(?:[^"]|"(?!""))*"""[ \t]*$', re.M)
_COMMENT = re.compile(r"""^[ \t]*#.*$|[ ]{2}#[^'"\n]*$""", re.M)


def made_by(stage: "Stage", needs: list[str] | None = None) -> str:
    """Return 16 digits over the code that makes a stage and all that it is made from.

    ``needs`` are those of what it was made from, where they are not of the present code. A stage
    that names no modules depends on all of the code.
    """
    own = modules_digest(stage.code) if stage.code else code_digest()
    below = [made_by(need) for need in stage.needs] if needs is None else needs
    return hashlib.sha256("\0".join([own, *below]).encode()).hexdigest()[:16]


def describe_outdated(stages: Iterable["Stage"]) -> str:
    """Return how many results of which kind are older than the code that makes them."""
    counts = Counter(stage.kind for stage in stages)
    listed = ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items()))
    one = sum(counts.values()) == 1
    return f"{'a result is' if one else 'results are'} older than the code that makes " + (
        f"{'it' if one else 'them'} ({listed})"
    )


@lru_cache(maxsize=64)
def modules_digest(names: tuple[str, ...]) -> str:
    """Return 16 digits over modules, by their full names, and those of the library they import.

    Comments, docstrings and blanks are no part of it. Raises ValueError for a name of no module.
    """
    digest = hashlib.sha256()
    for name in sorted(_closure(names)):
        digest.update(f"{name}\0{_meaning(name)}\0".encode())
    return digest.hexdigest()[:16]


def _closure(names: tuple[str, ...]) -> set[str]:
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        if _path(name) is None:
            raise ValueError(f"there is no module {name}")
        found.add(name)
        waiting += [imported for imported in _imports(name) if _follows(imported)]
    return found


def _follows(name: str) -> bool:
    if name.partition(".")[0] not in _FOLLOWED:
        return False
    return name in _PART or not any(f"{name}.".startswith(f"{part}.") for part in _NO_PART)


def _imports(name: str) -> Iterator[str]:
    """Yield the modules that a module imports, in functions too; names in packages as modules."""
    text = _source(name)
    for plain in _IMPORT.findall(text):
        yield from (found for found in map(str.strip, plain.split(",")) if _path(found))
    for package, names in _FROM.findall(text):
        if _path(package):
            yield package
        for found in re.findall(r"\w+", names):
            if _path(inner := f"{package}.{found}"):
                yield inner


def _path(name: str) -> Path | None:
    base = _ROOT.joinpath(*name.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


@lru_cache(maxsize=512)
def _source(name: str) -> str:
    path = _path(name)
    assert path is not None
    return path.read_text(encoding="utf-8")


@lru_cache(maxsize=512)
def _meaning(name: str) -> str:
    """Return a module's code without docstrings, comments and blanks.

    Of the text, and not as parsed: that would differ from one version of Python to the next.
    """
    return "".join(_COMMENT.sub("", _DOCSTRING.sub("", _source(name))).split())
