"""Samples from a score.

- trajectory: what samplers share: batches, keyed noise, the start, interpolation, inpainting
- langevin: annealed Langevin dynamics (Song & Ermon 2020, Algorithm 1)
- consistent: the numbers of consistent annealed sampling (Jolicoeur-Martineau et al. 2020)
- reverse: reverse diffusion and ancestral sampling (Song et al. 2021)
- corrector: predictor-corrector sampling (Song et al. 2021)
- heun: the probability flow ODE by Heun's method, with churn (Karras et al. 2022)
- registry: samplers by name, and what each spends on a sample
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
