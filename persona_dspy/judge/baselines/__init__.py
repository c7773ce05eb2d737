"""What PersonaAgent is measured against: the paper's baselines and two reference rows without an LM.

All take the same query, LM, memory and token caps, and answer with the same signature.
"""

from persona_dspy.judge.baselines.base import Baseline
from persona_dspy.judge.baselines.membank import MemoryBank
from persona_dspy.judge.baselines.prompting import ICL, PAG, RAG, Direct
from persona_dspy.judge.baselines.react import ReAct
from persona_dspy.judge.baselines.votes import Majority, Nearest

__all__ = ["ICL", "PAG", "RAG", "Baseline", "Direct", "Majority", "MemoryBank", "Nearest", "ReAct"]
