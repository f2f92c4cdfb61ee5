"""Helpers of the gateware tests."""

import pytest
from amaranth.back import rtlil
from amaranth.sim import Simulator


@pytest.fixture(scope="session")
def simulate():
    """Run ``bench(ctx)`` on a component, clocked by ``sync`` unless it is combinational."""

    def run(component, bench, *, clocked: bool = True) -> None:
        simulator = Simulator(component)
        if clocked:
            simulator.add_clock(1e-6)
        simulator.add_testbench(bench)
        simulator.run()

    return run


@pytest.fixture(scope="session")
def exports():
    """Check that a component converts to RTLIL, which Verilog is written from."""

    def convert(component) -> None:
        assert "module \\top" in rtlil.convert(component, name="top", emit_src=False)

    return convert
