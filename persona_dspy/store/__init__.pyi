from .rows import body_of as body_of
from .rows import checked_key as checked_key
from .store import Store as Store
from .store import StoredPersona as StoredPersona
