"""The definition of every integer: a NumPy interpreter of the integer program, and the host's float32 steps around it."""

from tritloom.compiler.golden.host import block_values, dequantise_outputs, invert_host, quantise_inputs, random_feeds
from tritloom.compiler.golden.integer import run, trace
from tritloom.compiler.golden.requantise import requantise, requantise_sum
from tritloom.compiler.golden.sampling import Sampler, logits_of, sampler
from tritloom.compiler.golden.stream import Stream, stream_outputs, token_codes

__all__ = [
    "Sampler",
    "Stream",
    "block_values",
    "dequantise_outputs",
    "invert_host",
    "logits_of",
    "quantise_inputs",
    "random_feeds",
    "requantise",
    "requantise_sum",
    "run",
    "sampler",
    "stream_outputs",
    "token_codes",
    "trace",
]
