"""The code that jobs run: which it is, and a copy of it as it was when they were sent."""

import hashlib
import os
import secrets
import shutil
from functools import lru_cache
from pathlib import Path

_PACKAGES = ("kernels", "scorekit", "ablations")
_ROOT = Path(__file__).resolve().parents[2]


@lru_cache(maxsize=1)
def code_digest() -> str:
    """Return 12 hexadecimal digits over every file of the packages that this process imports."""
    digest = hashlib.sha256()
    for path in _files():
        digest.update(f"{path.relative_to(_ROOT)}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def code_folder(out: Path) -> Path:
    """Return where :func:`snapshot_code` keeps the present code."""
    return out / "code" / code_digest()


def snapshot_code(out: Path) -> Path:
    """Copy the packages to ``OUT/code/<digest>``, unless they are there; return that folder.

    To be called by the folder's only launcher.
    Jobs that wait in a queue for days then run the code that was there when they were submitted.
    """
    folder = code_folder(out)
    if folder.exists():
        return folder
    for unfinished in folder.parent.glob(".*.tmp"):  # of launchers that were killed
        shutil.rmtree(unfinished)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    for path in _files():
        copy = temporary / path.relative_to(_ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    os.rename(temporary, folder)
    return folder


def _files() -> list[Path]:
    return sorted(
        path
        for package in _PACKAGES
        for path in (_ROOT / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc" and "__pycache__" not in path.parts
    )
