"""Language models with a cache of keys and values: one token a run, everything else a state of the program.

A decoder is exported as one graph: ``input_ids`` and ``past_key_values.*`` in, logits and ``present.*`` out. It is read for a single token behind P earlier
ones. Sizes and positions then depend on P alone: such values are computed for every P up to the capacity, and what a node needs of them (rising positions, a
mask of zeros) is checked for all. The caches become states of fixed capacity (:class:`~tritloom.compiler.ir.block.State`).

Activations are *blocks*: integers with a scale that is computed at run time. A quantiser with a scale for each token, written out as Abs, ReduceMax, Div, Round
and so on, is followed step by step until its codes meet their step again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tritloom.compiler.frontend.constants import RUNTIME_ERRORS, WITNESS_IR_VERSION, quiet_session, run_node
from tritloom.compiler.frontend.problems import Problem, RefusalError
from tritloom.compiler.frontend.sequence_values import (
    HANDLERS,
    PLAIN,
    STEPS,
    Block,
    Cache,
    Handler,
    Size,
    Step,
    Tokens,
    Turning,
    Value,
    attribute,
    operator,
)
from tritloom.compiler.ir.block import Position, View
from tritloom.compiler.ir.program import InputSpec, Operation, OutputSpec, Program, State, Tensor
from tritloom.errors import ModelError

__all__ = ["MALFORMED", "MASK", "POSITION", "POSITIONS", "SequenceReader", "is_sequence_model"]

MALFORMED = (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError)
"""What NumPy raises when a damaged model gives an operator operands of impossible shapes or types."""

_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_INTEGERS = (TensorProto.INT32, TensorProto.INT64)

PAST = "past_key_values."
MASK, POSITIONS = "attention_mask", "position_ids"
"""Inputs that some exporters add: ones for all tokens so far, and the number of earlier tokens."""

POSITION, _POSITION_AFTER = "position", "position.after"


def is_sequence_model(model: onnx.ModelProto) -> bool:
    """Whether the graph has a cache of keys and values among its inputs."""
    return any(value.name.startswith(PAST) for value in model.graph.input)


@dataclass
class SequenceReader:
    """Walks the nodes in order. ``values`` holds what each name stands for."""

    model: onnx.ModelProto
    name: str
    capacity: int
    values: dict[str, Value] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    operations: list[Operation] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    _sizes: dict[str, list[np.ndarray]] = field(default_factory=dict)
    _plain: dict[Step, Block] = field(default_factory=dict)

    # ---- tensors and operations ----

    def tensor(
        self, name: str, shape: tuple[int, int, int], *, bits: int = 32, constant: Fraction = Fraction(1), high: int | None = None
    ) -> str:
        """The name of a new tensor; ``high`` is the largest code of one that is never negative."""
        while name in self.tensors:
            name += "'"
        low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if high is None else (0, high)
        self.tensors[name] = Tensor(name=name, shape=shape, bits=bits, low=low, high=high, scale=(constant,))
        return name

    def emit(
        self,
        kind: Callable[..., Operation],
        node: onnx.NodeProto,
        shape: tuple[int, int, int],
        constant: Fraction,
        /,
        *,
        bits: int = 32,
        scaled: str | bool = True,
        name: str = "",
        **fields: Any,
    ) -> tuple[str, str]:
        """An operation that writes a new tensor. ``scaled``: it writes a scale tensor too, or the name of the one that its result has."""
        label = name or node.output[0]
        output = self.tensor(label, shape, bits=bits, constant=constant)
        if scaled is True:
            scale = self.tensor(f"{output}.scale", (2, shape[1], shape[2]))
            self.operations.append(kind(name=node.name or label, output=output, output_scale=scale, **fields))
            return output, scale
        self.operations.append(kind(name=node.name or label, output=output, **fields))
        return output, scaled or ""

    def laid_out(self, node: onnx.NodeProto, block: Block, pixels: int | None = None) -> Block:
        """The block with its last axis (``pixels`` None) in the channels and the others in the rows, all tokens of one scale; moved only where it lies otherwise."""
        channels = block.index.shape[-1] if pixels is None else block.index.size // pixels
        shape = (channels, block.index.size // channels, 1)
        index = block.index.reshape(shape[1], channels).T[:, :, None]
        source = self.tensors[block.tensor].shape
        if source == shape and np.array_equal(index.ravel(), np.arange(index.size)):
            return block
        if source[1] * source[2] != 1:
            raise RefusalError("it joins channels of heads that have scales of their own", "quantise a whole token with one scale")
        bits = self.tensors[block.tensor].bits
        output, scale = self.emit(
            View, node, shape, block.constant, bits=bits, scaled=bool(block.scale), name=f"{block.tensor}.view", input=block.tensor,
            input_scale=block.scale, index=index,
        )  # fmt: skip
        return Block(
            output, scale, block.constant, np.arange(index.size).reshape(channels, shape[1]).T.reshape(block.index.shape), block.codes
        )

    def result(self, block: tuple[str, str], constant: Fraction, shape: tuple[int, ...], codes: bool = False) -> Block:
        """A tensor (C, H, W) as the ONNX value of ``shape``, whose last axis the channels are."""
        channels, rows, columns = self.tensors[block[0]].shape
        index = np.arange(channels * rows * columns).reshape(channels, -1).T.reshape(shape)
        return Block(*block, constant, index, codes)

    # ---- sizes ----

    def sizes(self, name: str) -> list[np.ndarray]:
        """What ``name`` is for each P from 0 to one below the capacity. Raises :class:`RefusalError`."""
        given = self.values.get(name)
        if isinstance(given, np.ndarray):
            return [given] * self.capacity
        if name in self._sizes:
            return self._sizes[name]
        needed, nodes = {name}, []
        for node in reversed(self.model.graph.node):
            if needed & set(node.output):
                nodes.append(node)
                needed |= set(node.input)
        inputs = [value for value in self.model.graph.input if value.name in needed]
        graph = helper.make_graph(
            nodes[::-1], "sizes", inputs, [helper.make_empty_tensor_value_info(name)],
            [tensor for tensor in self.model.graph.initializer if tensor.name in needed],
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=self.model.opset_import, ir_version=WITNESS_IR_VERSION)
        found = []
        try:
            session = quiet_session(model)
            for past in range(self.capacity):
                feeds = {}
                for value in inputs:
                    sizes = [size.dim_value or 1 for size in value.type.tensor_type.shape.dim]
                    if value.name == MASK:
                        sizes[-1:] = [past + 1]
                    if value.name.startswith(PAST):
                        free = [place for place, size in enumerate(value.type.tensor_type.shape.dim) if not size.dim_value]
                        sizes = [past if place == free[-1] else size for place, size in enumerate(sizes)] if free else sizes
                    kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
                    feeds[value.name] = np.full(sizes, {POSITIONS: past, MASK: 1}.get(value.name, 0), kind)
                found.append(np.asarray(session.run(None, feeds)[0]))
        except RUNTIME_ERRORS as error:
            raise RefusalError(f"the sizes it depends on cannot be computed: {str(error).splitlines()[0]}") from None
        self._sizes[name] = found
        return found

    def is_position(self, name: str) -> bool:
        """Whether the only element of ``name`` is the number of earlier tokens."""
        return all(value.size == 1 and value.ravel()[0] == past for past, value in enumerate(self.sizes(name)))

    def hides_nothing(self, name: str) -> bool:
        """Whether a mask leaves all earlier tokens: zeros that are added, or true everywhere."""
        return all(value.all() if value.dtype == bool else not value.any() for value in self.sizes(name))

    def settled(self, name: str) -> np.ndarray:
        """A value that is the same for every P. Raises :class:`RefusalError`."""
        value = self.values.get(name)
        if isinstance(value, np.ndarray):
            return value
        if not isinstance(value, Size):
            raise RefusalError(f"operand {name!r} is computed from the tokens", "make it a constant")
        first, *others = self.sizes(name)
        if any(not np.array_equal(first, other) for other in others):
            raise RefusalError(f"operand {name!r} changes with the number of tokens", "give shapes with -1 for the tokens")
        return first

    # ---- graph ----

    def read(self) -> Program | Problem:
        """The program, or the first node that no rule lowers. Raises :class:`ModelError` for inputs and outputs of another kind."""
        graph = self.model.graph
        self.tensor(POSITION, (1, 1, 1), high=self.capacity - 1)
        self.operations.append(Position(name=POSITION, output=_POSITION_AFTER, input=POSITION, capacity=self.capacity - 1))
        self.tensor(_POSITION_AFTER, (1, 1, 1), high=self.capacity - 1)
        self.states.append(State(tensor=POSITION, following=_POSITION_AFTER))
        for tensor in graph.initializer:
            try:
                self.values[tensor.name] = numpy_helper.to_array(tensor)
            except (ValueError, TypeError, AttributeError, KeyError):
                raise ModelError(f"{self.name}: initializer {tensor.name!r} is damaged") from None
        tokens = [
            value
            for value in graph.input
            if value.name not in self.values and value.name not in (MASK, POSITIONS) and not value.name.startswith(PAST)
        ]
        if len(tokens) != 1:
            raise ModelError(f"{self.name}: a language model has one input beside its cache, not {[value.name for value in tokens]}")
        for value in graph.input:
            if value.name.startswith(PAST):
                self.values[value.name] = self.cache(value)
            elif value.name in (MASK, POSITIONS):
                self.values[value.name] = Size(value.name)
        self.values[tokens[0].name] = Tokens()
        outputs = {value.name for value in graph.output}
        for node in graph.node:
            try:
                results = self.node(node)
                self.values.update({name: value for name, value in zip(node.output, results, strict=False) if name and value is not None})
                for name in node.output:
                    if name in outputs:
                        self.plain(name)
            except RefusalError as error:
                return Problem(node.name or node.output[0], node.op_type, error.reason, error.hint)
            except MALFORMED:
                return Problem(
                    node.name or node.output[0], node.op_type, "its operands and attributes do not fit together", "check the model"
                )
        return self.program(tokens[0])

    def cache(self, value: onnx.ValueInfoProto) -> Cache | Turning:
        sizes = [size.dim_value for size in value.type.tensor_type.shape.dim]
        if len(sizes) != 4 or not sizes[1] or not sizes[3]:
            raise ModelError(
                f"{self.name}: input {value.name!r} must have the shape (1, heads, tokens, channels), heads and channels declared"
            )
        if sizes[2] == 1:
            tensor = self.tensor(value.name, (sizes[3], sizes[1], 1), bits=8)
            scale = self.tensor(f"{value.name}.scale", (2, sizes[1], 1))
            index = np.arange(sizes[3] * sizes[1]).reshape(sizes[3], sizes[1]).T.reshape(1, sizes[1], 1, sizes[3])
            return Turning("last", Block(tensor, scale, Fraction(1), index, codes=True))
        shape = sizes[1], sizes[3]
        tensor = self.tensor(value.name, (shape[1], shape[0], self.capacity), bits=8)
        scale = self.tensor(f"{value.name}.scale", (2, shape[0], self.capacity))
        return Cache(tensor, scale, Fraction(0), shape, "1hnc")

    def node(self, node: onnx.NodeProto) -> Sequence[Value | None]:
        operands = [self.values.get(name) for name in node.input]
        dynamic = [operand for operand in operands if not isinstance(operand, (np.ndarray, type(None)))]
        if not dynamic:
            return run_node(node, [operand if isinstance(operand, np.ndarray) else None for operand in operands], self.opset)
        if node.op_type == "Shape" or all(isinstance(operand, Size) for operand in dynamic):
            return [Size(name) for name in node.output]
        key = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
        operands, handlers = self.rules(node, key, operands)
        if key not in handlers:
            raise RefusalError("no rule lowers it in a language model", f"rules exist for {', '.join(sorted(handlers))}")
        result = handlers[key](self, node, operands)
        return result if isinstance(result, tuple) else [result]

    def rules(self, node: onnx.NodeProto, key: str, operands: list[Value | None]) -> tuple[list[Value | None], dict[str, Handler]]:
        """The operands, of steps that do not know the operator ``key`` what they mean by themselves; and the rules, those of a step if one is left."""
        if key in ("Cast", "Identity"):
            return operands, HANDLERS
        operands = [
            self.plain(name) if isinstance(operand, Step) and key not in STEPS[type(operand)] else operand
            for name, operand in zip(node.input, operands, strict=True)
        ]
        kinds = [type(operand) for operand in operands if isinstance(operand, Step)]
        kind = max(kinds, key=lambda kind: kind.rank, default=None)
        return operands, HANDLERS if kind is None else STEPS[kind]

    def plain(self, name: str) -> Value | None:
        """What ``name`` stands for; a step that means something by itself as a block, which it stays."""
        value = self.values.get(name)
        if not isinstance(value, Step) or type(value) not in PLAIN:
            return value
        if value not in self._plain:
            self._plain[value] = PLAIN[type(value)](self, value)
        self.values[name] = self._plain[value]
        return self._plain[value]

    @property
    def opset(self) -> int:
        return max(entry.version for entry in self.model.opset_import if entry.domain in ("", "ai.onnx"))

    def program(self, tokens: onnx.ValueInfoProto) -> Program:
        outputs = []
        for value in self.model.graph.output:
            found = self.values.get(value.name)
            if isinstance(found, Cache | Turning):
                continue
            if not isinstance(found, Block):
                raise ModelError(f"{self.name}: output {value.name!r} is not computed from the tokens")
            shape = ("N", "S", found.index.size)
            outputs.append(
                OutputSpec(
                    name=value.name,
                    shape=shape,
                    dtype="float32",
                    tensor=found.tensor,
                    epilogue=(),
                    index=found.index.ravel(),
                    scale_tensor=found.scale,
                )
            )
        if not outputs or "token" not in self.tensors:
            raise ModelError(f"{self.name}: nothing but the caches is computed; a language model looks up its tokens and has logits")
        given = InputSpec(name=tokens.name, shape=("N",), dtype="int64", tensor="token", prologue=())
        return Program(
            name=self.name, tensors=self.tensors, operations=tuple(self.operations), inputs=(given,), outputs=tuple(outputs),
            states=tuple(self.states),
        )  # fmt: skip


@operator("Cast", "Identity")
def _same(reader: SequenceReader, node: onnx.NodeProto, operands: list[Any]) -> Value:
    """The same value, of any kind."""
    kinds = _INTEGERS if isinstance(operands[0], Tokens) else _FLOATS
    if node.op_type == "Cast" and attribute(node, "to", 0) not in kinds:
        raise RefusalError("activations are only cast from one float type to another")
    return operands[0]
