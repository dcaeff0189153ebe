from .compilation import (
    PRECISIONS as PRECISIONS,
    Precision as Precision,
    autocast as autocast,
    compile_seconds as compile_seconds,
    compile_unavailable_reason as compile_unavailable_reason,
    compiled as compiled,
    cuda_graph as cuda_graph,
    precision_context as precision_context,
)
from .distributed import (
    RankDied as RankDied,
    World as World,
    current_world as current_world,
    process_group as process_group,
)
from .interruption import Diverged as Diverged, Stopped as Stopped, never as never
from .machine import (
    PeakMemory as PeakMemory,
    conditions as conditions,
    cpu_facts as cpu_facts,
    cpu_model as cpu_model,
    cpu_name as cpu_name,
    usable_cores as usable_cores,
)
from .memory import BatchTooLarge as BatchTooLarge, ShrinkingBatch as ShrinkingBatch
from .timing import (
    Timing as Timing,
    measure as measure,
    median_interval as median_interval,
    synchronise as synchronise,
    time_by_turns as time_by_turns,
    time_calls as time_calls,
)
