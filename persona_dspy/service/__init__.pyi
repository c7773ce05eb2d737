from .align_user import Aligner as Aligner
from .alignments import Outcome as Outcome
from .alignments import Pace as Pace
from .personas import Personas as Personas
from .personas import ServiceOptions as ServiceOptions
from .queue import ObservationQueue as ObservationQueue
