"""What data files say: tasks, LaMP, rows, histories, and where the files come from."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
