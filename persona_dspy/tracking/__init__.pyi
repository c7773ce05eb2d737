from .forgetting import TrackedErasure as TrackedErasure
from .protocol import Ended as Ended
from .tables import look_at as look_at
from .tables import without_user as without_user
from .tracker import MlflowTracker as MlflowTracker
from .tracker import NullTracker as NullTracker
from .tracker import Tracker as Tracker
from .tracker import tracker_for as tracker_for
