"""Names of the methods that ``tritloom train`` knows; needs no PyTorch."""

__all__ = ["METHODS"]

METHODS = (
    "twn", "twn-tensor", "bitnet", "quest-w1a1", "quest-w1.58a1.58", "quest-w2a2", "quest-w3a3", "quest-w4a4", "drna-reference", "drna-repaired", "int8", "int4",
)  # fmt: skip
"""In the order of :data:`tritloom.models.methods.recipes.RECIPES`."""
