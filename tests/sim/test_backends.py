"""Golden, Verilator and Amaranth agree on every tensor and on the clocks; the netlist is in test_netlist.py."""

import numpy as np
import pytest

from tritloom.errors import UserError
from tritloom.sim.backends import open_backend
from tritloom.sim.compare import compare_tensors, first_difference

SAMPLES = {"golden": 3, "verilator": 3, "amaranth": 1}


@pytest.mark.parametrize("name", SAMPLES)
def test_every_tensor_equals_golden(name, program, schedule, codes, expected):
    count = SAMPLES[name]
    some = {tensor: values[:count] for tensor, values in codes.items()}
    want = {tensor: values[:count] for tensor, values in expected.items()}
    with open_backend(name, program, schedule) as backend:
        comparisons = compare_tensors(program, want, backend.trace(some), candidate=name)
        assert first_difference(comparisons) is None
        assert {comparison.tensor for comparison in comparisons} == set(program.tensors)
        outputs, cycles = backend.run(some)
    assert cycles == count * schedule.cycles
    assert set(outputs) == {spec.tensor for spec in program.outputs}
    for tensor, values in outputs.items():
        np.testing.assert_array_equal(values, want[tensor])


def test_golden_runs_large_batches_in_parts(program, schedule, codes, expected):
    (name,) = codes
    with open_backend("golden", program, schedule) as backend:
        outputs, cycles = backend.run({name: np.concatenate([codes[name]] * 342)})
    assert cycles == 1026 * schedule.cycles
    for tensor, values in outputs.items():
        np.testing.assert_array_equal(values, np.concatenate([expected[tensor]] * 342))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("verilater", r"^there is no provider 'verilater': did you mean 'verilator'\?$"),
        ("x", r"^there is no provider 'x': choose one of golden"),
    ],
)
def test_unknown_provider(name, message, program, schedule):
    with pytest.raises(UserError, match=message):
        open_backend(name, program, schedule)


def test_wrong_arrays(program, schedule, codes):
    (name,) = codes
    with open_backend("golden", program, schedule) as backend:
        with pytest.raises(UserError, match=r"^codes for the input tensor .* are missing$"):
            backend.run({})
        with pytest.raises(UserError, match=r"must have the shape \(samples, 3, 9, 7\), not \(3, 9, 7\)$"):
            backend.trace({name: codes[name][0]})
        with pytest.raises(UserError, match=r"^there must be at least one sample$"):
            backend.run({name: codes[name][:0]})
