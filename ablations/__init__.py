"""The ablation study: grids of variants, their jobs, and the report made from their files."""

import importlib.util
import os


def _forget_a_missing_backend() -> None:
    """Take MPLBACKEND away where it names a module that is not there.

    A notebook's programs inherit the notebook's, and matplotlib cannot even be imported with it.
    """
    backend = os.environ.get("MPLBACKEND", "")
    module = {"inline": "module://matplotlib_inline"}.get(backend, backend)
    if module.startswith("module://"):
        name = module.removeprefix("module://").partition(".")[0]
        if name and importlib.util.find_spec(name) is None:
            del os.environ["MPLBACKEND"]


_forget_a_missing_backend()
