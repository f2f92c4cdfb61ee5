"""Imported weights as an ONNX file of INT2 matrices, or as arrays."""

from collections.abc import Iterable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tritloom.errors import UserError
from tritloom.models.checkpoints.tensors import BLOCK, TernaryTensor

__all__ = ["IR_VERSION", "OPSET", "arrays_of", "weights_model"]

OPSET, IR_VERSION = 25, 13
"""The first operator set with DequantizeLinear of INT2."""

MOST_BYTES = 2_000_000_000
"""A file of Protocol Buffers holds less than 2 GiB."""


def weights_model(name: str, tensors: Iterable[TernaryTensor], metadata: Mapping[str, str]) -> onnx.ModelProto:
    """A product with each matrix: input ``TENSOR.input`` float (N, I), output ``TENSOR`` float (N, O).

    Weights are INT2 initialisers behind a DequantizeLinear with their scales. The same tensors give the same bytes. Raises :class:`UserError` for more than
    one ONNX file holds.
    """
    nodes, constants, inputs, outputs, seen, size = [], [], [], [], set[str](), 0
    for tensor in tensors:
        label, (rows, columns) = tensor.name.removesuffix(".weight"), tensor.trits.shape
        if label in seen:
            raise UserError(f"two tensors would have the name {label!r}; take one of them with --only")
        seen.update((label, f"{label}.input", f"{label}.trits", f"{label}.scale", f"{label}.values"))
        size += rows * columns // 4 + tensor.scale.nbytes
        if size > MOST_BYTES:
            raise UserError("the weights do not fit in one ONNX file of 2 GB; take some of them with --only")
        constants.append(numpy_helper.from_array(tensor.trits.astype(ml_dtypes.int2), f"{label}.trits"))
        scale = tensor.scale[0] if tensor.scale.shape == (1,) else tensor.scale
        constants.append(numpy_helper.from_array(np.asarray(scale, np.float32), f"{label}.scale"))
        along: dict[str, Any] = {"axis": 0} if tensor.scale.shape == (rows,) and rows > 1 else {}
        if tensor.scale.ndim == 2:
            along = {"axis": 1, "block_size": BLOCK}
        weight = helper.make_node(
            "DequantizeLinear", [f"{label}.trits", f"{label}.scale"], [f"{label}.values"], name=f"{label}.values", **along
        )
        nodes += [weight, helper.make_node("Gemm", [f"{label}.input", f"{label}.values"], [label], name=label, transB=1)]
        inputs.append(helper.make_tensor_value_info(f"{label}.input", TensorProto.FLOAT, ["N", columns]))
        outputs.append(helper.make_tensor_value_info(label, TensorProto.FLOAT, ["N", rows]))
    model = helper.make_model(
        helper.make_graph(nodes, name, inputs, outputs, initializer=constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="tritloom",
    )
    helper.set_model_props(model, dict(metadata))
    return model


def arrays_of(tensors: Iterable[TernaryTensor]) -> dict[str, np.ndarray]:
    """``NAME.trits`` int8 (O, I) and ``NAME.scale`` float32 of each, for an ``.npz`` file."""
    arrays = {}
    for tensor in tensors:
        label = tensor.name.removesuffix(".weight")
        arrays[f"{label}.trits"], arrays[f"{label}.scale"] = tensor.trits, tensor.scale
    return arrays
