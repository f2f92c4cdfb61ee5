"""A compiled model for other tool flows: Verilog, register map, memory images, test vectors, FuseSoC core file and cocotb bench."""

from tritloom.emission.registers import register_map
from tritloom.emission.verilog import emit_verilog

__all__ = ["emit_verilog", "register_map"]
