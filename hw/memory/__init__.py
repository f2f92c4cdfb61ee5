"""The core's memories, and the part of the link that fills them."""

from tritloom.hw.memory.activation import ActivationMemory, ActivationWrite
from tritloom.hw.memory.loader import ByteLoader
from tritloom.hw.memory.weight import Trit5Decoder, WeightMemory
from tritloom.hw.memory.word import READ_LATENCY, WordMemory, address_bits

__all__ = [
    "READ_LATENCY",
    "ActivationMemory",
    "ActivationWrite",
    "Trit5Decoder",
    "WeightMemory",
    "ByteLoader",
    "WordMemory",
    "address_bits",
]
