"""The program under construction: names, tensors, operations, and the way from a symbolic value to an integer tensor."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np

from tritloom.compiler.frontend.compensation import Compensation
from tritloom.compiler.frontend.correction import BiasCorrection
from tritloom.compiler.frontend.grids import differs, grid_quantiser, host_quantise, keeps_codes, on_codes, signed_bits
from tritloom.compiler.frontend.problems import RefusalError
from tritloom.compiler.frontend.rounding import closed
from tritloom.compiler.frontend.settings import Settings
from tritloom.compiler.frontend.values import (
    Codes,
    Pending,
    Source,
    Tail,
    Value,
    affine_of,
    canonical_shape,
    dequantising,
    identity_view,
    moves_only,
    take_channels,
)
from tritloom.compiler.ir.program import Copy, HostOp, InputSpec, Operation, Proof, Rescale, StepFunction, Tensor
from tritloom.compiler.quantize.chain import compose, entry
from tritloom.compiler.quantize.curves import LARGEST_TABLE
from tritloom.compiler.quantize.steps import Affine, Quantiser, Step, derive_add, derive_step, is_curved
from tritloom.compiler.quantize.weights import IntegerWeights
from tritloom.errors import ModelError

__all__ = ["Builder"]

MOST_SUMS_SAMPLED = 1 << 16
"""Most reachable sums of a layer, all channels together, that a curved function takes directly where samples could give it codes: a function
of sums takes some eighty records for each channel, one of codes fifteen for all of them."""

_LARGEST_ZERO = 1 << 40
"""Of a tensor's zero point: what a compiled model may hold."""

GridOf = Callable[[str, int], tuple[Fraction, int]]
"""ONNX value name and bits to scale and zero point; raises :class:`ModelError` when there are no calibration samples."""


class Builder:
    """Collects operations. With ``dry`` nothing is derived or proven: step functions are empty and weights stay zero (for ``check``).

    Parameters
    ----------
    settings
        The user's choices.
    grid_of
        Where the grid of a value without a quantiser comes from.
    correction
        The mean errors of layers with ternarised weights; ``None`` leaves their biases as they are.
    compensation
        How float weights are rounded so that their errors cancel; ``None`` rounds each to its nearest code.
    sampled
        Whether there are calibration samples: a curved function of many sums then gets codes in front of it.
    known_weights
        Results of ternarisation by what they depend on, kept from one lowering of a model to the next.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        grid_of: GridOf,
        dry: bool = False,
        correction: BiasCorrection | None = None,
        compensation: Compensation | None = None,
        sampled: bool = False,
        known_weights: dict[tuple[Any, ...], IntegerWeights] | None = None,
    ) -> None:
        self.settings, self.dry, self.correction, self.compensation = settings, dry, correction, compensation
        self.most_sums = MOST_SUMS_SAMPLED if sampled else LARGEST_TABLE
        self.weighted: dict[str, tuple[str, int]] = {}
        """ONNX output of each layer with weights and its number of elements, by the layer's name."""
        self.weights: dict[str, IntegerWeights] = {}
        self.known_weights = {} if known_weights is None else known_weights
        self.tensors: dict[str, Tensor] = {}
        self.operations: list[Operation] = []
        self.inputs: list[InputSpec] = []
        self.notes: list[str] = []
        self.weights_seen: dict[str, dict[str, Any]] = {}
        """With ``dry``, what is known of each layer's weights, by its label."""
        self._grid_of = grid_of
        self._names: set[str] = set()
        self._labels: set[str] = set()
        self._calibrations: dict[tuple, tuple[Value, Quantiser]] = {}
        self._copies: dict[tuple[str, bytes, tuple[int, int, int]], Tensor] = {}

    def unique(self, name: str) -> str:
        """``name``, or with a number behind it when it was given out before."""
        candidate, number = name or "unnamed", 1
        while candidate in self._names:
            number += 1
            candidate = f"{name}_{number}"
        self._names.add(candidate)
        return candidate

    def emit(self, operation: Operation) -> None:
        self.operations.append(operation)
        self._labels.add(operation.name)

    def operation_name(self, label: str) -> str:
        """A name for the next operation; operations and tensors are two name spaces."""
        candidate, number = label, 1
        while candidate in self._labels:
            number += 1
            candidate = f"{label}_{number}"
        return candidate

    def step(
        self, chain: tuple[Step, ...], quantiser: Quantiser, low: int | Sequence[int], high: int | Sequence[int], channels: int
    ) -> StepFunction:
        if self.dry:
            return StepFunction(
                records=((),) * channels,
                low=quantiser.low + quantiser.offset,
                high=quantiser.high + quantiser.offset,
                proof=Proof(exact=False, reachable=0),
            )
        try:
            return derive_step(chain, quantiser, low, high, channels)
        except ModelError as error:
            raise RefusalError(*str(error).split("; ", 1)) from None

    def sum_step(self, left: Value, right: Value, chain: tuple[Step, ...], quantiser: Quantiser, channels: int) -> StepFunction:
        first, second = affine_of(left.chain), affine_of(right.chain)
        assert isinstance(left.base, Codes) and isinstance(right.base, Codes) and first is not None and second is not None
        if self.dry:
            return self.step(chain, quantiser, 0, 0, channels)
        ranges = [(value.base.tensor.low, value.base.tensor.high) for value in (left, right) if isinstance(value.base, Codes)]
        return derive_add(first, second, chain, quantiser, ranges[0], ranges[1], channels)

    def tensor(
        self, name: str, shape: tuple[int, int, int], quantiser: Quantiser, step: StepFunction | None, source: str = "quantiser"
    ) -> Tensor:
        """A new tensor of codes on the grid of ``quantiser``."""
        scale = quantiser.scale if isinstance(quantiser.scale, tuple) else (quantiser.scale,)
        zero = quantiser.zero_point if isinstance(quantiser.zero_point, tuple) else (quantiser.zero_point,)
        low, high = quantiser.low + quantiser.offset, quantiser.high + quantiser.offset
        return self.add(
            Tensor(
                name=self.unique(name),
                shape=shape,
                bits=signed_bits(low, high),
                low=low if step is None else step.low,
                high=high if step is None else step.high,
                scale=scale,
                zero_point=tuple(value + quantiser.offset for value in zero),
                source=source,
            )
        )

    def add(self, tensor: Tensor) -> Tensor:
        if any(abs(zero) > _LARGEST_ZERO for zero in tensor.zero_point):
            raise RefusalError(
                f"the zero point of {tensor.name!r} would be beyond {_LARGEST_ZERO}", "use constants of the size of the activations"
            )
        self.tensors[tensor.name] = tensor
        return tensor

    def settle(self, value: Value) -> Value:
        """The value after its quantiser: codes with nothing but their scale behind them. Values without one stay as they are."""
        if value.rounding is not None:
            if value.settled is None:
                value.settled = self.settle(closed(self, value))
            return value.settled
        if value.quantiser is None:
            return value
        if value.settled is None:
            tensor = self._quantised(value, value.quantiser)
            value.settled = on_codes(value, tensor, value.quantiser)
        return value.settled

    def _quantised(self, value: Value, quantiser: Quantiser) -> Tensor:
        base = value.base
        if isinstance(base, Tail):
            raise RefusalError(
                f"{base.operator} before a quantiser is not supported",
                f"{base.operator} may stand only after the last quantised layer; use Relu, LeakyRelu or Clip inside the network",
            )
        if isinstance(base, Source):
            return self._input(value, base, quantiser)
        if value.chain is None:
            raise RefusalError("a constant that differs between the pixels of a channel stands before this quantiser",
                               "use constants that are the same for all pixels of a channel")  # fmt: skip
        if isinstance(base, Codes):
            if keeps_codes(value.chain, quantiser, base.tensor):
                return base.tensor
            step = self.step(value.chain, quantiser, base.tensor.low, base.tensor.high, base.shape[0])
            tensor = self.tensor(value.name, base.shape, quantiser, step, value.source)
            label = self.operation_name(value.label or value.name)
            self.emit(Rescale(name=label, output=tensor.name, input=base.tensor.name, step=step))
            return tensor
        assert isinstance(base, Pending)
        return base.finish(self, value.chain, quantiser, value.name, value.source)

    def _input(self, value: Value, base: Source, quantiser: Quantiser) -> Tensor:
        """The host quantises a graph input, before or after the float steps that stand in front of the quantiser."""
        one = not any(isinstance(part, tuple) for part in (quantiser.scale, quantiser.zero_point, quantiser.thresholds))
        if value.trail is None and not (value.chain == () and one):
            raise RefusalError("the batch axis is moved between a graph input and its quantiser", "keep the batch on axis 0")
        # One quantiser for all elements may as well stand in front of what moves them.
        steps = () if value.trail is None or moves_only(value.trail) else value.trail
        rank = len(value.shape if steps else base.declared)
        tensor = self.tensor(value.name, canonical_shape(value.shape) if steps else base.shape, quantiser, None, value.source)
        quantise = host_quantise(quantiser, rank, base.dtype if base.dtype.kind == "f" else np.dtype(np.float32))
        self.inputs.append(
            InputSpec(name=base.name, shape=base.declared, dtype=str(base.dtype), tensor=tensor.name, prologue=(*steps, quantise))
        )
        if steps:
            value.view = identity_view(value.shape)
        return tensor

    def codes(self, value: Value) -> Value:
        """The value as codes with an affine chain; a quantiser comes from calibration where the model has none."""
        value = self.settle(value)
        if isinstance(value.base, Codes) and affine_of(value.chain) is not None:
            return value
        if value.settled is None:
            value.settled = self._calibrated(value)
        return value.settled

    def requantised(self, value: Value) -> Value:
        """Codes of one scale for the whole tensor and an integer zero point; ``value`` is codes with an affine chain."""
        if value.settled is None:
            value.settled = self._lossless(value) or self._chosen(value)
        return value.settled

    def _calibrated(self, value: Value) -> Value:
        base = value.base
        if isinstance(base, Tail):
            raise RefusalError(f"{base.operator} inside the network is not supported",
                               f"{base.operator} may stand only at the end; use Relu, LeakyRelu or Clip inside the network")  # fmt: skip
        if isinstance(base, Source):
            return self._calibrated_input(value, base)
        if isinstance(base, Codes):
            kept = self._lossless(value)
            if kept is not None:
                return kept
        if isinstance(base, Pending):
            kept = base.codes(self, value)
            if kept is not None:
                return kept
        return self._chosen(value)

    def _chosen(self, value: Value) -> Value:
        """Put a quantiser behind the value, its grid from calibration samples."""
        key = (id(value.base), *map(id, value.chain or ()), np.sort(value.view, axis=None).tobytes())
        if value.chain is not None and key in self._calibrations:
            # The same elements in another order, behind the same steps: a transposed operand, say.
            first, quantiser = self._calibrations[key]
            assert isinstance(first.settled, Value) and isinstance(first.settled.base, Codes)
            return on_codes(replace(value, source="calibration", integer=False), first.settled.base.tensor, quantiser)
        bits = self.settings.activation_bits
        quantiser = grid_quantiser(*self._grid_of(value.name, bits), bits)
        quantised = replace(value, quantiser=quantiser, source="calibration", integer=False)
        settled = self.settle(quantised)
        if isinstance(value.base, Pending):
            self._calibrations[key] = quantised, quantiser
        return settled

    def _calibrated_input(self, value: Value, base: Source) -> Value:
        """Quantise at the graph input itself where what follows is one scale and shift, else after the float steps."""
        affine = affine_of(value.chain)
        view = identity_view(tuple(dim if isinstance(dim, int) and position else 1 for position, dim in enumerate(base.declared)))
        if value.chain is None:
            return self._chosen(value)
        if base.dtype.kind in "iu":
            info = np.iinfo(base.dtype)
            low, high = int(info.min), int(info.max)
            quantiser = Quantiser(Fraction(1), 0, low, high, "half_even", offset=-128 if high > 127 else 0)
            source = "declared"
        elif affine is not None and len(affine.gain) == 1 and len(affine.offset) == 1 and affine.gain[0] != 0:
            bits = self.settings.activation_bits
            quantiser = grid_quantiser(*self._grid_of(base.name, bits), bits)
            source = "calibration"
        else:
            return self._chosen(value)
        existing = next(
            (
                spec for spec in self.inputs
                if spec.name == base.name and len(spec.prologue) == 1 and self.tensors[spec.tensor].source == source
            ),
            None,
        )  # fmt: skip
        if existing is None:
            start = Value(
                name=base.name, base=base, view=view, chain=(), trail=(), start=view, witness=base.name, quantiser=quantiser, source=source
            )
            tensor = self._input(start, base, quantiser)
        else:
            tensor = self.tensors[existing.tensor]
        on_codes = replace(
            value,
            base=Codes(shape=tensor.shape, tensor=tensor),
            chain=(dequantising(tensor), *value.chain),
            trail=None if value.trail is None else (HostOp(kind="Dequantize"), *value.trail),
        )
        return self.codes(on_codes)

    def on_own_grid(
        self,
        base: Pending,
        value: str,
        chain: tuple[Step, ...],
        quantiser: Quantiser,
        name: str,
        source: str,
        *,
        before: tuple[Step, ...] = (),
    ) -> Tensor:
        """What :meth:`Pending.finish` gives, for a base that cannot take the chain: the ``value`` that the steps ``before`` make of the base
        becomes codes on a grid from calibration, and the chain a step function behind them."""
        view = identity_view(base.shape)
        plain = Value(name=value, base=base, view=view, chain=before, trail=None, start=view, witness=value, label=base.label)
        codes = self.codes(plain)
        settled = self.settle(replace(codes, name=name, chain=(*(codes.chain or ()), *chain), quantiser=quantiser, source=source))
        assert isinstance(settled.base, Codes)
        return settled.base.tensor

    def _lossless(self, value: Value) -> Value | None:
        """Steps behind codes that stay on one grid of 8 bits (Relu, Clip, a common scale) need no calibration."""
        base = value.base
        if not isinstance(base, Codes) or value.chain is None or is_curved(value.chain):
            return None
        channels = base.shape[0]
        tensor = base.tensor
        scale = entry(tensor.scale, 0)
        points: set[Fraction] = set()
        for channel in range(channels if differs(value.chain) else 1):
            segments = compose(value.chain, channel)
            starts = [segment.start for segment in segments[1:]]
            for code in range(tensor.low, tensor.high + 1):
                segment = segments[sum(1 for start in starts if start is not None and start <= code)]
                points.add((segment.gain * code + segment.offset) / scale)
            if len(points) > 256:
                return None
        integers = sorted(points)
        if any(point.denominator != 1 for point in integers):
            return None
        low, high = int(min(integers[0], 0)), int(max(integers[-1], 0))
        if high - low > 255:
            return None
        offset = 0 if -128 <= low and high <= 127 else -128 - low
        quantiser = Quantiser(scale, 0, low, high, "half_even", offset=offset)
        return self.settle(replace(value, quantiser=quantiser, integer=False))

    def placed(self, value: Value, shape: tuple[int, int, int]) -> Value:
        """Codes whose tensor has ``shape`` and whose elements are the value's in order; a Copy where that is not so already."""
        assert isinstance(value.base, Codes)
        base, flat = value.base, value.view.ravel()
        if base.shape == shape and np.array_equal(flat, np.arange(len(flat))):
            return value
        old = flat // base.pixels
        pixels = shape[1] * shape[2]
        first = old[::pixels]
        uniform = bool((old.reshape(-1, pixels) == first[:, None]).all())
        affine, tensor = affine_of(value.chain), base.tensor
        assert affine is not None
        if not uniform and max(len(affine.gain), len(affine.offset), len(tensor.scale), len(tensor.zero_point)) > 1:
            raise RefusalError(
                "a scale for each channel does not fit the new layout of the tensor", "use one scale for the whole tensor here"
            )
        key = (tensor.name, flat.tobytes(), shape)
        if key not in self._copies:
            name = self.unique(value.name)
            self._copies[key] = self.add(
                replace(
                    tensor,
                    name=name,
                    shape=shape,
                    scale=take_channels(tensor.scale, first),
                    zero_point=take_channels(tensor.zero_point, first),
                )
            )
            self.emit(Copy(name=self.operation_name(value.label or name), output=name, input=tensor.name, index=flat.copy()))
        view = identity_view(value.shape)
        moved = Affine(take_channels(affine.gain, first), take_channels(affine.offset, first))
        plain = value.trail is not None and len(value.trail) <= 1
        return replace(
            value,
            base=Codes(shape=shape, tensor=self._copies[key]),
            view=view,
            chain=(moved,),
            trail=value.trail if plain else None,
            start=view,
            witness=value.name if plain else value.witness,
        )
