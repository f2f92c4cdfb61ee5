"""Weight words and requantisation records of one core while a schedule is made; what is equal is stored once."""

import numpy as np

from tritloom.compiler.schedule.layout import Placement
from tritloom.hw.arch.record import RECORD_BYTES, Record
from tritloom.hw.arch.trits import encode_trits

__all__ = ["MemoryContents"]


class MemoryContents:
    """The contents of the weight memory and of the record memory, for an array of ``rows`` and ``columns``.

    Parameters
    ----------
    rows, columns, encoding, lanes
        Shape of the array, the weight encoding, and the lanes of the post unit.

    Attributes
    ----------
    weights, records
        Encoded weight words, uint8 (words, bytes of a word), and the bytes of the record memory.
    """

    def __init__(self, *, rows: int, columns: int, encoding: str, lanes: int) -> None:
        self.rows, self.columns, self.lanes = rows, columns, lanes
        self._encoding = encoding
        self._blocks: list[np.ndarray] = []
        self._block_starts: dict[bytes, int] = {}
        self._weight_words = 0
        self._records = bytearray()
        self._record_starts: dict[bytes, int] = {}

    @property
    def weights(self) -> np.ndarray:
        word = encode_trits(np.zeros((1, self.rows * self.columns), np.int8), self._encoding).shape[1]
        return np.concatenate([np.zeros((0, word), np.uint8), *self._blocks])

    @property
    def records(self) -> bytes:
        return bytes(self._records)

    def store_weights(self, trits: np.ndarray) -> int:
        """First word of int8 (words, rows * columns), stored unless the same words are there."""
        block = encode_trits(trits, self._encoding)
        key = block.tobytes()
        if key not in self._block_starts:
            self._block_starts[key] = self._weight_words
            self._blocks.append(block)
            self._weight_words += len(block)
        return self._block_starts[key]

    def store_records(self, records: tuple[tuple[Record, ...], ...], *, wide: bool) -> int:
        """First word of a table with equally many pieces a channel, stored unless the same table is there.

        The records of a ``wide`` instruction lie side by side, those of neighbouring channels in a word; of another one in lane 0.
        """
        lanes, used = self.lanes, self.lanes if wide else 1
        nothing = bytes(RECORD_BYTES)
        words = []
        for first in range(0, len(records), used):
            group = records[first : first + used]
            for piece in range(len(group[0])):
                stored = [pieces[piece].to_bytes() for pieces in group]
                words.append(b"".join([*stored, *[nothing] * (lanes - len(stored))]))
        key = b"".join(words)
        if key not in self._record_starts:
            self._record_starts[key] = len(self._records) // (RECORD_BYTES * lanes)
            self._records += key
        return self._record_starts[key]

    def aligned(self, *placements: Placement) -> bool:
        """Whether every pixel begins at a multiple of the lanes of the post unit, of which there are several."""
        pixels = (place.pixel_bytes if place.shape[1] * place.shape[2] > 1 else 0 for place in placements)
        return self.lanes > 1 and all(pixel % self.lanes == 0 for pixel in pixels)
