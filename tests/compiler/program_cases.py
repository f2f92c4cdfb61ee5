"""Random integer programs and a plain-loop reference of what they mean, for the tests of the scheduler and the artefact."""

from fractions import Fraction

import numpy as np

from tritloom.compiler.ir.program import (
    Add,
    Convolution,
    Copy,
    HostOp,
    InputSpec,
    MaxPool,
    OutputSpec,
    Program,
    Proof,
    Rescale,
    StepFunction,
    SumPool,
    Tensor,
    Window,
)
from tritloom.hw.arch.record import Record, evaluate, shift_round
from tritloom.hw.arch.trits import digit_planes

PROOF = Proof(exact=True, reachable=1)


class ProgramBuilder:
    """Adds operations one by one; the numbers that a call does not fix come from ``seed``."""

    def __init__(self, seed=0):
        self.rng = np.random.default_rng(seed)
        self.tensors, self.operations, self.inputs, self.outputs = {}, [], [], []

    def tensor(self, shape, bits=8, low=-128, high=127):
        name = f"t{len(self.tensors)}"
        self.tensors[name] = Tensor(name=name, shape=tuple(map(int, shape)), bits=bits, low=low, high=high, scale=(Fraction(1, 8),))
        return name

    def input(self, shape):
        name = self.tensor(shape)
        quantise = HostOp(kind="Quantize", constants={"scale": np.array(0.125)}, attributes={"high": 127, "low": -128})
        self.inputs.append(InputSpec(name=f"in_{name}", shape=("N", *shape), dtype="float32", tensor=name, prologue=(quantise,)))
        return name

    def output(self, name):
        shape = self.tensors[name].shape
        self.outputs.append(
            OutputSpec(
                name=f"out_{name}",
                shape=("N", *shape),
                dtype="float32",
                tensor=name,
                epilogue=(HostOp(kind="Dequantize", constants={"scale": np.array(1.0)}),),
            )
        )

    def step(self, channels, pieces=None, spread=300, shared=None):
        rng = self.rng
        pieces = int(rng.integers(1, 4)) if pieces is None else pieces
        shared = bool(rng.integers(0, 2)) if shared is None else shared
        table = []
        for _ in range(1 if shared else channels):
            starts = sorted(int(v) for v in rng.integers(-spread, spread, pieces))
            shift = int(rng.integers(0, 24))
            largest = max(1, min((1 << 24) - 1, (1 << shift) * 400 // spread))
            table.append(tuple(
                Record(start, int(rng.integers(-largest, largest + 1)), int(rng.integers(-(100 << shift), (100 << shift) + 1)), shift, bool(rng.integers(0, 2)))
                for start in starts
            ))  # fmt: skip
        low = int(rng.integers(-128, 100))
        return StepFunction(records=tuple(table) * (channels if shared else 1), low=low, high=int(rng.integers(low, 128)), proof=PROOF)

    def convolution(
        self, source, outputs, kernel=(1, 1), strides=(1, 1), dilations=(1, 1), pads=(0, 0, 0, 0), groups=1, planes=1, raw=False, step=None
    ):
        channels, height, width = self.tensors[source].shape
        largest = (3**planes - 1) // 2
        weights = self.rng.integers(-largest, largest + 1, (outputs, channels // groups, *kernel)).astype(np.int16)
        window = Window(kernel=kernel, strides=strides, dilations=dilations, pads=pads)
        bound = int(np.abs(weights).sum(axis=(1, 2, 3)).max()) * 128
        step = None if raw else step or self.step(outputs, spread=max(2, bound // 2))
        shape = (outputs, *window.output_size(height, width))
        result = self.tensor(shape, 32, -bound, bound) if raw else self.tensor(shape, 8, step.low, step.high)
        self.operations.append(Convolution(
            name=f"conv_{result}", output=result, input=source, weights=weights, planes=planes, window=window, groups=groups,
            pad_code=int(self.rng.integers(-128, 128)), step=step, acc_low=-bound, acc_high=bound,
        ))  # fmt: skip
        return result

    def max_pool(self, source, kernel, strides=(1, 1), dilations=(1, 1), pads=(0, 0, 0, 0)):
        channels, height, width = self.tensors[source].shape
        window = Window(kernel=kernel, strides=strides, dilations=dilations, pads=pads)
        result = self.tensor((channels, *window.output_size(height, width)))
        self.operations.append(MaxPool(name=f"max_{result}", output=result, input=source, window=window))
        return result

    def sum_pool(self, source, kernel, strides=(1, 1), pads=(0, 0, 0, 0), split=True):
        channels, height, width = self.tensors[source].shape
        window = Window(kernel=kernel, strides=strides, pads=pads)
        out_height, out_width = window.output_size(height, width)
        result = self.tensor((channels, out_height, out_width))
        y, x = (int(self.rng.integers(0, size)) if split else 0 for size in (out_height, out_width))
        edges = [(y0, y1, x0, x1) for y0, y1 in ((0, y), (y, out_height)) for x0, x1 in ((0, x), (x, out_width)) if y0 < y1 and x0 < x1]
        bound = 128 * kernel[0] * kernel[1]
        regions = tuple((edge, self.step(channels, spread=bound)) for edge in edges)
        self.operations.append(SumPool(
            name=f"sum_{result}", output=result, input=source, window=window, pad_code=int(self.rng.integers(-128, 128)), regions=regions,
            acc_low=-bound, acc_high=bound,
        ))  # fmt: skip
        return result

    def add(self, left, right):
        shape = self.tensors[left].shape
        result = self.tensor(shape)
        self.operations.append(Add(name=f"add_{result}", output=result, left=left, right=right, step=self.step(shape[0], pieces=2)))
        return result

    def concat(self, *sources):
        shapes = [self.tensors[source].shape for source in sources]
        result, offset = self.tensor((sum(shape[0] for shape in shapes), *shapes[0][1:])), 0
        for source, shape in zip(sources, shapes, strict=True):
            step = self.step(shape[0])
            self.operations.append(Rescale(name=f"part_{result}_{offset}", output=result, input=source, step=step, channel_offset=offset))
            offset += shape[0]
        return result

    def copy(self, source, index, shape):
        result = self.tensor(shape)
        self.operations.append(Copy(name=f"copy_{result}", output=result, input=source, index=np.asarray(index)))
        return result

    def program(self, name="case"):
        return Program(
            name=name, tensors=dict(self.tensors), operations=tuple(self.operations), inputs=tuple(self.inputs), outputs=tuple(self.outputs)
        )


def random_program(seed, operations=6):
    """A program over small tensors of odd sizes with every kind of operation."""
    builder = ProgramBuilder(seed)
    rng = builder.rng

    def size(low, high):
        return int(rng.integers(low, high + 1))

    names = [builder.input((size(1, 19), size(1, 7), size(1, 7)))]
    if rng.integers(0, 2):
        names.append(builder.input(builder.tensors[names[0]].shape))
    for _ in range(operations):
        source = names[int(rng.integers(max(0, len(names) - 3), len(names)))]
        channels, height, width = builder.tensors[source].shape
        kernel = (size(1, min(3, height)), size(1, min(3, width)))
        geometry = {
            "kernel": kernel, "strides": (size(1, 3), size(1, 3)), "pads": tuple(size(0, k - 1) for k in (*kernel, *kernel)),
        }  # fmt: skip
        match int(rng.integers(0, 8)):
            case 0 | 1:
                groups = int(rng.choice([g for g in range(1, channels + 1) if channels % g == 0]))
                dilations = tuple(size(1, 2) if (k - 1) * 2 < n else 1 for k, n in zip(kernel, (height, width), strict=True))
                outputs = groups * size(1, max(1, 20 // groups))
                names.append(builder.convolution(source, outputs, **geometry, dilations=dilations, groups=groups, planes=size(1, 3)))
            case 2:
                names.append(builder.convolution(source, size(1, 20), kernel=(height, width), planes=size(1, 2)))
            case 3:
                names.append(builder.max_pool(source, **geometry))
            case 4:
                names.append(builder.sum_pool(source, **geometry))
            case 5:
                twins = [name for name in names if builder.tensors[name].shape == (channels, height, width)]
                names.append(builder.add(source, str(rng.choice(twins))))
            case 6:
                twins = [name for name in names if builder.tensors[name].shape[1:] == (height, width)]
                names.append(builder.concat(source, str(rng.choice(twins))))
            case 7:
                order = rng.permutation(3)
                index = np.arange(channels * height * width).reshape(channels, height, width).transpose(order)
                names.append(builder.copy(source, index.ravel(), index.shape))
    last = names[-1]
    builder.output(last)
    if rng.integers(0, 2):
        builder.output(builder.convolution(last, size(1, 9), raw=True))
    return builder.program()


def random_codes(program, rng):
    """Codes (C, H, W) for each input tensor."""
    return {spec.tensor: rng.integers(-128, 128, program.tensors[spec.tensor].shape) for spec in program.inputs}


def reference(program, codes):
    """Every tensor of one inference, by plain loops."""
    values = {name: np.asarray(value) for name, value in codes.items()}
    for operation in program.operations:
        channels, height, width = program.tensors[operation.output].shape
        result = values.setdefault(operation.output, np.zeros((channels, height, width), np.int64))
        if isinstance(operation, Copy):
            values[operation.output] = values[operation.input].ravel()[operation.index.ravel()].reshape(channels, height, width)
        elif isinstance(operation, Rescale):
            source = values[operation.input]
            for index in np.ndindex(source.shape):
                code = evaluate(list(operation.step.records[index[0]]), int(source[index]), operation.step.low, operation.step.high)
                result[(operation.channel_offset + index[0], *index[1:])] = code
        elif isinstance(operation, Add):
            left, right = values[operation.left], values[operation.right]
            for index in np.ndindex(left.shape):
                first, second = operation.step.records[index[0]]
                value = shift_round(
                    first.multiplier * int(left[index]) + first.bias + second.multiplier * int(right[index]), first.shift, first.half_even
                )
                result[index] = min(max(value, operation.step.low), operation.step.high)
        else:
            windowed(operation, values[operation.input], result)
    return values


def windowed(operation, source, result):
    """Convolution, MaxPool or SumPool from ``source`` into ``result``, both (C, H, W)."""
    (ky, kx), (sy, sx), (dy, dx) = operation.window.kernel, operation.window.strides, operation.window.dilations
    top, left, bottom, right = operation.window.pads
    fill = -128 if isinstance(operation, MaxPool) else operation.pad_code
    padded = np.pad(source, ((0, 0), (top, bottom), (left, right)), constant_values=fill)
    for _, y, x in np.ndindex(1, *result.shape[1:]):
        patch = padded[:, y * sy : y * sy + dy * (ky - 1) + 1 : dy, x * sx : x * sx + dx * (kx - 1) + 1 : dx].astype(np.int64)
        if isinstance(operation, MaxPool):
            result[:, y, x] = patch.max(axis=(1, 2))
            continue
        if isinstance(operation, SumPool):
            acc = patch.sum(axis=(1, 2))
            step = next(step for (y0, y1, x0, x1), step in operation.regions if y0 <= y < y1 and x0 <= x < x1)
        else:
            inputs = operation.weights.shape[1]
            per_group = len(operation.weights) // operation.groups
            acc = [
                int((weights.astype(np.int64) * patch[output // per_group * inputs :][:inputs]).sum())
                for output, weights in enumerate(operation.weights)
            ]
            assert not operation.weights.size or digit_planes(operation.weights, operation.planes) is not None
            step = operation.step
        for channel, value in enumerate(acc):
            result[channel, y, x] = value if step is None else evaluate(list(step.records[channel]), int(value), step.low, step.high)
