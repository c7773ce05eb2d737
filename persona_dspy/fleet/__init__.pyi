from .compile import compile_users as compile_users
from .folder import FleetFolder as FleetFolder
from .folder import fleet_status as fleet_status
from .forget import Erasure as Erasure
from .forget import dspy_cache_entries as dspy_cache_entries
from .forget import forget_user as forget_user
from .user import UserResult as UserResult
from .user import UserWork as UserWork
