"""A network of forty convolutions on 64 x 64 images: what it gives, how long it takes to compile, and how fast golden is."""

from time import process_time

import numpy as np
from frontend_models import Graph
from large_models import skip_network

from tritloom.compiler import golden
from tritloom.compiler.frontend import lower
from tritloom.compiler.ir.program import Add, Convolution, Copy
from tritloom.compiler.schedule import schedule, sim_parameters
from tritloom.sim.witness import run_witness


def test_forty_convolutions_with_skip_connections() -> None:
    data = skip_network(Graph(7))
    begin = process_time()
    program = lower(data, name="model").program
    lowered = process_time() - begin
    plan = schedule(program, sim_parameters(program))
    compiled = process_time() - begin
    kinds = [type(operation) for operation in program.operations]
    assert (kinds.count(Convolution), kinds.count(Add), kinds.count(Copy)) == (40, 15, 3)
    copies = {operation.name for operation in program.operations if isinstance(operation, Copy)}
    assert [layer.instructions for layer in plan.layers if layer.name in copies] == [1, 1, 1]

    feeds = golden.random_feeds(program, 4, seed=3)
    codes = golden.quantise_inputs(program, feeds)
    begin = process_time()
    tensors = golden.run(program, codes, keep=[program.outputs[0].tensor])
    images = 4 / (process_time() - begin)
    print(f"lowered in {lowered:.1f} s, compiled in {compiled:.1f} s of processor time; golden runs {images:.1f} images a second")
    # The goals are 20 s and 2 images a second on an idle machine.
    assert compiled < 60 and images > 0.5

    (ours,) = golden.dequantise_outputs(program, tensors).values()
    (theirs,) = run_witness(data, feeds).values()
    np.testing.assert_array_equal(ours, theirs)
    assert len(np.unique(ours)) > 20
