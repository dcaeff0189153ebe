from .consistent import (
    check_consistent_step_size as check_consistent_step_size,
    consistent_amplitudes as consistent_amplitudes,
    refined_sigmas as refined_sigmas,
)
from .langevin import (
    AnnealedLangevin as AnnealedLangevin,
    Samples as Samples,
    Score as Score,
    State as State,
    interpolation_angles as interpolation_angles,
)
