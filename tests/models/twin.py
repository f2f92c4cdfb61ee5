"""A schedule on the NumPy twin of the core, layer by layer as a host would run it, and without a stop."""

import numpy as np

from tritloom.compiler.ir.program import Program
from tritloom.compiler.schedule import Schedule, tensor_from_bytes, tensor_to_bytes
from tritloom.hw.arch.link import Space
from tritloom.hw.model import CoreModel


class Twin:
    """A schedule loaded on the twin."""

    def __init__(self, program: Program, made: Schedule) -> None:
        self.program, self.schedule, self.core = program, made, CoreModel(made.parameters)
        self.core.write(Space.PROGRAM, 0, np.array(made.program_words, "<u8").tobytes())
        self.core.write(Space.WEIGHTS, 0, np.ascontiguousarray(made.weights).tobytes())
        self.core.write(Space.RECORDS, 0, made.records)
        for address, table in made.tables:
            self.core.write(Space.ACTIVATIONS, address, table)

    def tensor(self, name: str) -> np.ndarray:
        """A tensor (C, H, W) as it is now."""
        place = self.schedule.placements[name]
        return tensor_from_bytes(place, self.core.read(place.address, place.bytes), self.schedule.parameters)

    def give(self, codes: dict[str, np.ndarray]) -> None:
        """Inputs (C, H, W)."""
        for name, values in codes.items():
            place = self.schedule.placements[name]
            self.core.write(Space.ACTIVATIONS, place.address, tensor_to_bytes(place, values, self.schedule.parameters))

    def trace(self, codes: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Every tensor that a layer writes, (1, C, H, W), or (trips, C, H, W) of what loops write."""
        self.give(codes)
        found: dict[str, list[np.ndarray]] = {}
        layers, number = self.schedule.layers, 0
        while number < len(layers):
            layer = layers[number]
            number += 1
            if layer.steps:
                self.core.run(layer.pc, layer.steps)
            if layer.back is not None and self.core.pc == layers[layer.back].pc:
                number = layer.back
            for name in layer.outputs:
                found.setdefault(name, []).append(self.tensor(name))
        return {name: np.stack(values) for name, values in found.items()}

    def cycles(self, codes: dict[str, np.ndarray]) -> int:
        """Clocks of an uninterrupted run."""
        self.give(codes)
        self.core.run()
        return self.core.cycles
