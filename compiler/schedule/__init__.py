"""Tiling, memory plan, instructions and cycle model: an integer program becomes the memory contents of one core."""

from tritloom.compiler.schedule.layout import Placement, tensor_from_bytes, tensor_to_bytes
from tritloom.compiler.schedule.plan import (
    Needs,
    accumulator_bits,
    check_core,
    has_blocks,
    memory_needs,
    scaled_bits,
    schedule,
    sim_parameters,
)
from tritloom.compiler.schedule.result import Schedule, ScheduledLayer

__all__ = [
    "Needs", "Placement", "Schedule", "ScheduledLayer", "accumulator_bits", "check_core", "has_blocks", "memory_needs", "scaled_bits", "schedule", "sim_parameters", "tensor_from_bytes", "tensor_to_bytes",
]  # fmt: skip
