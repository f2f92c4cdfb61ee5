"""The array: ternary products summed by column, accumulated, and handed on."""

from tritloom.hw.array.mesh import MeshCommand, TernaryMesh, accumulator_formula, mesh_latency
from tritloom.hw.array.sums import ColumnSums, sums_formula

__all__ = ["ColumnSums", "MeshCommand", "TernaryMesh", "accumulator_formula", "mesh_latency", "sums_formula"]
