"""Inception's weights from torch-fidelity's own address, kept where torch-fidelity keeps them."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from scorekit.metrics.spaces import INCEPTION_FILE, MetricError

_log = logging.getLogger("scorekit")


def inception_weights_file(given: str | Path | None) -> Path | None:
    """Return the weights file that a path names or, by the word "download", a fetched one.

    The download's address and the file are logged. It is checked against the digest in its name,
    fetched once, and found again by torch-fidelity itself. Raises MetricError where there is no
    such file or it cannot be fetched: one line with the file that is expected, and where.
    """
    if given is None:
        return None
    if str(given) != "download":
        if not Path(given).is_file():
            raise MetricError(
                f"--inception-weights {given}: no such file; torch-fidelity's {INCEPTION_FILE} is "
                "expected, or the word download"
            )
        return Path(given).resolve()
    # Slow to import, and of use to downloads alone.
    import torch.hub
    from torch_fidelity import feature_extractor_inceptionv3 as inception

    address = inception.URL_INCEPTION_V3
    name = address.rpartition("/")[2]
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if path.is_file():
        _log.warning("--inception-weights download: %s is there, of %s", path, address)
        return path
    _log.warning("--inception-weights download: %s is fetched to %s", address, path)
    digest = Path(name).stem.rpartition("-")[2]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # To a temporary file beside it, checked, then renamed.
        torch.hub.download_url_to_file(address, str(path), digest, progress=sys.stderr.isatty())
    except (OSError, RuntimeError) as error:  # no network; no room; another file than expected
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise MetricError(
            f"--inception-weights download: {address} could not be fetched ({reason}); put that "
            f"file at {path}, or give its path"
        ) from error
    return path
