from .consistent import (
    check_consistent_step_size as check_consistent_step_size,
    consistent_amplitudes as consistent_amplitudes,
    refined_sigmas as refined_sigmas,
)
from .corrector import PredictorCorrector as PredictorCorrector
from .heun import Heun as Heun
from .langevin import (
    AnnealedLangevin as AnnealedLangevin,
    interpolation_angles as interpolation_angles,
)
from .registry import (
    SAMPLERS as SAMPLERS,
    SamplerKind as SamplerKind,
    affordable_steps_of as affordable_steps_of,
    evaluates_between as evaluates_between,
    make_sampler as make_sampler,
    register_sampler as register_sampler,
    sampler_evaluations as sampler_evaluations,
    sampler_kind as sampler_kind,
)
from .reverse import Ancestral as Ancestral, ReverseDiffusion as ReverseDiffusion
from .trajectory import (
    Sampler as Sampler,
    Samples as Samples,
    Score as Score,
    Start as Start,
    State as State,
)
