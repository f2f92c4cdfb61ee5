"""Small ONNX models for the tests of the front end, and their comparison with executors that this project did not write."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tritloom.compiler import golden
from tritloom.compiler.frontend import Lowered, lower
from tritloom.sim.witness import run_witness


class Graph:
    """Nodes and initializers of a model under construction. Scales that are powers of two make float32 arithmetic exact."""

    def __init__(self, seed: int = 0) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(seed)

    def add(self, op: str, *inputs: str, output: str = "", domain: str = "", **attributes: object) -> str:
        name = output or f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=f"node_{name}", domain=domain, **attributes))
        return name

    def constant(self, array: object, dtype: object = np.float32) -> str:
        name = f"constant_{len(self.initializers)}"
        if isinstance(dtype, int):
            flat = np.asarray(array)
            self.initializers.append(helper.make_tensor(name, dtype, flat.shape, flat.ravel()))
        else:
            self.initializers.append(numpy_helper.from_array(np.asarray(array, dtype), name))
        return name

    def qdq(self, x: str, scale: float = 0.25, zero: int = 0, dtype: object = np.int8) -> str:
        """QuantizeLinear and DequantizeLinear."""
        s, z = self.constant(scale), self.constant(zero, dtype)
        return self.add("DequantizeLinear", self.add("QuantizeLinear", x, s, z), s, z)

    def quant(self, x: str, scale: object = 0.25, zero: float = 0.0, bits: int = 4, *, domain: str = "qonnx.custom_op.general",
              op: str = "Quant", signed: int = 1, narrow: int = 0, mode: str = "ROUND") -> str:  # fmt: skip
        parts = (self.constant(scale), self.constant(zero), self.constant(float(bits)))
        return self.add(op, x, *parts, domain=domain, signed=signed, narrow=narrow, rounding_mode=mode)

    def weights(self, *shape: int, low: int = -3, high: int = 3, scale: float = 0.125, dtype: object = np.int8) -> str:
        """Integer weights behind DequantizeLinear."""
        codes = self.constant(self.rng.integers(low, high + 1, shape), dtype)
        return self.add("DequantizeLinear", codes, self.constant(scale))

    def model(self, inputs: dict[str, tuple], outputs: dict[str, tuple | None], *, opset: int = 21, kind: int = TensorProto.FLOAT,
              kinds: dict[str, int] | None = None) -> bytes:  # fmt: skip
        graph = helper.make_graph(
            self.nodes,
            "test",
            [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()],
            [helper.make_tensor_value_info(name, (kinds or {}).get(name, TensorProto.FLOAT), shape) for name, shape in outputs.items()],
            self.initializers,
        )
        domains = sorted({node.domain for node in self.nodes if node.domain})
        imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
        return helper.make_model(graph, opset_imports=imports, ir_version=10 if opset < 25 else 13).SerializeToString()


def run_both(
    data: bytes,
    *,
    samples: int = 40,
    calibration: dict[str, np.ndarray] | None = None,
    feeds: dict[str, np.ndarray] | None = None,
    **options: object,
) -> tuple[Lowered, dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Lower and run a model: the result of lowering, our outputs, the witness's outputs, and the feeds."""
    lowered = lower(data, name="model", calibration=calibration, **options)  # type: ignore[arg-type]
    program = lowered.program
    feeds = golden.random_feeds(program, samples, seed=5) if feeds is None else feeds
    ours = golden.dequantise_outputs(program, golden.run(program, golden.quantise_inputs(program, feeds)))
    return lowered, ours, run_witness(data, feeds), feeds


def assert_equal(data: bytes, **options: object) -> Lowered:
    """Every output equals the witness's; the models are made so that float32 is exact up to the last host steps."""
    lowered, ours, theirs, _ = run_both(data, **options)  # type: ignore[arg-type]
    assert sorted(ours) == sorted(theirs)
    for name, array in theirs.items():
        assert ours[name].shape == array.shape, name
        np.testing.assert_allclose(ours[name], array, rtol=2e-6, atol=1e-6, err_msg=name)
    for operation in lowered.program.operations:
        step = getattr(operation, "step", None)
        assert step is None or step.proof.exact, operation.name
    return lowered
