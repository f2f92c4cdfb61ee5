"""Vector unit and scalar unit: what language models need beside the array."""

from tritloom.hw.vector.scalar import ScalarUnit
from tritloom.hw.vector.unit import VectorElement, VectorUnit

__all__ = ["ScalarUnit", "VectorElement", "VectorUnit"]
