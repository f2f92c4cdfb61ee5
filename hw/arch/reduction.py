"""How a column sums the products of its rows: the two structures, and their latencies.

``tree``: the products are registered and summed by a tree of adders with a register behind each; all operands come in the same
clock. The cheapest form where a product needs a table of its own in front of the adder (iCE40, Gowin).

``chain``: a running sum takes two products a clock for :func:`chain_stages` clocks, and a tree adds up the running sums. The cheapest form
where add, subtract and skip fit inside the carry cell (ECP5). The operands of later stages come later, by :func:`row_delay` clocks:
activations wait in registers, and weights are read later.
"""

__all__ = ["PAIR", "REDUCTIONS", "chain_stages", "reduction_latency", "row_delay", "rows_of_stage"]

REDUCTIONS = ("tree", "chain")

PAIR = 2
"""Products that a stage adds to each running sum."""

_LONGEST = 4
_ROWS_IN_BYTE = 4
"""Rows whose trits share a byte of a weight word: they belong to the same stage."""


def chain_stages(rows: int) -> int:
    """Stages of a running sum, so that ``rows`` make at least two of them."""
    return max(1, min(_LONGEST, rows // _ROWS_IN_BYTE))


def _stage(row: int, rows: int) -> int:
    return row // _ROWS_IN_BYTE % chain_stages(rows)


def rows_of_stage(stage: int, rows: int) -> list[list[int]]:
    """The pairs of rows that a stage adds, one pair for each running sum."""
    members = [row for row in range(rows) if _stage(row, rows) == stage]
    return [members[start : start + PAIR] for start in range(0, len(members), PAIR)]


def row_delay(row: int, rows: int, reduction: str) -> int:
    """Clocks by which the weights of a row are needed after its activation is handed to the array."""
    return 0 if reduction == "tree" else 1 + _stage(row, rows)


def reduction_latency(rows: int, reduction: str) -> int:
    """Clocks from a word of activations to the clock in which the sum of its products is there to be accumulated."""
    if reduction == "tree":
        return 1 + (rows - 1).bit_length()
    stages = chain_stages(rows)
    return 1 + stages + (rows // (PAIR * stages) - 1).bit_length()
