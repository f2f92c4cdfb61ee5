"""tritloom: compile quantised ONNX networks to ternary integers and run them on an add/subtract array.

>>> import tritloom
>>> program = tritloom.compile("model.onnx", board="ulx3s-25f", calibration="samples.npz")
>>> session = tritloom.InferenceSession(program, providers=["verilator"])
>>> outputs = session.run(None, {"x": batch})

The public names are loaded at their first use, so that importing the package costs next to nothing.
"""

from importlib import import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

from tritloom.errors import BuildError, LinkError, MismatchError, MissingToolError, ModelError, TritloomError, UserError

if TYPE_CHECKING:
    from tritloom.compiled import CompiledModel, compile
    from tritloom.session import InferenceSession
    from tritloom.verification import Verification, verify

__all__ = [
    "BuildError", "CompiledModel", "InferenceSession", "LinkError", "MismatchError", "MissingToolError", "ModelError",
    "TritloomError", "UserError", "Verification", "compile", "verify",
]  # fmt: skip

_HOMES = {
    "CompiledModel": "tritloom.compiled",
    "compile": "tritloom.compiled",
    "InferenceSession": "tritloom.session",
    "Verification": "tritloom.verification",
    "verify": "tritloom.verification",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version("tritloom")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'tritloom' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
