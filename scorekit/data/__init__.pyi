from . import toy_mixture as toy_mixture
from .embedded import (
    EMBEDDED as EMBEDDED,
    digits_split as digits_split,
    photo_patches as photo_patches,
)
from .imagefolder import Square as Square, list_images as list_images, read_images as read_images
from .paper_datasets import PAPER_DATASETS as PAPER_DATASETS
from .pixels import to_float as to_float, to_uint8 as to_uint8
from .preparation import make_store as make_store
from .registry import (
    KNOWN as KNOWN,
    known_dataset as known_dataset,
    prepare as prepare,
    register_dataset as register_dataset,
)
from .store import (
    DataError as DataError,
    Dataset as Dataset,
    Encoded as Encoded,
    KnownDataset as KnownDataset,
    Request as Request,
    Source as Source,
    Splits as Splits,
    check as check,
    open_store as open_store,
)
from .tabular import (
    TABLES as TABLES,
    Table as Table,
    Whitening as Whitening,
    load_table as load_table,
)
