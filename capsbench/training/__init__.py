"""Training to accuracy: `train(settings, folder)`, with checkpoints that lose nothing.

The names in `__init__.pyi` are imported when they are first used, so that reading settings needs no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
