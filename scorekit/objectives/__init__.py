"""Losses by which scores and densities are learnt.

- dsm: denoising score matching over noise scales (Song & Ermon 2019, Eq. 6)
- score_matching: exact, sliced, denoising and finite-difference score matching, one signature
- curvature: approximate backpropagation and curvature propagation, two older baselines
- likelihood: maximum likelihood, for models that have one
- directions: the random directions v of the sliced objectives
- rounding: how wrong a finite-difference objective is at an epsilon, and why
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
