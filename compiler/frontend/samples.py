"""The integer network so far, run in golden on calibration samples."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from tritloom.compiler import golden
from tritloom.compiler.ir.program import InputSpec, Program

if TYPE_CHECKING:
    from tritloom.compiler.frontend.builder import Builder

__all__ = ["SampleRun"]


@dataclass(kw_only=True)
class SampleRun:
    """Codes of every tensor of one program under construction. ``samples`` are inputs of the model by name, first axis the samples."""

    samples: dict[str, np.ndarray]
    _codes: dict[str, np.ndarray] = field(default_factory=dict)
    _done: int = 0

    def codes(self, builder: "Builder", tensor: str) -> np.ndarray:
        """Codes (N, C, H, W) of a tensor whose operation stands in ``builder``; what was added since the last time is run first."""
        new, self._done = builder.operations[self._done :], len(builder.operations)
        written = {operation.output for operation in new}
        for spec in builder.inputs:
            if spec.tensor not in self._codes:
                program = Program(name="", tensors=builder.tensors, operations=(), inputs=(spec,), outputs=())
                self._codes.update(golden.quantise_inputs(program, {spec.name: self.samples[spec.name]}))
        read = dict.fromkeys(name for operation in new for name in operation.inputs if name not in written)
        if new:
            inputs = tuple(InputSpec(name=name, shape=(), dtype="int8", tensor=name, prologue=()) for name in read)
            program = Program(name="", tensors=builder.tensors, operations=tuple(new), inputs=inputs, outputs=())
            self._codes.update(golden.run(program, {name: self._codes[name] for name in read}, keep=written))
        return self._codes[tensor]
