from .curvature import (
    approximate_backpropagation_loss as approximate_backpropagation_loss,
    curvature_propagation_loss as curvature_propagation_loss,
)
from .directions import (
    PROJECTION_KINDS as PROJECTION_KINDS,
    ProjectionKind as ProjectionKind,
    projections as projections,
)
from .dsm import dsm_loss as dsm_loss, keyed_dsm_loss as keyed_dsm_loss
from .likelihood import Flow as Flow, maximum_likelihood_loss as maximum_likelihood_loss
from .rounding import (
    FiniteDifferenceError as FiniteDifferenceError,
    finite_difference_error as finite_difference_error,
)
from .score_matching import (
    OBJECTIVES as OBJECTIVES,
    WAYS as WAYS,
    Conditioned as Conditioned,
    FiniteDifference as FiniteDifference,
    ModelKind as ModelKind,
    Objective as Objective,
    Way as Way,
    annealed_score_matching_loss as annealed_score_matching_loss,
    needs_projection as needs_projection,
    score_matching_loss as score_matching_loss,
    ways as ways,
)
