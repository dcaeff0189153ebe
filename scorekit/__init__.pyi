from . import (
    checkpoints as checkpoints,
    data as data,
    derivatives as derivatives,
    files as files,
    metrics as metrics,
    models as models,
    objectives as objectives,
    runtime as runtime,
    sampling as sampling,
    techniques as techniques,
    training as training,
)

__version__: str
