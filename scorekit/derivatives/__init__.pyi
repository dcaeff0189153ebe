from .autodiff import (
    ExactWay as ExactWay,
    Model as Model,
    SecondDerivatives as SecondDerivatives,
    log_density as log_density,
    score_field as score_field,
    score_network as score_network,
    score_of as score_of,
    second_derivatives as second_derivatives,
)
from .directional import (
    directional_derivative as directional_derivative,
    directional_derivative_autograd as directional_derivative_autograd,
    gradient_norm_squared as gradient_norm_squared,
    gradient_norm_squared_autograd as gradient_norm_squared_autograd,
    gradient_projection as gradient_projection,
    gradient_projection_autograd as gradient_projection_autograd,
    hessian_frobenius_norm_squared as hessian_frobenius_norm_squared,
    hessian_frobenius_norm_squared_autograd as hessian_frobenius_norm_squared_autograd,
    hessian_trace as hessian_trace,
    hessian_trace_autograd as hessian_trace_autograd,
)
from .displacement import check_epsilon as check_epsilon, default_epsilon as default_epsilon
from .propagation import Propagated as Propagated
from .taylor import Jet as Jet, second_order_jet as second_order_jet
