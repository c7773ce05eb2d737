"""The values everything is made of: interactions, answers, personas and their JSON, alignment records, text, files.

No LM and no network."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
