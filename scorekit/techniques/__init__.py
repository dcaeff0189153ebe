"""The techniques of Song & Ermon (2020) that are formulas, and the analysis behind them.

Technique 3 is a property of the network: `scorekit.models.ScoreNetwork`.

- noise_scales: Techniques 1 and 2, sigma_1 from the data and gamma from their dimension
- distances: quantiles of distances, alternatives to Technique 1's maximum
- noise_levels: alternatives to the ladder in training (Song et al. 2021, Karras et al. 2022)
- step_size: Technique 4, the Langevin step size epsilon and T, and the rules where it fails
- ladder: Techniques 1, 2 and 4 as one object: noise scales, T and epsilon
- ema: Technique 5, the moving average of the weights
- ema_profiles: power-function averages, ramps, and any width post hoc (Karras et al. 2023)
- table_4: the hyperparameters as published
- propositions: Propositions 1 and 2
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
