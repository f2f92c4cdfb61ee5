"""Constant folding: a node whose operands are all constants is computed by ONNX Runtime, in the arithmetic of the witness."""

from collections.abc import Sequence

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import onnxruntime
import onnxruntime.capi.onnxruntime_pybind11_state as errors

from tritloom.compiler.frontend.problems import RefusalError
from tritloom.compiler.frontend.reader import LARGEST_TENSOR
from tritloom.compiler.frontend.values import Constant
from tritloom.compiler.frontend.versions import without_newer_opsets

__all__ = [
    "RUNTIME_ERRORS",
    "WITNESS_IR_VERSION",
    "constants_of",
    "fold",
    "name_nodes_apart",
    "quiet_session",
    "rebatch_reshapes",
    "run_node",
]

WITNESS_IR_VERSION = 10
"""Of the models given to ONNX Runtime, which refuses versions newer than itself."""

RUNTIME_ERRORS = (
    errors.EPFail,
    errors.EngineError,
    errors.Fail,
    errors.InvalidArgument,
    errors.InvalidGraph,
    errors.InvalidProtobuf,
    errors.NoModel,
    errors.NotImplemented,
    errors.RuntimeException,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What ONNX Runtime raises for a graph or operands that it cannot run."""

_ENLARGING = ("ConstantOfShape", "EyeLike", "Expand", "Loop", "OneHot", "Pad", "Range", "Resize", "Scan", "Tile", "Upsample")
_RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")


def name_nodes_apart(graph: onnx.GraphProto) -> None:
    """Number the nodes whose name another one has: ONNX Runtime refuses models that repeat a node's name."""
    names: set[str] = set()
    for number, node in enumerate(graph.node):
        while node.name in names:
            node.name = f"{node.name}_{number}"
        if node.name:
            names.add(node.name)


def quiet_session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """A session of one thread that prints nothing and computes each node as it stands. Nodes of one name get names of their own."""
    name_nodes_apart(model.graph)
    without_newer_opsets(model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _check_size(node: onnx.NodeProto, operands: list[np.ndarray | None]) -> None:
    """Refuse nodes whose result could be far larger than their operands."""
    arrays = [operand for operand in operands if operand is not None]
    limit = LARGEST_TENSOR
    if node.op_type in _ENLARGING:
        numbers = [
            float(np.abs(array.astype(np.float64)).clip(1).prod()) for array in arrays if array.dtype.kind in "iuf" and array.size <= 64
        ]
        sizes = [float(array.size) for array in arrays]
        if node.op_type in ("Loop", "Scan") or max(numbers, default=1.0) * max(sizes, default=1.0) > limit:
            raise RefusalError(f"{node.op_type} of constants may make a very large tensor", "store the result as a constant")
    elif float(np.prod([max(array.size, 1) for array in arrays], dtype=np.float64)) > limit:
        try:
            shape = np.broadcast_shapes(*(array.shape for array in arrays))
        except ValueError:
            shape = ()
        if max(float(np.prod(shape, dtype=np.float64)), *(array.size for array in arrays)) > limit or node.op_type in (
            "MatMul",
            "Gemm",
            "Einsum",
        ):
            raise RefusalError(f"{node.op_type} of constants may make a very large tensor", "store the result as a constant")


def fold(node: onnx.NodeProto, operands: Sequence[Constant | None], opset: int) -> list[Constant]:
    """Results of a node of the standard operator set whose operands are constants. Raises :class:`RefusalError`."""
    if node.domain not in ("", "ai.onnx") or node.op_type in _RANDOM:
        raise RefusalError(
            f"operator {node.op_type} of domain {node.domain or 'ai.onnx'} is not supported", "store its result as a constant"
        )
    arrays = [None if operand is None else operand.array for operand in operands]
    _check_size(node, arrays)
    results = run_node(node, arrays, opset)
    if any(array.size > LARGEST_TENSOR for array in results):
        raise RefusalError(f"{node.op_type} of constants makes a very large tensor", f"use tensors of at most {LARGEST_TENSOR} elements")
    return [Constant(array) for array in results]


def run_node(node: onnx.NodeProto, arrays: list[np.ndarray | None], opset: int) -> list[np.ndarray]:
    """Outputs of a node, an empty array for those without a name; the caller bounds their size. Raises :class:`RefusalError`."""
    bound: dict[str, np.ndarray] = {}
    copied = onnx.NodeProto()
    copied.CopyFrom(node)
    for index, array in enumerate(arrays):
        copied.input[index] = f"x{index}" if array is not None else ""
        if array is not None:
            bound[f"x{index}"] = array.copy(order="C")
    outputs = [name for name in node.output if name]
    try:
        inputs = [
            onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in bound.items()
        ]
        graph = onnx.helper.make_graph([copied], "fold", inputs, [onnx.helper.make_empty_tensor_value_info(name) for name in outputs])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=WITNESS_IR_VERSION)
        results = quiet_session(model).run(outputs, bound)
    except (*RUNTIME_ERRORS, KeyError) as error:
        lines = str(error).splitlines()
        raise RefusalError(
            f"its constants cannot be computed: {lines[0] if lines else node.op_type}", "store the result as a constant"
        ) from None
    found = {name: np.asarray(array) for name, array in zip(outputs, results, strict=True)}
    return [found[name] if name else np.zeros(0) for name in node.output]


def constants_of(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """Lists of int64 among the initializers and Constant nodes, by name: what may be the shape of a Reshape."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    constants: dict[str, np.ndarray] = {}
    for node in graph.node:
        if node.op_type == "Constant" and not node.domain:
            for attribute in node.attribute:
                if attribute.name == "value":
                    tensors[node.output[0]] = attribute.t
                elif attribute.name == "value_ints":
                    constants[node.output[0]] = np.array(attribute.ints, np.int64)
    for name, tensor in tensors.items():
        if tensor.data_type == onnx.TensorProto.INT64 and len(tensor.dims) <= 1:
            constants[name] = onnx.numpy_helper.to_array(tensor)
    return constants


def rebatch_reshapes(graph: onnx.GraphProto, declared: int | None, batch: int) -> None:
    """Make constant shapes of Reshape that begin with the ``declared`` batch begin with ``batch``; 0 is that of the operand.

    PyTorch writes ``allowzero``, which makes a 0 no element at all; it goes where another 0 does not need it.
    """
    if declared is None or declared == batch:
        return
    constants = constants_of(graph)
    fixed = {tensor.name for tensor in graph.initializer} | {
        output for node in graph.node if node.op_type == "Constant" for output in node.output
    }
    for number, node in enumerate(graph.node):
        if node.op_type != "Reshape" or node.input[0] in fixed or node.input[1] not in constants:
            continue
        shape = constants[node.input[1]].copy()
        literal = [attribute for attribute in node.attribute if attribute.name == "allowzero" and attribute.i]
        if shape.ndim == 1 and len(shape) and shape[0] == declared and not (literal and 0 in shape):
            for attribute in literal:
                node.attribute.remove(attribute)
            shape[0] = batch
            name = f"{node.input[1]}_batch_{number}"
            graph.initializer.append(onnx.numpy_helper.from_array(shape, name))
            node.input[1] = name
