"""Names of the methods that ``tritloom train`` knows; needs no PyTorch."""

__all__ = ["BASELINES", "METHODS"]

METHODS = (
    "twn", "twn-tensor", "bitnet", "quest-w1a1", "quest-w1.58a1.58", "quest-w2a2", "quest-w3a3", "quest-w4a4", "drna-reference", "drna-repaired", "int8", "int4",
)  # fmt: skip
"""In the order of :data:`tritloom.models.methods.recipes.RECIPES`."""

BASELINES = ("float", "twn-float")
"""What the methods are compared with: float weights, and TWN's weights, one scale per layer, with float activations. They train, but have no integers to export."""
