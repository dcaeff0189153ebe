"""Networks: scores, energies, flows, auto-encoders.

- score_network, layers: NCSN and NCSNv2 in all sizes (Song & Ermon 2020, Tables 2 and 3)
- conditioning: told the noise scale or blind, plain or preconditioned
- released: the checkpoints that their authors released
- energy: multilayer and convolutional energies, whose gradient is a score
- dkef: deep kernel exponential families (Wenliang et al. 2019)
- nice: the flow NICE (Dinh et al. 2015)
- implicit_encoders: VAE and WAE whose encoder has samples but no density
- normaliser: log Z of an energy, by importance sampling
- mlp, seeded: what they are made of
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
