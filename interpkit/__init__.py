"""interpkit: what does my classifier think a class looks like, and how varied is what it accepts?

    import interpkit
    target = interpkit.load_target("model.safetensors")
    inversion = interpkit.invert(target, presets=["vecmat"], steps=300, seed=0)
    images, labels = inversion.sample(per_class=10)

The public names stand in ``__init__.pyi``. Each is imported when it is first used, so that ``import interpkit`` does
not import torch.
"""

import lazy_loader

from interpkit._version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
