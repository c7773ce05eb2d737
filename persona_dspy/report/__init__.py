"""One page about a fleet's personas, without a server or a network. Owns: the public names."""

from persona_dspy.report.page import report_page
from persona_dspy.report.sources import Subject, SystemScore, read_evaluation, read_folder, read_store, read_traces

__all__ = [
    "Subject",
    "SystemScore",
    "read_evaluation",
    "read_folder",
    "read_store",
    "read_traces",
    "report_page",
]
