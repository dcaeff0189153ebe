"""Score-based generative models (NCSN, NCSNv2) with each technique of Song & Ermon (2020) apart."""

import kernels

if not getattr(kernels, "SCOREKIT_KERNELS", False):
    # Installed into one environment, the two packages share a folder: whichever came last has
    # overwritten files of the other, and whichever is uninstalled takes files of both along.
    raise ImportError(
        f"'kernels' was imported from {kernels.__file__ or list(kernels.__path__)}, which is not "
        "scorekit's: give scorekit an environment without the package of that name from PyPI, or "
        "uninstall that (pip uninstall kernels) and then install scorekit again (pip install "
        "--force-reinstall --no-deps, from its folder), or put that folder first on PYTHONPATH"
    )

__version__ = "0.1.0"
