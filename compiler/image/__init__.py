"""The ``.loom`` artefact: reader, writer and digest."""

from tritloom.compiler.image.artefact import Artefact, artefact_digest, decode_artefact, encode_artefact, read_artefact, write_artefact

__all__ = ["Artefact", "artefact_digest", "decode_artefact", "encode_artefact", "read_artefact", "write_artefact"]
