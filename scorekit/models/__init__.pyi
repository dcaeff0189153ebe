from .conditioning import (
    CONDITIONINGS as CONDITIONINGS,
    Conditioning as Conditioning,
    register_conditioning as register_conditioning,
)
from .dkef import DKEF as DKEF, ScoreMatchingQuadratic as ScoreMatchingQuadratic
from .energy import ConvEnergy as ConvEnergy, EnergyModel as EnergyModel, MLPEnergy as MLPEnergy
from .implicit_encoders import (
    AutoencoderLoss as AutoencoderLoss,
    Decoder as Decoder,
    ImplicitEncoder as ImplicitEncoder,
    LatentScore as LatentScore,
    LikelihoodBound as LikelihoodBound,
    entropy_gradient_surrogate as entropy_gradient_surrogate,
    implicit_autoencoder_loss as implicit_autoencoder_loss,
    likelihood_bound as likelihood_bound,
)
from .layers import (
    CondInstanceNormPlus as CondInstanceNormPlus,
    InstanceNormPlus as InstanceNormPlus,
    RefineBlock as RefineBlock,
    ResBlock as ResBlock,
)
from .mlp import MLP as MLP, smooth_activation as smooth_activation
from .nice import NICE as NICE, from_logit as from_logit, to_logit as to_logit
from .normaliser import LogNormaliser as LogNormaliser, log_normaliser as log_normaliser
from .released import (
    ReleasedCheckpointError as ReleasedCheckpointError,
    load_released as load_released,
)
from .score_network import (
    ARCHITECTURES as ARCHITECTURES,
    Architecture as Architecture,
    ScoreNetwork as ScoreNetwork,
    architecture_for as architecture_for,
    forward_flops as forward_flops,
    parameter_count as parameter_count,
)
