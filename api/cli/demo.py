"""x"""

from tritloom.cli.options import JsonOption

__all__ = ["demo"]


def demo(json: JsonOption = False) -> None:
    """x"""
