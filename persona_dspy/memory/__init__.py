"""One user's memory: episodes, their retrieval, counted facts and the profile."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
