from .rows import DueUser as DueUser
from .rows import Lease as Lease
from .rows import Observed as Observed
from .rows import UserState as UserState
from .rows import body_of as body_of
from .rows import checked_key as checked_key
from .store import Store as Store
from .store import StoredPersona as StoredPersona
