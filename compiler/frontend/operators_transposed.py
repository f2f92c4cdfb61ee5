"""ConvTranspose: one ordinary convolution whose output channels are the pixels of a block, which a view interleaves."""

from dataclasses import replace

import numpy as np

from tritloom.compiler.frontend.builder import Builder
from tritloom.compiler.frontend.convolution import accumulators_value, integer_weights
from tritloom.compiler.frontend.operators_dense import bias_of, prepared
from tritloom.compiler.frontend.problems import RefusalError
from tritloom.compiler.frontend.reader import LARGEST_TENSOR
from tritloom.compiler.frontend.registry import Node, operator
from tritloom.compiler.frontend.values import Operand
from tritloom.compiler.frontend.windows import listed, spatial_rank
from tritloom.compiler.ir.program import Window

__all__: list[str] = []


class _Axis:
    """Output element ``stride * j + phase`` is the sum over its taps of ``weight[tap] * input[j + offset]``.

    Output ``q`` gets ``weight[t] * input[i]`` where ``q = stride * i + dilation * t - before``, so the taps of a phase are those for which
    ``phase + before - dilation * t`` is a multiple of the stride.
    """

    def __init__(self, *, size: int, kernel: int, stride: int, dilation: int, before: int, output: int) -> None:
        self.stride, self.output = stride, output
        self.taps = [
            (phase, tap, (phase + before - dilation * tap) // stride)
            for phase in range(stride)
            for tap in range(kernel)
            if (phase + before - dilation * tap) % stride == 0
        ]
        offsets = [offset for _, _, offset in self.taps]
        self.first, last = min(0, *offsets), max(0, *offsets)
        self.kernel = last - self.first + 1
        self.pads = -self.first, max(-(-output // stride) - 1 + last - (size - 1), 0)


def _axes(node: Node, size: tuple[int, ...], kernel: list[int]) -> list[_Axis]:
    rank = len(size)
    strides, dilations = listed(node, "strides", rank, 1), listed(node, "dilations", rank, 1)
    pads, extra = listed(node, "pads", 2 * rank, 0), listed(node, "output_padding", rank, 0, least=0)
    automatic, shape = node.attribute("auto_pad", str, "NOTSET"), node.attribute("output_shape", list)
    if automatic not in ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID", ""):
        raise RefusalError(f"auto_pad {automatic} is not known", "use explicit pads")
    if shape is not None and len(shape) != rank:
        raise RefusalError(f"its output_shape is {shape}", f"give {rank} sizes")
    axes = []
    for axis in range(rank):
        full = strides[axis] * (size[axis] - 1) + extra[axis] + dilations[axis] * (kernel[axis] - 1) + 1
        before, after = (0, 0) if automatic == "VALID" else (pads[axis], pads[axis + rank])
        if shape is not None or automatic in ("SAME_UPPER", "SAME_LOWER"):
            total = max(full - (size[axis] * strides[axis] if shape is None else shape[axis]), 0)
            before = total // 2 if automatic == "SAME_UPPER" else total - total // 2
            after = total - before
        output = full - before - after
        if shape is not None and output != shape[axis]:
            raise RefusalError(f"its output_shape {shape} is larger than the {output} elements that it makes", "use output_padding")
        if output < 1 or output > LARGEST_TENSOR:
            raise RefusalError(f"it makes {output} elements along an axis", "use smaller pads")
        axes.append(
            _Axis(size=size[axis], kernel=kernel[axis], stride=strides[axis], dilation=dilations[axis], before=before, output=output)
        )
    return axes


@operator("ConvTranspose", "1-D and 2-D, constant weights, strides, pads, auto_pad, output_padding, output_shape, dilations, groups")
def _conv_transpose(builder: Builder, node: Node) -> Operand:
    value = node.activation()
    rank = spatial_rank(value.shape)
    weights = node.constant(1, "weight")
    if weights is None or weights.array.ndim != rank + 2 or 0 in weights.array.shape:
        raise RefusalError(
            "its weights do not have one axis more than its input has spatial ones", "use (inputs, outputs / groups, kernel ...) weights"
        )
    inputs, share, *kernel = weights.array.shape
    groups, stated = node.attribute("group", int, 1), node.attribute("kernel_shape", list)
    channels, size = value.shape[1], value.shape[2:]
    if groups < 1 or inputs != channels or inputs % groups or (stated is not None and stated != list(kernel)):
        raise RefusalError(
            f"its weights of shape {list(weights.array.shape)} and {groups} groups do not fit {channels} input channels",
            "export the model again",
        )
    outputs = share * groups
    axes = _axes(node, size, list(kernel))
    phases = int(np.prod([axis.stride for axis in axes]))
    window = int(np.prod([axis.kernel for axis in axes]))
    if outputs * phases * (inputs // groups) * window > LARGEST_TENSOR:
        raise RefusalError("the layer is too large", f"use layers of at most {LARGEST_TENSOR} weights")
    bias = bias_of(node.constant(2, "bias"), outputs)
    grouped = weights.moved(
        lambda array: np.swapaxes(array.reshape(groups, inputs // groups, share, *kernel), 1, 2).reshape(outputs, inputs // groups, *kernel)
    )
    if rank == 1:
        axes.insert(0, _Axis(size=1, kernel=1, stride=1, dilation=1, before=0, output=1))
    down, across = axes
    pads = (down.pads[0], across.pads[0], down.pads[1], across.pads[1])
    value, vertical = prepared(builder, value, groups, padded=any(pads))
    lowered = integer_weights(builder, grouped, node.label)
    plain = lowered.codes.reshape(groups, share, inputs // groups, *([1] if rank == 1 else []), *kernel)
    # Channels in the order (group, phase down, phase across, output): what is interleaved later lies side by side.
    matrix = np.zeros((groups, down.stride, across.stride, share, inputs // groups, down.kernel, across.kernel), plain.dtype)
    for phase_y, tap_y, offset_y in down.taps:
        for phase_x, tap_x, offset_x in across.taps:
            matrix[:, phase_y, phase_x, :, :, offset_y - down.first, offset_x - across.first] += plain[..., tap_y, tap_x]
    order = np.broadcast_to(np.arange(outputs).reshape(groups, 1, 1, share), matrix.shape[:4]).ravel()
    scale = lowered.scale if len(lowered.scale) == 1 else tuple(lowered.scale[int(output)] for output in order)
    if bias is not None and len(bias) > 1:
        bias = tuple(bias[int(output)] for output in order)
    matrix = matrix.reshape(len(order), *matrix.shape[4:])
    kernel_shape, frame = (down.kernel, across.kernel), pads
    if vertical:
        matrix, kernel_shape, frame = matrix.swapaxes(2, 3), (across.kernel, 1), (pads[1], 0, pads[3], 0)

    def arrange(array: np.ndarray) -> np.ndarray:
        array = array.swapaxes(1, 2) if vertical else array
        blocks = array.reshape(groups, down.stride, across.stride, share, *array.shape[1:]).transpose(0, 3, 4, 1, 5, 2)
        pixels = blocks.reshape(outputs, array.shape[1] * down.stride, array.shape[2] * across.stride)[:, : down.output, : across.output]
        return pixels.reshape(1, outputs, *(pixels.shape[2:] if rank == 1 else pixels.shape[1:]))

    return accumulators_value(
        builder, value, replace(lowered, scale=scale), matrix, Window(kernel=kernel_shape, pads=frame), groups, bias,
        name=node.outputs[0], label=node.label, arrange=arrange, whole=False,
    )  # fmt: skip
