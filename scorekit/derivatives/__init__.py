"""Scores, traces and directional derivatives, exact and by finite differences.

- autodiff: scores and second directional derivatives by double backward, forward mode or a jet
- taylor: second-order Taylor mode, the jet
- directional: directional derivatives of any order by finite differences (Pang et al. 2020)
- displacement: how far a finite difference goes, and where it rounds
- propagation: running a model on something other than tensors
- model_checks: which models and precisions these refuse
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
