"""Kernel geometry of Conv and the pools: strides, dilations, explicit and automatic padding, ceil mode, in 1-D and 2-D."""

from tritloom.compiler.frontend.problems import RefusalError
from tritloom.compiler.frontend.reader import LARGEST_TENSOR
from tritloom.compiler.frontend.registry import Node
from tritloom.compiler.ir.program import Window

__all__ = ["listed", "spatial_rank", "window_of"]


def spatial_rank(shape: tuple[int, ...]) -> int:
    """1 or 2 for (1, C, L) and (1, C, H, W)."""
    if len(shape) not in (3, 4) or shape[0] != 1:
        raise RefusalError(
            f"windows over an input of shape {list(shape)} are not supported", "use 1-D or 2-D windows: (N, C, L) or (N, C, H, W)"
        )
    return len(shape) - 2


def listed(node: Node, name: str, rank: int, default: int, *, least: int = 1) -> list[int]:
    """An attribute of ``rank`` integers, ``least`` or more (pads 0 or more). Raises :class:`RefusalError`."""
    values = node.attribute(name, list)
    if values is None:
        return [default] * rank
    if len(values) != rank or min(values) < (0 if name == "pads" else least) or max(values) > LARGEST_TENSOR:
        raise RefusalError(f"its attribute {name} is {values}", f"give {rank} values of {0 if name == 'pads' else least} or more")
    return values


def window_of(node: Node, size: tuple[int, ...], kernel: list[int], *, pool: bool, vertical: bool = False) -> tuple[Window, Window]:
    """The window over an input of ``size`` (L,) or (H, W), and the same without what ceil mode adds to the pads.

    1-D windows run along the width, or along the height when ``vertical``. In ceil mode windows that would start in the padding on the
    right or at the bottom are dropped, as ONNX says. A ``pool`` must see an element of the input in every window.
    """
    rank = len(size)
    strides, dilations = listed(node, "strides", rank, 1), listed(node, "dilations", rank, 1)
    pads = listed(node, "pads", 2 * rank, 0)
    automatic = node.attribute("auto_pad", str, "NOTSET")
    if automatic not in ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID", ""):
        raise RefusalError(f"auto_pad {automatic} is not known", "use explicit pads")
    ceil = bool(node.attribute("ceil_mode", int, 0))
    axes = []
    for axis in range(rank):
        stride, extent = strides[axis], dilations[axis] * (kernel[axis] - 1) + 1
        before, after = pads[axis], pads[axis + rank]
        if automatic in ("SAME_UPPER", "SAME_LOWER"):
            total = max((-(-size[axis] // stride) - 1) * stride + extent - size[axis], 0)
            before = total // 2 if automatic == "SAME_UPPER" else total - total // 2
            after = total - before
        elif automatic == "VALID":
            before = after = 0
        room = size[axis] + before + after - extent
        if room < 0:
            raise RefusalError(
                f"its window of {extent} is larger than the padded input of {size[axis] + before + after}", "use a smaller kernel"
            )
        if pool and max(before, after) >= extent:
            raise RefusalError(f"its pads {before} and {after} are as large as its window of {extent}", "use pads smaller than the kernel")
        padded = after
        if ceil and automatic in ("NOTSET", ""):
            count = -(-room // stride) + 1
            if (count - 1) * stride >= size[axis] + before:
                count -= 1
            after = max(after, (count - 1) * stride + extent - size[axis] - before)
        axes.append((kernel[axis], stride, dilations[axis], before, after, padded))
    if rank == 1:
        axes.insert(1 if vertical else 0, (1, 1, 1, 0, 0, 0))
    (kh, sh, dh, top, bottom, bottom_plain), (kw, sw, dw, left, right, right_plain) = axes
    common = {"kernel": (kh, kw), "strides": (sh, sw), "dilations": (dh, dw)}
    return Window(**common, pads=(top, left, bottom, right)), Window(**common, pads=(top, left, bottom_plain, right_plain))
