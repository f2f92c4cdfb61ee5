"""Which parts of a language model a method quantises; needs no PyTorch."""

from dataclasses import dataclass

from tritloom.errors import UserError

__all__ = ["BITS", "LANGUAGE_METHODS", "Precision", "precision"]

BITS = {"quest-w1a1": 1, "quest-w1.58a1.58": 1.585, "quest-w2a2": 2, "quest-w3a3": 3, "quest-w4a4": 4}
"""Bits of weights and activations of QuEST's methods."""

LANGUAGE_METHODS = {
    "float": "float weights and activations",
    "twn": "TWN (arXiv 1605.04711), one scale per layer",
    "bitnet": "BitNet b1.58 (arXiv 2402.17764)",
    **{name: f"QuEST (arXiv 2502.05003), {bits:g}-bit weights and activations" for name, bits in BITS.items()},
    "drna-reference": "D-RNA as published: its ternary weights are not trained",
    "drna-repaired": "annealed staircase without straight-through gradients",
}
"""Titles of the methods that language models know."""

CHOICES = {
    "activations": ("auto", "float", "int8"),
    "head": ("auto", "float", "int8", "ternary"),
    "embedding": ("auto", "float", "int8"),
    "cache": ("auto", "float", "int8"),
}


@dataclass(frozen=True)
class Precision:
    """What is quantised, from :func:`precision`.

    ``activations`` in front of a block's dense layers: ``float``, ``int8`` with one scale a token, or ``quest``. ``head``: ``float``; or ``int8`` and
    ``ternary``, with activations of 8 bits. ``embedding``: ``float`` or ``int8`` with one scale. ``cache``: ``float``, or ``int8`` with one scale a token and head.
    """

    method: str
    activations: str
    head: str
    embedding: str
    cache: str


def precision(method: str, *, activations: str = "auto", head: str = "auto", embedding: str = "auto", cache: str = "auto") -> Precision:
    """The parts, where ``auto`` is 8 bits for a method whose weights are integers, and float for ``float`` and ``drna-reference``.

    Raises :class:`UserError` for an unknown method or choice, and for activations of QuEST other than its own.
    """
    if method not in LANGUAGE_METHODS:
        raise UserError(f"method of a language model must be one of {', '.join(LANGUAGE_METHODS)}, not {method!r}")
    chosen = {"activations": activations, "head": head, "embedding": embedding, "cache": cache}
    for name, choices in CHOICES.items():
        if chosen[name] not in choices:
            raise UserError(f"{name} must be one of {', '.join(choices)}, not {chosen[name]!r}")
    usual = "float" if method in ("float", "drna-reference") else "int8"
    if method in BITS:
        if activations != "auto":
            raise UserError(f"{method} has activations of its own: leave activations at 'auto'")
        chosen["activations"] = "quest"
    return Precision(method, **{name: usual if choice == "auto" else choice for name, choice in chosen.items()})
