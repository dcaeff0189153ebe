"""File names made of names that users give: safe in any folder, and different where those are."""

import hashlib
import re

_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,+-]{0,99}")
_WITH_DIGEST = re.compile(r".*\+[0-9a-f]{16}")
#: Folders of images are called "imagefolder:NAME"; their files, as ever, "imagefolder-NAME".
_FOLDER = "imagefolder"


def file_name(text: str) -> str:
    """Return a file name for a text, another one for each: ASCII, 100 characters at most.

    The text itself where that can be, else what can be kept of it, "+" and 16 digits of its
    SHA-256.
    """
    plain = re.sub(f"^{_FOLDER}:", f"{_FOLDER}-", text)
    # What another text's name could look like is not kept.
    doubtful = text.startswith(f"{_FOLDER}-") or _WITH_DIGEST.fullmatch(text)
    if _PLAIN.fullmatch(plain) and not doubtful:
        return plain
    kept = re.sub(r"[^A-Za-z0-9_.,]+", "-", plain).strip("-.,")[:60] or "unnamed"
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{kept}+{digest}"
