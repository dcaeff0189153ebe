from .distances import (
    DistanceQuantile as DistanceQuantile,
    distance_quantiles as distance_quantiles,
)
from .ema import ema_update as ema_update
from .ema_profiles import (
    EmaProfile as EmaProfile,
    PosthocFit as PosthocFit,
    parse_ema as parse_ema,
    posthoc_average as posthoc_average,
    posthoc_fit as posthoc_fit,
    power_gamma as power_gamma,
    power_width as power_width,
)
from .ladder import SCHEDULES as SCHEDULES, STEP_RULES as STEP_RULES, Ladder as Ladder
from .noise_levels import (
    LOSS_WEIGHTS as LOSS_WEIGHTS,
    NOISE_LEVELS as NOISE_LEVELS,
    NoiseLevels as NoiseLevels,
    denoising_weight as denoising_weight,
    log_normal_sigmas as log_normal_sigmas,
    log_uniform_sigmas as log_uniform_sigmas,
    min_snr_weight as min_snr_weight,
    register_noise_levels as register_noise_levels,
)
from .noise_scales import (
    coverage as coverage,
    geometric_sigmas as geometric_sigmas,
    initial_noise_scale as initial_noise_scale,
    ladder_ratio as ladder_ratio,
    n_noise_scales as n_noise_scales,
    noise_scale_ratio as noise_scale_ratio,
    rho_sigmas as rho_sigmas,
)
from .propositions import (
    mixture_responsibilities as mixture_responsibilities,
    radius_log_density as radius_log_density,
    responsibility_bound as responsibility_bound,
)
from .step_size import (
    affordable_steps as affordable_steps,
    consistent_step_size as consistent_step_size,
    langevin_step_size as langevin_step_size,
    langevin_variance_ratio as langevin_variance_ratio,
    snr_step_size as snr_step_size,
    steady_state_step_size as steady_state_step_size,
    steady_variance_ratio as steady_variance_ratio,
)
from .table_4 import (
    NCSN_LADDER as NCSN_LADDER,
    TABLE_4 as TABLE_4,
    Published as Published,
    default_reference as default_reference,
    published as published,
    published_evaluations as published_evaluations,
)
