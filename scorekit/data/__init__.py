"""Images as memory-mapped uint8 stores, made once from what is distributed, and a few other data.

`prepare(name, root)` opens the store of a data set by name; ``python -m scorekit.data`` does the
same from a shell.

- registry: the names, and `prepare`
- store: a data set on disk; preparation: making it, in threads, going on after a kill
- paper_datasets: those of Song & Ermon (2020) and MNIST; embedded: digits and photo patches
- imagefolder, image_splits: any folder or archive of images; array_files, lsun: other formats
- pixels: 0..255 to 0..1 and back
- tabular: the UCI tables of kernel exponential families; toy_mixture: a density in 2-D
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
