"""The decoders of the exporter as others write them: nodes of its graph replaced by other ones that compute the same."""

import math
from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Graph:
    """A model whose nodes are taken out and put in by the names of what they compute."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.nodes = list(self.model.graph.node)

    def of(self, *kinds: str) -> list[onnx.NodeProto]:
        return [node for node in self.nodes if node.op_type in kinds]

    def maker(self, name: str) -> onnx.NodeProto:
        return next(node for node in self.nodes if name in node.output)

    def take(self, *prefixes: str) -> None:
        self.nodes = [node for node in self.nodes if not any(name.startswith(prefixes) for name in node.output)]

    def array(self, name: str) -> np.ndarray:
        return numpy_helper.to_array(next(tensor for tensor in self.model.graph.initializer if tensor.name == name))

    def constant(self, name: str, value: object, kind: type = np.float32) -> str:
        if name not in {tensor.name for tensor in self.model.graph.initializer}:
            self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, kind), name))
        return name

    def add(self, kind: str, inputs: list[str], output: str | list[str], *, domain: str = "", **attributes: object) -> str:
        outputs = [output] if isinstance(output, str) else output
        self.nodes.append(helper.make_node(kind, inputs, outputs, name=f"made.{outputs[0]}", domain=domain, **attributes))
        return outputs[0]

    def bytes(self, opset: int = 23) -> bytes:
        """The file, every node behind those that it reads."""
        known = {""} | {value.name for value in (*self.model.graph.input, *self.model.graph.initializer)}
        waiting, ordered = list(self.nodes), []
        while waiting:
            ready = [node for node in waiting if set(node.input) <= known]
            assert ready, f"nothing computes the operands of {waiting[0].name}"
            ordered += ready
            known |= {name for node in ready for name in node.output}
            waiting = [node for node in waiting if node not in ready]
        used = {name for node in ordered for name in node.input}
        kept = [tensor for tensor in self.model.graph.initializer if tensor.name in used]
        del self.model.graph.node[:], self.model.graph.initializer[:], self.model.opset_import[:]
        self.model.graph.initializer.extend(kept)
        self.model.graph.node.extend(ordered)
        self.model.opset_import.extend([helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)])
        return self.model.SerializeToString()


Form = Callable[[Graph], None]


# ---- norms ----


def _replaced(kind: str, write: Callable[[Graph, onnx.NodeProto, float], None]) -> Form:
    def form(graph: Graph) -> None:
        for node in graph.of(kind):
            graph.nodes.remove(node)
            write(graph, node, next(entry.f for entry in node.attribute if entry.name == "epsilon"))

    return form


def _mean_square(graph: Graph, node: onnx.NodeProto, source: str, power: bool, epsilon: float) -> str:
    name = node.output[0]
    square = graph.add(*(("Pow", [source, graph.constant("two", 2)]) if power else ("Mul", [source, source])), f"{name}.square")
    mean = graph.add("ReduceMean", [square, graph.constant("last", [-1], np.int64)], f"{name}.mean_square")
    return graph.add("Sqrt", [graph.add("Add", [mean, graph.constant("epsilon", epsilon)], f"{name}.guarded")], f"{name}.root")


def _root_mean_square(divide: str, power: bool) -> Form:
    def write(graph: Graph, node: onnx.NodeProto, epsilon: float) -> None:
        (source, gain), name = node.input, node.output[0]
        root = _mean_square(graph, node, source, power, epsilon)
        if divide == "Div":
            normed = graph.add("Div", [source, root], f"{name}.normed")
            gain = graph.constant(f"{name}.doubled", 2 * graph.array(gain))
            normed = graph.add("Mul", [graph.constant("half", 0.5), normed], f"{name}.halved")
        elif divide == "Reciprocal":
            normed = graph.add("Mul", [source, graph.add("Reciprocal", [root], f"{name}.inverse")], f"{name}.normed")
        else:
            gain = graph.constant(f"{name}.half", graph.array(gain) / 2)
            normed = graph.add("Mul", [graph.add("Div", [graph.constant("two", 2), root], f"{name}.inverse"), source], f"{name}.normed")
        cast = graph.add("Cast", [normed], f"{name}.cast", to=TensorProto.FLOAT)
        graph.add("Mul", [gain, cast] if power else [cast, gain], name)

    return _replaced("RMSNormalization", write)


def _layer_norm(graph: Graph, node: onnx.NodeProto, epsilon: float) -> None:
    (source, gain, bias), name = node.input, node.output[0]
    mean = graph.add("ReduceMean", [source, graph.constant("last", [-1], np.int64)], f"{name}.mean")
    centred = graph.add("Sub", [source, mean], f"{name}.centred")
    root = _mean_square(graph, node, centred, True, epsilon)
    scaled = graph.add("Mul", [graph.add("Div", [centred, root], f"{name}.normed"), gain], f"{name}.grown")
    graph.add("Add", [scaled, bias], name)


def _simplified(graph: Graph, node: onnx.NodeProto, epsilon: float) -> None:
    graph.add("SimplifiedLayerNormalization", list(node.input), node.output[0], axis=-1, epsilon=epsilon, stash_type=1)


def _skip(graph: Graph, node: onnx.NodeProto, epsilon: float) -> None:
    """The norm together with the sum before it, where there is one."""
    source, *constants = node.input
    before = next((other for other in graph.nodes if source in other.output and other.op_type == "Add"), None)
    if before is None:
        graph.nodes.append(node)
        return
    graph.nodes.remove(before)
    kind = "SkipSimplifiedLayerNormalization" if len(constants) == 1 else "SkipLayerNormalization"
    graph.add(kind, [*before.input, *constants], [node.output[0], "", "", source], domain="com.microsoft", epsilon=epsilon)


NORMS: dict[str, Form] = {
    "Pow, Div": _root_mean_square("Div", True),
    "Mul, Reciprocal": _root_mean_square("Reciprocal", False),
    "Pow, 1 / root": _root_mean_square("inverse", True),
    "SimplifiedLayerNormalization": _replaced("RMSNormalization", _simplified),
    "SkipSimplifiedLayerNormalization": _replaced("RMSNormalization", _skip),
}

LAYER_NORMS: dict[str, Form] = {
    "written out": _replaced("LayerNormalization", _layer_norm),
    "SkipLayerNormalization": _replaced("LayerNormalization", _skip),
}


# ---- rotary positions ----


def _angles(graph: Graph, computed: bool) -> tuple[str, str]:
    """Cosines and sines (1, 1, S, channels): of a table, or of positions times frequencies."""
    if computed:
        frequencies = np.arccos(np.clip(graph.array("cosine").astype(np.float64)[1], -1, 1))
        rows = graph.add("Cast", ["position_ids"], "rope.rows", to=TensorProto.FLOAT)
        rows = graph.add("Unsqueeze", [rows, graph.constant("rope.axis", [1], np.int64)], "rope.column")
        angle = graph.add("MatMul", [graph.constant("rope.frequencies", frequencies[None, :, None]), rows], "rope.turned")
        angle = graph.add("Transpose", [angle], "rope.angle", perm=[0, 2, 1])
        angle = graph.add("Concat", [angle, angle], "rope.angles", axis=-1)
        found = [graph.add(kind, [angle], f"rope.{kind}") for kind in ("Cos", "Sin")]
    else:
        halves = [graph.add("Gather", [name, "position_ids"], f"rope.{name}") for name in ("cosine", "sine")]
        found = [graph.add("Concat", [half, half], f"{half}.both", axis=-1) for half in halves]
    axis = graph.constant("rope.heads", [1], np.int64)
    cosine, sine = (graph.add("Unsqueeze", [part, axis], f"{part}.shared") for part in found)
    return cosine, sine


def _halves(*, split: bool, computed: bool) -> Form:
    def form(graph: Graph) -> None:
        cosine, sine = _angles(graph, computed)
        half = graph.array("cosine").shape[1]
        for node in graph.of("RotaryEmbedding"):
            graph.nodes.remove(node)
            source, name = node.input[0], node.output[0]
            parts = [f"{name}.first", f"{name}.second"]
            if split:
                graph.add("Split", [source], parts, axis=-1, num_outputs=2)
            else:
                numbers = [graph.constant(f"number.{value}", [value], np.int64) for value in (0, half, 2**62, -1)]
                graph.add("Slice", [source, numbers[0], numbers[1], numbers[3]], parts[0])
                graph.add("Slice", [source, numbers[1], numbers[2], numbers[3]], parts[1])
            other = graph.add("Concat", [graph.add("Neg", [parts[1]], f"{name}.negated"), parts[0]], f"{name}.other", axis=-1)
            along = graph.add("Mul", [source, cosine], f"{name}.along")
            graph.add("Add", [along, graph.add("Mul", [other, sine], f"{name}.across")], name)

    return form


def _flat_rotary(graph: Graph) -> None:
    """ONNX Runtime's operator."""
    for node in graph.of("RotaryEmbedding"):
        graph.nodes.remove(node)
        source, cosine, sine, place = node.input
        graph.add("RotaryEmbedding", [source, place, cosine, sine], node.output[0], domain="com.microsoft")


ROTATIONS: dict[str, Form] = {
    "Slice": _halves(split=False, computed=False),
    "Split, computed angles": _halves(split=True, computed=True),
    "com.microsoft": _flat_rotary,
}


# ---- gates ----


def _gate(kind: str, domain: str = "", **attributes: object) -> Form:
    def form(graph: Graph) -> None:
        for node in graph.of("Sigmoid"):
            swish = f"{node.output[0].removesuffix('.sigmoid')}.swish"
            graph.take(swish, node.output[0])
            graph.add(kind, [node.input[0]], swish, domain=domain, **attributes)

    return form


def _written_gelu(graph: Graph) -> None:
    for node in graph.of("Sigmoid"):
        source, swish = node.input[0], f"{node.output[0].removesuffix('.sigmoid')}.swish"
        graph.take(swish, node.output[0])
        curve = graph.add("Erf", [graph.add("Div", [source, graph.constant("root.2", math.sqrt(2))], f"{swish}.x")], f"{swish}.erf")
        whole = graph.add("Mul", [source, graph.add("Add", [curve, graph.constant("one", 1)], f"{swish}.above")], f"{swish}.whole")
        graph.add("Mul", [whole, graph.constant("half", 0.5)], swish)


def _gelu_by_tanh(graph: Graph) -> None:
    for node in graph.of("Sigmoid"):
        source, swish = node.input[0], f"{node.output[0].removesuffix('.sigmoid')}.swish"
        graph.take(swish, node.output[0])
        cube = graph.add(
            "Mul",
            [graph.add("Pow", [source, graph.constant("three", 3)], f"{swish}.cube"), graph.constant("cubic", 0.044715)],
            f"{swish}.c",
        )
        inside = graph.add(
            "Mul", [graph.add("Add", [source, cube], f"{swish}.sum"), graph.constant("root.pi", math.sqrt(2 / math.pi))], f"{swish}.x"
        )
        above = graph.add("Add", [graph.add("Tanh", [inside], f"{swish}.tanh"), graph.constant("one", 1)], f"{swish}.above")
        graph.add("Mul", [graph.add("Mul", [graph.constant("half", 0.5), source], f"{swish}.half"), above], swish)


GATES: dict[str, Form] = {
    "Swish": _gate("Swish"),
    "steep Swish": _gate("Swish", alpha=1.5),
    "Gelu": _gate("Gelu"),
    "Gelu by Tanh": _gelu_by_tanh,
    "Gelu by tanh": _gate("Gelu", approximate="tanh"),
    "Gelu by Erf": _written_gelu,
    "com.microsoft Gelu": _gate("Gelu", "com.microsoft"),
    "FastGelu": _gate("FastGelu", "com.microsoft"),
    "QuickGelu": _gate("QuickGelu", "com.microsoft"),
}


# ---- quantisers ----


def _tokens(*, divided: bool) -> Form:
    """As in PyTorch: the inverse of the largest magnitude times 127, or values divided by the step of their grid."""

    def form(graph: Graph) -> None:
        for node in graph.of("Clip"):
            source = node.output[0].removesuffix(".codes")
            bounded, scale = graph.maker(f"{source}.bounded"), graph.maker(f"{source}.scale")
            graph.take(f"{source}.bounded", f"{source}.scale", f"{source}.step", f"{source}.quantised")
            graph.add("Clip", list(bounded.input), bounded.output[0])
            limit = graph.constant("limit", 127)
            if divided:
                step = graph.add("Div", [bounded.output[0], limit], f"{source}.step")
                graph.add("Div", [source, step], f"{source}.scaled")
                graph.add("Mul", [step, node.output[0]], f"{source}.quantised")
            else:
                inverse = graph.add("Reciprocal", [bounded.output[0]], f"{source}.inverse")
                graph.add("Mul", [inverse, limit], scale.output[0])
                graph.add("Mul", [source, scale.output[0]], f"{source}.scaled")
                graph.add("Div", [node.output[0], scale.output[0]], f"{source}.quantised")

    return form


QUANTISERS: dict[str, Form] = {"Reciprocal": _tokens(divided=False), "steps": _tokens(divided=True)}


# ---- dense layers and inputs ----


def _joined_weights(graph: Graph, parts: list[str], whole: str) -> list[int]:
    """One dense layer in place of several that read the same; returns the outputs of each. Their scales are equal."""
    codes = [graph.array(f"{part}.weight_codes") for part in parts]
    first = graph.maker(parts[0])
    for part in parts:
        graph.nodes.remove(graph.maker(part))
    name = graph.constant(f"{whole}.weight_codes", np.concatenate(codes, axis=1), np.int8)
    weights = graph.add("DequantizeLinear", [name, f"{parts[0]}.weight_scale"], f"{whole}.weight")
    graph.add("MatMul", [first.input[0], weights], whole)
    return [code.shape[1] for code in codes]


def fused(graph: Graph) -> None:
    """One layer for queries, keys and values, and one for both halves of the gated perceptron."""
    for index in range(2):
        name = f"block{index}.attention"
        parts = [f"{name}.{part}" for part in ("query", "key", "value")]
        sizes = _joined_weights(graph, parts, f"{name}.all")
        graph.add("Split", [f"{name}.all", graph.constant("fused.sizes", sizes, np.int64)], parts, axis=2)
        name = f"block{index}.perceptron"
        half, _ = _joined_weights(graph, [f"{name}.gate", f"{name}.up"], f"{name}.both")
        numbers = [graph.constant(f"fused.{value}", [value], np.int64) for value in (0, half, 2**40, 2)]
        graph.add("Slice", [f"{name}.both", numbers[0], numbers[1], numbers[3]], f"{name}.gate")
        graph.add("Slice", [f"{name}.both", numbers[1], numbers[2], numbers[3]], f"{name}.up")


def more_inputs(graph: Graph) -> None:
    """Positions and a mask of ones are inputs, and tokens are int32."""
    tokens = graph.model.graph.input[0]
    for name, shape in (("attention_mask", ["batch", "P + S"]), ("position_ids", ["batch", "S"])):
        graph.model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.INT64, shape))
    tokens.type.tensor_type.elem_type = TensorProto.INT32
    for node in graph.nodes:
        if node.op_type == "Gather":
            node.input[1] = graph.add("Cast", [node.input[1]], "tokens.wide", to=TensorProto.INT64)
            break
    graph.take("position_ids")
    shape = next(node for node in graph.nodes if node.op_type == "Shape" and "input_ids" in node.input)
    shape.input[0] = "position_ids"
    hidden = graph.add(
        "Sub", [graph.constant("one", 1), graph.add("Cast", ["attention_mask"], "mask.float", to=TensorProto.FLOAT)], "mask.hidden"
    )
    hidden = graph.add("Mul", [hidden, graph.constant("lowest", -1e9)], "mask.padding")
    for node in graph.nodes:
        node.input[:] = ["mask.whole" if name == "mask" else name for name in node.input]
    graph.add("Add", ["mask", hidden], "mask.whole")


# ---- attention ----

PARTS = (
    "queries", "new_keys", "new_values", "turned_", "grouped_", "shared_", "columns", "products", "scores", "masked", "weights", "mixed",
    "heads", "tokens",
)  # fmt: skip


def _without_attention(graph: Graph, name: str, index: int) -> str:
    """Takes out what lies between the projections and the layer behind them; returns the name that it reads."""
    graph.take(*(f"{name}.{part}" for part in PARTS), f"present.{index}.")
    joined = f"{name}.joined"
    graph.nodes = [node for node in graph.nodes if joined not in node.output]
    return joined


def _sizes(graph: Graph) -> tuple[int, int, int]:
    shape = next(value for value in graph.model.graph.input if value.name == "past_key_values.0.key").type.tensor_type.shape.dim
    width = graph.array("norm.gain").size
    return width // shape[3].dim_value, shape[1].dim_value, shape[3].dim_value


def grouped_query(*, rotary: bool, packed: bool = False) -> Form:
    def form(graph: Graph) -> None:
        heads, shared, _ = _sizes(graph)
        length = graph.add(
            "Sub", [graph.add("Cast", ["total"], "gqa.total", to=TensorProto.INT32), graph.constant("gqa.one", 1, np.int32)], "gqa.last"
        )
        length = graph.add("Unsqueeze", [length, graph.constant("gqa.axis", [0], np.int64)], "gqa.lengths")
        for index in range(2):
            name = f"block{index}.attention"
            joined = _without_attention(graph, name, index)
            parts = [f"{name}.{part}" for part in ("query", "key", "value")]
            if not rotary:
                for part, count in zip(parts[:2], (heads, shared), strict=True):
                    graph.add(
                        "RotaryEmbedding",
                        [part, "position_ids", "cosine", "sine"],
                        f"{part}.turned",
                        domain="com.microsoft",
                        num_heads=count,
                    )
                parts[:2] = [f"{part}.turned" for part in parts[:2]]
            if packed:
                _joined_weights(graph, parts, f"{name}.packed")
                parts = [f"{name}.packed", "", ""]
            past = [f"past_key_values.{index}.{part}" for part in ("key", "value")]
            tables = ["cosine", "sine"] if rotary else []
            graph.add(
                "GroupQueryAttention", [*parts, *past, length, "gqa.total", *tables], [joined, *(f"present.{index}.{part}" for part in ("key", "value"))],
                domain="com.microsoft", num_heads=heads, kv_num_heads=shared, do_rotary=int(rotary),
            )  # fmt: skip

    return form


def attention(*, flat: bool, inside: bool, mask: bool) -> Form:
    """ONNX's operator, with operands (1, S, width) or of heads, the earlier keys and values in it or joined before it."""

    def form(graph: Graph) -> None:
        heads, shared, size = _sizes(graph)
        for index in range(2):
            name = f"block{index}.attention"
            joined = _without_attention(graph, name, index)
            parts = {part: f"{name}.{part}" for part in ("query", "key", "value")}
            if not flat:
                for part, count in (("query", heads), ("key", shared), ("value", shared)):
                    split = graph.add(
                        "Reshape", [parts[part], graph.constant(f"split.{count}", [0, -1, count, size], np.int64)], f"{parts[part]}.split"
                    )
                    parts[part] = graph.add("Transpose", [split], f"{parts[part]}.heads", perm=[0, 2, 1, 3])
            for part, count in (("query", heads), ("key", shared)):
                more = {"num_heads": count} if flat else {}
                parts[part] = graph.add("RotaryEmbedding", [parts[part], "cosine", "sine", "position_ids"], f"{parts[part]}.turned", **more)
            past = [f"past_key_values.{index}.{part}" for part in ("key", "value")]
            present = [f"present.{index}.{part}" for part in ("key", "value")]
            operands = [parts["query"], parts["key"], parts["value"], "mask" if mask else "", *past]
            if not inside:
                operands = [parts["query"], *present, "mask"]
                for part, before, after in zip(("key", "value"), past, present, strict=True):
                    graph.add("Concat", [before, parts[part]], after, axis=2)
            more = {"q_num_heads": heads, "kv_num_heads": shared} if flat else {}
            outputs = [joined if flat else f"{name}.by_head", *(present if inside else [])]
            graph.add("Attention", operands, outputs, is_causal=int(not mask and inside), **more)
            if not flat:
                ordered = graph.add("Transpose", [f"{name}.by_head"], f"{name}.by_token", perm=[0, 2, 1, 3])
                graph.add("Reshape", [ordered, graph.constant("joined.shape", [0, 0, -1], np.int64)], joined)

    return form


def repeated(graph: Graph) -> None:
    """Keys and values repeated for the queries that share them, queries and keys scaled by the root of the scale, a causal mask of the inputs of other exporters."""
    heads, shared, size = _sizes(graph)
    root = graph.constant("root.scale", size**-0.25)
    total = graph.add("Reshape", ["total", graph.constant("one.axis", [1], np.int64)], "repeat.total")
    ones = [graph.constant(f"repeat.{value}", [value], np.int64) for value in (1, shared, heads // shared, size, heads)]
    graph.add("Concat", [ones[0], ones[1], ones[2], total, ones[3]], "repeat.wide", axis=0)
    graph.add("Concat", [ones[0], ones[4], total, ones[3]], "repeat.joined", axis=0)
    for index in range(2):
        name = f"block{index}.attention"
        scores, values = graph.maker(f"{name}.scores"), f"{name}.repeated_values"
        graph.take(
            f"{name}.shared_", f"{name}.columns", f"{name}.grouped_", f"{name}.products", f"{name}.scores", f"{name}.mixed", f"{name}.heads"
        )
        for part, target in (("key", f"{name}.repeated_keys"), ("value", values)):
            wide = graph.add("Unsqueeze", [f"present.{index}.{part}", graph.constant("repeat.axis", [2], np.int64)], f"{target}.unsqueezed")
            graph.add("Reshape", [graph.add("Expand", [wide, "repeat.wide"], f"{target}.wide"), "repeat.joined"], target)
        columns = graph.add("Transpose", [f"{name}.repeated_keys"], f"{name}.repeated_columns", perm=[0, 1, 3, 2])
        queries = graph.add("Mul", [f"{name}.turned_queries", root], f"{name}.scaled_queries")
        graph.add("MatMul", [queries, graph.add("Mul", [columns, root], f"{name}.scaled_columns")], scores.output[0])
        graph.add("MatMul", [f"{name}.weights", values], f"{name}.heads")


ATTENTIONS: dict[str, Form] = {
    "GroupQueryAttention": grouped_query(rotary=False),
    "GroupQueryAttention with rotation": grouped_query(rotary=True),
    "GroupQueryAttention of packed operands": grouped_query(rotary=True, packed=True),
    "Attention": attention(flat=True, inside=True, mask=False),
    "Attention of heads, with a mask": attention(flat=False, inside=True, mask=True),
    "Attention behind Concat": attention(flat=False, inside=False, mask=True),
    "repeated keys": repeated,
}
