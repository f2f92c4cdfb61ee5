"""The one description of a core that compiler, golden model, gateware and reports read."""

import hashlib
import json
from dataclasses import asdict, dataclass

from tritloom.errors import UserError
from tritloom.hw.arch.link import MAX_WRITE
from tritloom.hw.arch.record import RECORD_BYTES
from tritloom.hw.arch.reduction import REDUCTIONS, chain_stages

__all__ = [
    "ACTIVATION_BITS",
    "BYTES_TOGETHER",
    "CoreParameters",
    "POST_LANES",
    "SCALED_BITS",
    "VECTOR_ELEMENT_BYTES",
    "VECTOR_LANES",
    "WEIGHT_ENCODINGS",
    "WEIGHT_STORAGES",
    "stored_lanes",
]

ACTIVATION_BITS = 8
"""Width of a stored activation code (two's complement)."""

BYTES_TOGETHER = 9
"""Bytes that share the nine bits of eight bytes of a block RAM."""

WEIGHT_ENCODINGS = ("trit2", "trit5")
WEIGHT_STORAGES = ("block", "spram")

POST_LANES = (1, 2, 4, 8, 16)
VECTOR_LANES = (0, 1, 2, 4, 8)
VECTOR_ELEMENT_BYTES = 4
"""Of the largest element of the vector unit."""

SCALED_BITS = 58
"""Enough for any record: ``|multiplier * value + bias|`` is at most 2**56, and the largest rounding term below 2**55."""

SPRAM_BITS = 64
"""Width of the four single-port RAMs of an iCE40 UP5K side by side."""

SPRAM_WORDS = 16384
"""Depth of a single-port RAM of the iCE40 UP5K."""


def stored_lanes(count: int, *, ninth_bits: bool) -> int:
    """Lanes of a memory for words of ``count`` bytes: with ``ninth_bits`` every nine bytes are kept in eight lanes of nine bits."""
    return count - count // BYTES_TOGETHER if ninth_bits else count


@dataclass(frozen=True, kw_only=True)
class CoreParameters:
    """Shape and memories of one core. Gateware and bitstream depend on these values only, never on a model.

    Parameters
    ----------
    rows
        Inputs summed per clock: lanes of an activation word, a power of two from 4 to 64.
    columns
        Outputs computed per clock, 1 to 64.
    accumulator_bits
        Width of a signed accumulator, 16 to 32. The compiler refuses a model that needs more.
    scaled_bits
        Width of ``multiplier * accumulator + bias`` in the post unit, 34 to 58: every sum in a lane has it. The compiler refuses a model that
        needs more; 58 is enough for any.
    reduction
        ``tree`` or ``chain``: how a column sums its products (:mod:`tritloom.hw.arch.reduction`).
    post_lanes
        Results that the post unit takes at once: a power of two from 1 to 16 that divides ``columns`` and is at most ``rows``.
    vector_lanes
        Elements that the vector unit takes at once: 1, 2, 4 or 8, of four bytes at most ``rows`` bytes, or 0 for a core without it and without scalar instructions.
    weight_encoding
        ``trit2`` (2 bits a trit) or ``trit5`` (5 trits in a byte), see :mod:`tritloom.hw.arch.trits`.
    weight_storage
        ``block`` (block RAM) or ``spram`` (single-port RAM of the iCE40 UP5K, 64 bits wide).
    weight_words
        Depth of the weight memory in words of ``rows * columns`` trits.
    activation_words
        Depth of the activation memory in words of ``rows`` bytes.
    record_words
        Depth of the requantisation record memory in words of ``post_lanes`` records (:mod:`tritloom.hw.arch.record`).
    program_words
        Depth of the instruction memory in 64-bit words.
    """

    rows: int = 16
    columns: int = 16
    accumulator_bits: int = 24
    scaled_bits: int = 58
    reduction: str = "tree"
    post_lanes: int = 1
    vector_lanes: int = 0
    weight_encoding: str = "trit2"
    weight_storage: str = "block"
    weight_words: int = 2048
    activation_words: int = 2048
    record_words: int = 512
    program_words: int = 1024

    def __post_init__(self) -> None:
        def need(ok: bool, noun: str, requirement: str, value: object) -> None:
            if not ok:
                raise UserError(f"{noun} must be {requirement}, not {value!r}")

        for field, value in asdict(self).items():
            if field not in ("weight_encoding", "weight_storage", "reduction"):
                need(isinstance(value, int) and not isinstance(value, bool), f"core parameter {field}", "an integer", value)
        need(4 <= self.rows <= 64 and self.rows & (self.rows - 1) == 0, "rows", "a power of two from 4 to 64", self.rows)
        need(1 <= self.columns <= 64, "columns", "from 1 to 64", self.columns)
        need(16 <= self.accumulator_bits <= 32, "accumulator_bits", "from 16 to 32", self.accumulator_bits)
        need(34 <= self.scaled_bits <= SCALED_BITS, "scaled_bits", f"from 34 to {SCALED_BITS}", self.scaled_bits)
        need(self.reduction in REDUCTIONS, "reduction", f"one of {REDUCTIONS}", self.reduction)
        need(
            self.post_lanes in POST_LANES and self.columns % self.post_lanes == 0 and self.post_lanes <= self.rows,
            "post_lanes", f"one of {POST_LANES}, a divisor of columns and at most rows", self.post_lanes,
        )  # fmt: skip
        need(
            self.vector_lanes in VECTOR_LANES and self.vector_lanes * VECTOR_ELEMENT_BYTES <= self.rows,
            "vector_lanes", f"one of {VECTOR_LANES} and at most a quarter of rows", self.vector_lanes,
        )  # fmt: skip
        need(self.weight_encoding in WEIGHT_ENCODINGS, "weight_encoding", f"one of {WEIGHT_ENCODINGS}", self.weight_encoding)
        need(self.weight_storage in WEIGHT_STORAGES, "weight_storage", f"one of {WEIGHT_STORAGES}", self.weight_storage)
        for field in ("weight_words", "activation_words", "record_words", "program_words"):
            need(1 <= getattr(self, field) <= 1 << 22, field, "from 1 to 4194304", getattr(self, field))
        need(
            self.weight_word_bytes <= MAX_WRITE,
            "the weight word",
            f"at most {MAX_WRITE} bytes (what a link frame carries)",
            self.weight_word_bytes,
        )
        if self.weight_storage == "spram":
            need(
                self.weight_word_bits <= SPRAM_BITS,
                "the weight word of spram storage",
                f"at most {SPRAM_BITS} bits wide",
                self.weight_word_bits,
            )
            need(self.weight_words <= SPRAM_WORDS, "weight_words of spram storage", f"at most {SPRAM_WORDS}", self.weight_words)

    @property
    def weight_word_bits(self) -> int:
        """Bits of one stored weight word: ``rows * columns`` trits in the chosen encoding."""
        trits = self.rows * self.columns
        return 2 * trits if self.weight_encoding == "trit2" else 8 * -(-trits // 5)

    @property
    def weight_word_bytes(self) -> int:
        """Bytes of one weight word on the link, the last one zero-filled."""
        return -(-self.weight_word_bits // 8)

    @property
    def weight_banks(self) -> int:
        """Memories that the weights are spread over: the stages of a chain read theirs one after the other."""
        return chain_stages(self.rows) if self.reduction == "chain" and self.weight_encoding == "trit2" else 1

    @property
    def record_word_bytes(self) -> int:
        """Bytes of a word of the record memory, one record for each lane of the post unit."""
        return RECORD_BYTES * self.post_lanes

    @property
    def activation_bytes(self) -> int:
        return self.rows * self.activation_words

    @property
    def macs_per_cycle(self) -> int:
        return self.rows * self.columns

    def to_json(self) -> dict[str, int | str]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, int | str]) -> "CoreParameters":
        """Inverse of :meth:`to_json`. Raises :class:`UserError` for unknown keys or illegal values."""
        unknown = set(fields) - set(cls.__dataclass_fields__)
        if unknown:
            raise UserError(f"core parameters have no field {sorted(unknown)[0]!r}")
        return cls(**fields)  # type: ignore[arg-type]

    @property
    def digest(self) -> bytes:
        """SHA-256 of the canonical JSON of the parameters and the instruction set version, first 8 bytes."""
        from tritloom.hw.arch.isa import ISA_VERSION

        text = json.dumps({"isa": ISA_VERSION, **self.to_json()}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).digest()[:8]
