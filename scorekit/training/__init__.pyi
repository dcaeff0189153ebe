from .batches import Batches as Batches, augment as augment
from .dkef import (
    RIDGES as RIDGES,
    DKEFFit as DKEFFit,
    DKEFObjective as DKEFObjective,
    DKEFSettings as DKEFSettings,
    best_ridge as best_ridge,
    fit_dkef as fit_dkef,
)
from .gradients import GradientSum as GradientSum, micro_batches as micro_batches
from .held_out_loss import (
    HeldOutLoss as HeldOutLoss,
    compare_losses as compare_losses,
    evaluated_losses as evaluated_losses,
)
from .loss import Loss as Loss, ScoreLoss as ScoreLoss
from .networks import (
    build_network as build_network,
    load_snapshot as load_snapshot,
    load_weights as load_weights,
)
from .resumption import Resumption as Resumption
from .settings import (
    OtherSettings as OtherSettings,
    RunSettings as RunSettings,
    TrainSettings as TrainSettings,
    check_settings as check_settings,
    identity as identity,
    trajectory_digest as trajectory_digest,
)
from .trainer import Trainer as Trainer
