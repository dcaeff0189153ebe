"""Score-based generative models (NCSN, NCSNv2) with each technique of Song & Ermon (2020) apart.

Each room is there after ``import scorekit``, and brings its public names when they are asked for:
``scorekit.techniques.geometric_sigmas(50, 0.01, 232)``.

- techniques: Techniques 1, 2, 4 and 5, Table 4, Propositions 1 and 2
- models: score networks, energies, NICE, auto-encoders with implicit encoders
- objectives: denoising, sliced, exact and finite-difference score matching
- derivatives: scores and directional derivatives, exact and by finite differences
- training: a trainer that resumes bit for bit
- sampling: annealed Langevin dynamics, and the samplers that came after it
- metrics: Fréchet distance, Inception score, KID, precision and recall, with intervals
- data: data sets by name, as memory-mapped stores
- checkpoints: weights and training states on disk
- runtime: compiling, ranks, memory, timing
- files: files that are whole or absent
"""

import lazy_loader

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

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
