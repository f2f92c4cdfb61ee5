from dataclasses import replace
from fractions import Fraction

import numpy as np

import tritloom
from tritloom.compiler.ir.program import HostOp, OutputSpec, Program, Tensor
from tritloom.witnessing import against_floats


def _program(tensor: Tensor, spec: OutputSpec) -> Program:
    return Program(name="p", tensors={tensor.name: tensor}, operations=(), inputs=(), outputs=(spec,))


def _spec(index=None) -> OutputSpec:
    return OutputSpec(name="y", shape=(1, 4), dtype="float32", tensor="t", epilogue=(), index=index)


def test_the_witness_is_counted_in_codes_of_the_output_grid():
    tensor = Tensor(
        name="t",
        shape=(4, 1, 1),
        bits=8,
        low=-10,
        high=10,
        scale=(Fraction(1, 4), Fraction(1, 2), Fraction(1), Fraction(2)),
        zero_point=(1,),
    )
    codes = np.array([[1, 2, 3, 10], [-10, 0, 4, 5]]).reshape(2, 4, 1, 1)
    floats = np.array([[0.0, 0.5, 2.2, 99.0], [-99.0, -0.5, 3.6, 8.0]], np.float32)
    found = against_floats(_program(tensor, _spec()), _spec(), codes, floats)
    assert (found.reference, found.candidate, found.tensor, found.values) == ("onnx", "golden", "y", 8)
    assert found.mismatches == 1  # 3.6 is code 5, not 4; values beyond the grid are clamped
    assert (found.first.sample, found.first.index, found.first.expected, found.first.got) == (1, (2, 0, 0), 5, 4)
    assert found.top1_agreement == 1.0


def test_the_witness_is_compared_through_the_outputs_index():
    tensor = Tensor(name="t", shape=(2, 1, 2), bits=8, low=-128, high=127, scale=(Fraction(1), Fraction(10)))
    spec = _spec(index=np.array([3, 2, 1, 0]))
    codes = np.array([1, 2, 3, 4]).reshape(1, 2, 1, 2)
    floats = np.array([[40.0, 30.0, 2.0, 1.0]], np.float32)
    assert against_floats(_program(tensor, spec), spec, codes, floats).mismatches == 0


def test_an_output_of_another_size_differs_everywhere():
    tensor = Tensor(name="t", shape=(4, 1, 1), bits=8, low=-128, high=127, scale=(Fraction(1),))
    found = against_floats(_program(tensor, _spec()), _spec(), np.zeros((2, 4, 1, 1), int), np.zeros((2, 3), np.float32))
    assert found.mismatches == found.values == 8


def test_inputs_off_the_models_own_grid_reach_the_witness_as_they_are(mlp):
    feeds = {"x": np.random.default_rng(2).uniform(-9, 9, (100, 6)).astype(np.float32)}
    found = tritloom.verify(mlp, on=["golden"], feeds=feeds)
    assert found.samples == 100
    assert found.against("onnx")[0].mismatches == 0


def test_inputs_of_a_model_without_quantisers_are_moved_to_the_calibrated_grid(float_mlp):
    rng = np.random.default_rng(2)
    samples = {"x": rng.standard_normal((256, 4)).astype(np.float32)}
    compiled = tritloom.compile(float_mlp, calibration=samples, planes=4, method="planes")
    found = tritloom.verify(compiled, on=["golden"], feeds=samples)
    assert found.exact
    assert found.against("onnx")[0].top1_agreement > 0.95


def test_steps_that_are_no_operators_of_the_model_are_taken_back_before_the_comparison():
    tensor = Tensor(name="t", shape=(2, 1, 1), bits=8, low=-128, high=127, scale=(Fraction(1, 2),), zero_point=(3,))
    steps = (
        HostOp(kind="Dequantize", constants={"scale": np.array(0.5), "zero_point": np.array(3)}),
        HostOp(kind="Mul", constants={"B": np.array([4.0, -2.0], np.float32)}, attributes={"head": True}),
        HostOp(kind="Add", constants={"B": np.array([0.25, 1.0], np.float32)}, attributes={"head": True}),
        HostOp(kind="Relu"),
    )
    spec = replace(_spec(), epilogue=steps)
    codes = np.array([[5, 6], [-100, 100]]).reshape(2, 2, 1, 1)
    floats = np.array([[4.25, -2.0], [-205.75, -96.0]], np.float32)
    assert against_floats(_program(tensor, spec), spec, codes, floats).mismatches == 0
    assert against_floats(_program(tensor, spec), replace(spec, epilogue=steps[:1]), codes, floats).mismatches > 0
