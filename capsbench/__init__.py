"""Cost of one more block, sample or token of any PyTorch network, in bytes and seconds.

A measurement goes from left to right and never back: `sweep` makes the cells, `measure` runs the step of `workload` in fresh
processes, `report` keeps the records, `stats` fits lines, and `figures`, `terminal` and `page` draw them. `prediction` gets
the same figures from `tracing`, without a device; `gate` compares two reports. The networks are in `models`, and what makes
them small in `routing` and `reversible`, which know nothing of the rest.

The names in `__init__.pyi` are imported when they are first used, so that the command line starts without torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
