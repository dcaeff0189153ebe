from .export import export_snapshot as export_snapshot, load_exported as load_exported
from .store import (
    CheckpointStore as CheckpointStore,
    numbered_files as numbered_files,
    snapshot_path as snapshot_path,
)
from .tensors import (
    find_tensors as find_tensors,
    load_tensors as load_tensors,
    save_tensors as save_tensors,
)
