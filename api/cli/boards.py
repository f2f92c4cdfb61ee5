"""``tritloom boards``: what bitstreams can be built for."""

from tritloom.cli.console import Console
from tritloom.cli.options import JsonOption, QuietOption, VerboseOption

__all__ = ["boards"]


def boards(json: JsonOption = False, verbose: VerboseOption = 0, quiet: QuietOption = 0) -> None:
    """List the boards that 'build' knows.

    [bold]Examples[/bold]

    tritloom boards

    tritloom boards --json | jq '.boards[].name'
    """
    from tritloom.boards import BOARDS

    console = Console(json=json, verbose=verbose, quiet=quiet)
    fields = [
        {
            "name": board.name,
            "title": board.title,
            "maker": board.maker or None,
            "price_usd": board.price_usd or None,
            "family": None if board.family == "none" else board.family,
            "part": board.part or None,
            "logic_cells": board.logic_cells or None,
            "block_kbits": board.block_kbits or None,
        }
        for board in BOARDS.values()
    ]
    columns = ("name", "board", "maker", "about $", "family", "part", "LUT4", "block RAM kbit")
    console.table("", columns, [list(entry.values()) for entry in fields])
    console.result({"boards": fields})
