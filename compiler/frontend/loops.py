"""Models with ONNX ``Loop`` nodes: recursive networks, and rings of neurons that tick until they settle.

Such a model is read for one sample: its inputs declare a batch of 1, and golden runs a batch sample by sample, each until its own loops end. Values are
*blocks*, as in language models (:mod:`tritloom.compiler.frontend.sequence`), whose tokens lie along the width of their tensors, or plain *integers*.
A ``Loop`` becomes a :class:`~tritloom.compiler.ir.loop.Loop`; a state that its body reads becomes a loop-carried tensor on a fixed grid. A state
that the body never reads is only a result: whatever the last trip made.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tritloom.compiler.frontend.constants import fold
from tritloom.compiler.frontend.loop_states import INPUT_RANGES, STATE_BITS, STATE_KINDS, codes_on, exact_step, placed
from tritloom.compiler.frontend.loop_tensors import GridReader
from tritloom.compiler.frontend.problems import Problem, RefusalError
from tritloom.compiler.frontend.sequence import MALFORMED
from tritloom.compiler.frontend.sequence_values import HANDLERS, ZERO, Block, Integers, Step, Trip, single
from tritloom.compiler.frontend.values import LARGEST_ACTIVATION, Constant
from tritloom.compiler.ir.loop import MOST_TRIPS, Carried, Loop
from tritloom.compiler.ir.program import HostOp, InputSpec, OutputSpec, Program
from tritloom.errors import ModelError

__all__ = ["BLOCK_HANDLERS", "INTEGER_HANDLERS", "MOVEMENTS", "SHARED", "LoopHandler", "LoopReader", "is_loop_model"]

MOVEMENTS = (
    "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
)  # fmt: skip
"""Operators that only move the elements of their first operand."""

SHARED = (
    "Abs", "Add", "Cast", "Clip", "DequantizeLinear", "Div", "Identity", "LayerNormalization", "MatMul", "Max", "Mul", "RMSNormalization", "Reciprocal",
    "ReduceMax", "Relu", "Round", "Sigmoid",
)  # fmt: skip
"""Operators of blocks that are what they are in language models, which know positions and caches besides."""

LoopHandler = Callable[["LoopReader", onnx.NodeProto, list[Any]], Any]

BLOCK_HANDLERS: dict[str, LoopHandler] = {}
"""Operators of blocks that are others than in language models; filled by :mod:`tritloom.compiler.frontend.operators_loop`."""

INTEGER_HANDLERS: dict[str, LoopHandler] = {}
"""Operators of integers; filled by :mod:`tritloom.compiler.frontend.operators_integer`."""


class _RefusedError(Exception):
    """A node that no rule lowers, in whatever body it stands."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.reason)
        self.problem = problem


def is_loop_model(model: onnx.ModelProto) -> bool:
    """Whether the graph has a node ``Loop``."""
    return any(node.op_type == "Loop" and node.domain in ("", "ai.onnx") for node in model.graph.node)


def _names_read(graph: onnx.GraphProto) -> Iterator[str]:
    """Everything that the nodes of a body and of the bodies in it read."""
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _names_read(attribute.g)
                yield from (value.name for value in attribute.g.output)


@dataclass
class LoopReader(GridReader):
    """Walks the nodes in order and enters the bodies of loops."""

    inputs: dict[str, InputSpec] = field(default_factory=dict)
    _trips: int = 1

    # ---- graph ----

    def read(self) -> Program | Problem:
        """The program, or the first node that no rule lowers. Raises :class:`ModelError` for inputs and outputs of another kind."""
        graph = self.model.graph
        self._constants(graph)
        for value in graph.input:
            if value.name not in self.values:
                self._input(value)
        try:
            for node in graph.node:
                self._step(node)
            return self._program()
        except _RefusedError as error:
            return error.problem

    def _constants(self, graph: onnx.GraphProto) -> None:
        for tensor in graph.initializer:
            try:
                self.values[tensor.name] = numpy_helper.to_array(tensor)
            except (ValueError, TypeError, AttributeError, KeyError):
                raise ModelError(f"{self.name}: initializer {tensor.name!r} is damaged") from None

    def _input(self, value: onnx.ValueInfoProto) -> None:
        sizes = [size.dim_value for size in value.type.tensor_type.shape.dim]
        bounds = INPUT_RANGES.get(value.type.tensor_type.elem_type)
        if bounds is None:
            raise ModelError(f"{self.name}: input {value.name!r} must have integers: a model with loops takes symbols or codes")
        if not sizes or sizes[0] != 1 or min(sizes) < 1:
            shown = ",".join(["1", *(str(size or "SIZE") for size in sizes[1:])])
            raise ModelError(
                f"{self.name}: input {value.name!r} needs fixed sizes and a batch of 1, as it has loops: give --shape {value.name}={shown}"
            )
        if float(np.prod(sizes, dtype=np.float64)) > LARGEST_ACTIVATION:
            raise ModelError(f"{self.name}: input {value.name!r} has more than {LARGEST_ACTIVATION} elements")
        count = int(np.prod(sizes))
        tensor = self.integers(value.name, (count, 1, 1), *bounds)
        kind = np.dtype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)).name
        self.inputs[value.name] = InputSpec(name=value.name, shape=tuple(sizes), dtype=kind, tensor=tensor, prologue=())
        self.values[value.name] = Integers(tensor, np.arange(count).reshape(sizes))

    def _step(self, node: onnx.NodeProto) -> None:
        label = node.name or next(iter(node.output), "")
        try:
            results = self.node(node)
        except RefusalError as error:
            raise _RefusedError(Problem(label, node.op_type, error.reason, error.hint)) from None
        except MALFORMED:
            raise _RefusedError(
                Problem(label, node.op_type, "its operands and attributes do not fit together", "check the model")
            ) from None
        self.values.update((name, result) for name, result in zip(node.output, results, strict=False) if name)

    def node(self, node: onnx.NodeProto) -> Sequence[Any]:
        operands: list[Any] = [self.values.get(name) for name in node.input]
        missing = next((name for name, operand in zip(node.input, operands, strict=True) if name and operand is None), None)
        if missing is not None:
            raise RefusalError(f"operand {missing!r} is computed nowhere")
        if node.domain not in ("", "ai.onnx"):
            raise RefusalError(f"no rule lowers operators of domain {node.domain} in a model with loops")
        operands, rules = self.rules(node, node.op_type, operands)
        if node.op_type == "Loop":
            return self._loop(node, operands)
        if all(operand is None or isinstance(operand, np.ndarray) for operand in operands):
            return [
                constant.array
                for constant in fold(node, [None if operand is None else Constant(operand) for operand in operands], self.opset)
            ]
        first, others = operands[0], operands[1:]
        if isinstance(first, Integers | Block) and all(operand is None or isinstance(operand, np.ndarray) for operand in others):
            if node.op_type == "Shape":
                return [np.array(first.index.shape)]
            if node.op_type in MOVEMENTS:
                constants = [None if operand is None else Constant(operand) for operand in (first.index, *others)]
                places = [constant.array for constant in fold(node, constants, self.opset)]
                if max(place.size for place in places) > LARGEST_ACTIVATION:
                    raise RefusalError(f"its result has more than {LARGEST_ACTIVATION} elements")
                return [replace(first, index=place) for place in places]
        if any(isinstance(operand, Integers | Trip) for operand in operands):
            handlers = INTEGER_HANDLERS
        else:
            handlers = {name: rules[name] for name in SHARED if name in rules} | (BLOCK_HANDLERS if rules is HANDLERS else {})
        handler = handlers.get(node.op_type)
        if handler is None:
            raise RefusalError("no rule lowers it in a model with loops", f"rules exist for {', '.join(sorted({*handlers, *MOVEMENTS}))}")
        result = handler(self, node, operands)
        return result if isinstance(result, tuple) else [result]

    # ---- loops ----

    def _loop(self, node: onnx.NodeProto, operands: list[Any]) -> Sequence[Any]:
        body = next((attribute.g for attribute in node.attribute if attribute.name == "body" and attribute.HasField("g")), None)
        if body is None or len(body.input) != len(operands) or len(body.input) < 2:
            raise RefusalError("its body does not take what the loop hands to it")
        if len(body.output) != len(body.input) - 1:
            raise RefusalError("it collects a value of every trip", "keep what the last trip makes as a state of the loop")
        limit = operands[0]
        if not isinstance(limit, np.ndarray) or limit.size != 1 or not 1 <= int(limit.ravel()[0]) <= MOST_TRIPS // self._trips:
            raise RefusalError("it has no constant largest number of trips", f"give one from 1 to {MOST_TRIPS}, nested loops together")
        if operands[1] is not None and not (isinstance(operands[1], np.ndarray) and operands[1].size == 1 and operands[1].all()):
            raise RefusalError("whether it begins is computed", "give True: the first trip is always taken")
        return self._entered(node, body, int(limit.ravel()[0]), operands[2:])

    def _entered(self, node: onnx.NodeProto, body: onnx.GraphProto, limit: int, initial: list[Any]) -> Sequence[Any]:
        """The results of a loop."""
        label = node.name or next(iter(node.output), "loop")
        read = {*_names_read(body), *(value.name for value in body.output)}
        number, condition, *states = body.input
        for name in sorted(read):
            # What a step means by itself is computed before the loop, not in every trip.
            self.plain(name)
        outside, values = self.operations, dict(self.values)
        begun: dict[str, tuple[Any, Carried]] = {}
        self._constants(body)
        for state, end, value in zip(states, body.output[1:], initial, strict=True):
            if state.name in read:
                begun[state.name] = self._begun(node, state, value, self._grid(body, end.name))
        shape = tuple(size.dim_value for size in number.type.tensor_type.shape.dim)
        self.values |= {
            number.name: Trip(label, 0, shape),
            condition.name: np.array(True),
            **{name: value for name, (value, _) in begun.items()},
        }
        self.operations, trips = [], self._trips
        self._trips *= limit
        for inner in body.node:
            self._step(inner)
        more, *results = (self.plain(value.name) for value in body.output)
        pairs = [(begun[state.name], result) for state, result in zip(states, results, strict=True) if state.name in begun]
        carried = [self._carried(node, *before, result) for before, result in pairs]
        ends = ""
        if isinstance(more, np.ndarray) and more.size == 1:
            limit = limit if more.all() else 1
        elif isinstance(more, Integers) and more.index.size == 1:
            ends = self.laid_out(node, more).tensor
        else:
            raise RefusalError("whether it goes on is not one integer that the body computes", "compare integers, or a value with 0")
        inside, self.operations, self.values, self._trips = self.operations, outside, values, trips
        count = self.integers(f"{label}.trips", (1, 1, 1), 1, limit)
        self.tensors[count] = replace(self.tensors[count], bits=32)
        loop = Loop(name=label, output=count, limit=limit, condition=ends, carried=tuple(carried), body=tuple(inside))
        if not loop.inputs:
            raise RefusalError("it depends on no input of the model")
        self.operations.append(loop)
        return [self._counted(node, result, label, count) for result in results]

    def _begun(self, node: onnx.NodeProto, state: onnx.ValueInfoProto, value: Any, grid: Fraction | None) -> tuple[Any, Carried]:
        """What a state is when a trip begins, and how it is carried (``after`` is not known yet)."""
        if isinstance(value, np.ndarray) and value.dtype.kind == "f":
            step = grid or exact_step(value)
            codes = codes_on(value, step)
            if codes is None:
                raise RefusalError(
                    f"state {state.name!r} begins with numbers that are no 16-bit integers of one step",
                    "give them as int16 with a DequantizeLinear",
                )
            before, made = self._carrier(state.name, codes, -(1 << (STATE_BITS - 1)), (1 << (STATE_BITS - 1)) - 1)
            self.tensors[before] = replace(self.tensors[before], scale=(step,))
            return Block(before, "", step, made), Carried(before=before, after="", values=placed(codes))
        if isinstance(value, Block):
            if value.scale:
                raise RefusalError(
                    f"state {state.name!r} has a scale of its own for each token", "bring it to a fixed grid with QuantizeLinear to int16"
                )
            value = self.laid_out(node, value)
            if self.tensors[value.tensor].bits > STATE_BITS:
                raise RefusalError(f"state {state.name!r} begins with more than {STATE_BITS} bits")
            before, made = self._carrier(state.name, value.index, -(1 << (STATE_BITS - 1)), (1 << (STATE_BITS - 1)) - 1)
            self.tensors[before] = replace(self.tensors[before], scale=(value.constant,))
            return Block(before, "", value.constant, made), Carried(before=before, after="", initial=value.tensor)
        kind = state.type.tensor_type.elem_type
        if not isinstance(value, Integers | np.ndarray) or kind not in STATE_KINDS:
            raise RefusalError(f"state {state.name!r} is neither on a fixed grid nor integers of 8 or 16 bits")
        low, high = INPUT_RANGES[kind]
        if isinstance(value, np.ndarray):
            before, made = self._carrier(state.name, value, low, high)
            return Integers(before, made), Carried(before=before, after="", values=placed(value.astype(np.int16)))
        value = self.laid_out(node, value)
        before, made = self._carrier(state.name, value.index, low, high)
        return Integers(before, made), Carried(before=before, after="", initial=value.tensor)

    def _carrier(self, name: str, like: np.ndarray, low: int, high: int) -> tuple[str, np.ndarray]:
        """A tensor for a state shaped ``like`` an ONNX value, and its index."""
        channels = like.shape[-1] if like.ndim else 1
        before = self.integers(name, (channels, 1, like.size // channels), low, high)
        return before, np.arange(like.size).reshape(channels, -1).T.reshape(like.shape)

    def _grid(self, body: onnx.GraphProto, name: str) -> Fraction | None:
        """Step of the grid that a body's output is brought to, as far as a DequantizeLinear is found behind inner loops and what only moves elements."""
        makers = {output: node for node in body.node for output in node.output}
        while name in makers:
            node = makers.pop(name)
            if node.op_type == "DequantizeLinear":
                return single(self.values.get(node.input[1]))
            if node.op_type == "Loop":
                inner = next(attribute.g for attribute in node.attribute if attribute.name == "body")
                name = inner.output[list(node.output).index(name) + 1].name
                makers = {output: node for node in inner.node for output in node.output}
            elif node.op_type in MOVEMENTS:
                name = node.input[0]
        return None

    def _carried(self, node: onnx.NodeProto, begun: Any, carried: Carried, result: Any) -> Carried:
        """The loop-carried tensor with its next value, which lies as it does itself."""
        if type(result) is not type(begun) or result.index.shape != begun.index.shape or getattr(result, "scale", ""):
            raise RefusalError(
                f"state {carried.before!r} is not what it began as when a trip ends",
                "keep its shape, and bring it to a fixed grid with QuantizeLinear to int16",
            )
        result = self.laid_out(node, result)
        before, after = self.tensors[carried.before], self.tensors[result.tensor]
        if after.low < before.low or after.high > before.high:
            raise RefusalError(
                f"state {carried.before!r} may leave {before.low}..{before.high}: it ends a trip in {after.low}..{after.high}"
            )
        if isinstance(result, Block) and result.constant != begun.constant:
            raise RefusalError(f"state {carried.before!r} lies on one grid when a trip begins and on another when it ends")
        return replace(carried, after=result.tensor)

    def _counted(self, node: onnx.NodeProto, result: Any, label: str, count: str) -> Any:
        """A result of a loop; the number of its last trip becomes an integer."""
        if not isinstance(result, Trip) or result.loop != label:
            return result
        trips = Integers(count, np.zeros(result.shape, np.int64))
        return trips if result.offset == 1 else replace(trips, tensor=self.clamped_sum(node, [(trips, 1)], result.offset - 1))

    # ---- outputs ----

    def _program(self) -> Program:
        outputs = [self._output(value) for value in self.model.graph.output]
        if not any(isinstance(operation, Loop) for operation in self.operations):
            raise ModelError(f"{self.name}: no output depends on a loop")
        return Program(
            name=self.name, tensors=self.tensors, operations=tuple(self.operations), inputs=tuple(self.inputs.values()), outputs=tuple(outputs)
        )  # fmt: skip

    def _output(self, value: onnx.ValueInfoProto) -> OutputSpec:
        found = self.plain(value.name)
        if not isinstance(found, Integers | Block):
            what = "a step of a quantiser" if isinstance(found, Step) else "not computed from the inputs"
            raise ModelError(f"{self.name}: output {value.name!r} is {what}")
        node = next(
            (node for node in self.model.graph.node if value.name in node.output), onnx.NodeProto(name=value.name, output=[value.name])
        )
        if (found.index == ZERO).any():
            try:
                found = self.laid_out(node, found)
            except RefusalError as error:
                raise ModelError(f"{self.name}: output {value.name!r}: {error.reason}") from None
        declared, sizes = value.type.tensor_type.shape.dim, found.index.shape
        fitting = [axis.dim_value <= 0 or axis.dim_value == size for axis, size in zip(declared, sizes, strict=False)]
        if declared and not (len(declared) == len(sizes) and all(fitting)):
            stated = ", ".join(str(axis.dim_value or axis.dim_param) for axis in declared)
            raise ModelError(
                f"{self.name}: output {value.name!r} is declared with the shape ({stated}) and computed with {tuple(sizes)}; declare the latter"
            )
        # A leading axis of 1 is the batch; a value without one gets it.
        index = found.index.reshape(found.index.shape[1:]) if found.index.shape[:1] == (1,) else found.index
        epilogue: tuple[HostOp, ...] = ()
        scale = ""
        if isinstance(found, Block):
            self.tensors[found.tensor] = replace(self.tensors[found.tensor], scale=(found.constant,))
            scale = found.scale
            if not scale:
                step = np.array(float(found.constant))
                epilogue = (HostOp(kind="Dequantize", constants={"scale": step, "zero_point": np.array(0)}),)
        kind = value.type.tensor_type.elem_type
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind)) if kind else np.dtype(np.float32)
        if dtype.kind not in "fiub":
            raise ModelError(f"{self.name}: output {value.name!r} has a type that no array has; declare it as float32 or int64")
        return OutputSpec(
            name=value.name, shape=(1, *index.shape), dtype=dtype.name, tensor=found.tensor, epilogue=epilogue, index=index.astype(np.int64),
            scale_tensor=scale,
        )  # fmt: skip
