"""Samples from a score.

- langevin: annealed Langevin dynamics (Song & Ermon 2020, Algorithm 1), interpolation, inpainting
- consistent: the numbers of consistent annealed sampling (Jolicoeur-Martineau et al. 2020)
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
