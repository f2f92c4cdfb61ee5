"""The sequencer: fetch, loop nest, operand and result addresses."""

from tritloom.hw.control.bus import InstructionBus, field_value
from tritloom.hw.control.fetch import Fetch
from tritloom.hw.control.nest import LoopNest
from tritloom.hw.control.operands import OperandAddresses
from tritloom.hw.control.results import ResultWalker
from tritloom.hw.control.sequencer import Sequencer

__all__ = ["Fetch", "InstructionBus", "LoopNest", "OperandAddresses", "ResultWalker", "Sequencer", "field_value"]
