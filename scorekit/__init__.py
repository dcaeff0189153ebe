"""Score-based generative models (NCSN, NCSNv2) with each technique of Song & Ermon (2020) apart."""

import kernels

if not getattr(kernels, "SCOREKIT_KERNELS", False):
    raise ImportError(
        f"'kernels' was imported from {kernels.__file__}, which is not scorekit's: uninstall the "
        "package of that name from PyPI, or put scorekit's own folder first on PYTHONPATH"
    )

__version__ = "0.1.0"
