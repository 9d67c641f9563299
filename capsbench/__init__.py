"""capsbench measures what depth costs: memory and time per block of capsule networks.

The names in `__init__.pyi` are imported when they are first used, so that the command line starts without torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
