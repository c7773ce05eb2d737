"""Which LM a name means and what its calls cost: names, meter, ledger, kept answers, local engines."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
