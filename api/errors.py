"""Every error that tritloom raises on purpose; the command line maps each class to its exit code.

This module imports nothing of the project, so that every package may use it.
"""

__all__ = [
    "BuildError",
    "LinkError",
    "MismatchError",
    "MissingToolError",
    "ModelError",
    "TritloomError",
    "UserError",
]


class TritloomError(Exception):
    """Base of all deliberate errors. ``str(error)`` is one sentence: what, where, what to do."""

    exit_code = 1


class UserError(TritloomError, ValueError):
    """A bad option, path, board name, array, array file or configuration value."""


class ModelError(TritloomError):
    """A model or artefact that cannot be read, is not supported, or does not fit."""


class LinkError(TritloomError):
    """The core answered with an error frame, or not at all."""


class BuildError(TritloomError):
    """Synthesis, place and route or packing failed; the message carries the tool's own error lines."""

    exit_code = 2


class MissingToolError(TritloomError):
    """A tool or an optional dependency is absent; the message names the command that installs it."""

    exit_code = 3


class MismatchError(TritloomError):
    """A candidate differs from the golden model."""

    exit_code = 4
