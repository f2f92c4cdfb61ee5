"""The array: a tile sums the cells of one column, the mesh is the row of tiles with its drain register."""

from tritloom.hw.array.mesh import MeshCommand, TernaryMesh, mesh_latency
from tritloom.hw.array.tile import TernaryTile, tile_formula, tile_latency

__all__ = ["MeshCommand", "TernaryMesh", "TernaryTile", "mesh_latency", "tile_formula", "tile_latency"]
