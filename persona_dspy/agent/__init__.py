"""One answer under a persona: recall, act, respond; and any DSPy program made personal."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
