"""Rotations by angles that depend on data: golden against their definition, and the vector unit's twin against golden."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tritloom.compiler.frontend.operators_rotation import TURN_TABLE
from tritloom.compiler.golden.block import run_block
from tritloom.compiler.image.block_codec import check_block
from tritloom.compiler.image.values import Malformed
from tritloom.compiler.ir.block import Turn
from tritloom.compiler.ir.program import InputSpec, OutputSpec, Program, Tensor
from tritloom.compiler.schedule import schedule, sim_parameters, tensor_from_bytes, tensor_to_bytes
from tritloom.hw.arch.link import Space
from tritloom.hw.model import CoreModel

POSITIONS = 5
QUARTER = 1 << 14
ANGLES = [*(turn * QUARTER + near for turn in range(-1, 6) for near in (-9, -8, -7, 0, 7, 8)), 70_000, -(1 << 31), (1 << 31) - 1]
"""Quarter turns and the ties of rounding around them, below 0 and beyond a turn."""

CODES = [0, 1, -1, 127, -127]
LARGEST = (1 << 31) - 1


def turn(name: str, angles: np.ndarray, table: np.ndarray, constant: tuple[int, int]) -> Turn:
    return Turn(
        name=name, output=f"{name}.turned", output_scale=f"{name}.turned.scale", input=name, input_scale=f"{name}.scale", before="before",
        before_scale="before.scale", constant=constant, position="position", angles=angles.astype(np.int32), table=table,
    )  # fmt: skip


def program(queries: Turn, keys: Turn, *, channels: int, heads: int, key_heads: int) -> Program:
    """Queries and keys, each turned by the keys before."""
    shapes = {"queries": heads, "keys": key_heads, "queries.turned": heads, "keys.turned": key_heads}
    tensors = {
        name: Tensor(name=name, shape=shape, bits=bits, low=-(1 << (bits - 1)), high=(1 << (bits - 1)) - 1, scale=(1,))
        for part, count, width in [*((name, count, 32) for name, count in shapes.items()), ("before", key_heads, 8)]
        for name, shape, bits in ((part, (channels, count, 1), width), (f"{part}.scale", (2, count, 1), 32))
    }
    tensors["position"] = Tensor(name="position", shape=(1, 1, 1), bits=32, low=0, high=POSITIONS - 1, scale=(1,))
    given = [name for name in tensors if "turned" not in name]
    return Program(
        name="p",
        tensors=tensors,
        operations=(queries, keys),
        inputs=tuple(InputSpec(name=name, shape=("N",), dtype="float32", tensor=name, prologue=()) for name in given),
        outputs=tuple(
            OutputSpec(name=name, shape=("N",), dtype="float32", tensor=name, epilogue=()) for name in tensors if "turned" in name
        ),
    )


def scales(rng: np.random.Generator, count: int, exponent: int) -> np.ndarray:
    return np.stack([rng.integers(1 << 15, 1 << 16, count), np.full(count, exponent)]).reshape(1, 2, count, 1).astype(np.int32)


def inputs(rng: np.random.Generator, channels: int, heads: int, key_heads: int, magnitude: int, exponent: int) -> dict[str, np.ndarray]:
    tensors = {"position": np.full((1, 1, 1, 1), rng.integers(0, POSITIONS), np.int32)}
    for name, count in (("queries", heads), ("keys", key_heads)):
        tensors[name] = rng.integers(-magnitude, magnitude + 1, (1, channels, count, 1)).astype(np.int32)
        tensors[f"{name}.scale"] = scales(rng, count, -20)
    tensors["queries"][:, 0] = magnitude
    tensors["before"] = rng.choice([*CODES, *rng.integers(-127, 128, 5)], (1, channels, key_heads, 1)).astype(np.int8)
    tensors["before.scale"] = scales(rng, key_heads, exponent)
    return tensors


def on_twin(made: Program, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors that the core writes; its clocks are those of the schedule."""
    plan = schedule(made, sim_parameters(made))
    core = CoreModel(plan.parameters)
    core.write(Space.PROGRAM, 0, np.array(plan.program_words, "<u8").tobytes())
    for address, table in plan.tables:
        core.write(Space.ACTIVATIONS, address, table)
    for name, values in tensors.items():
        core.write(Space.ACTIVATIONS, plan.placements[name].address, tensor_to_bytes(plan.placements[name], values[0], plan.parameters))
    core.run()
    assert core.cycles == plan.cycles
    places = {output.tensor: plan.placements[output.tensor] for output in made.outputs}
    return {name: tensor_from_bytes(place, core.read(place.address, place.bytes), plan.parameters) for name, place in places.items()}


def assert_on_core(made: Program, tensors: dict[str, np.ndarray]) -> None:
    expected = {name: values for operation in made.operations for name, values in run_block(operation, tensors).items()}
    found = on_twin(made, tensors)
    assert found.keys() == expected.keys()
    for name, values in found.items():
        np.testing.assert_array_equal(values, expected[name][0], name)


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from([(2, 1, 1), (2, 4, 2), (6, 3, 3), (32, 4, 1)]),
    st.sampled_from([0, 1, 1 << 14, LARGEST]),
    st.sampled_from([-80, -31, -29, -27, -22, 20]),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_the_twin_equals_golden(shape, magnitude, exponent, steep, seed):
    """From keys that turn nothing (exponent -80) to saturated ones (20); any table will do."""
    channels, heads, key_heads = shape
    rng = np.random.default_rng(seed)
    table = rng.choice([-(1 << 15), (1 << 15) - 1, 0, *rng.integers(-(1 << 15), 1 << 15, 9)], 2048) if steep else TURN_TABLE
    angles = rng.choice([*ANGLES, *rng.integers(0, 1 << 16, 20)], (POSITIONS, channels))
    parts = [turn(name, angles, table.astype(np.int16), (40000, -7)) for name in ("queries", "keys")]
    made = program(*parts, channels=channels, heads=heads, key_heads=key_heads)
    assert_on_core(made, inputs(rng, channels, heads, key_heads, magnitude, exponent))


@pytest.mark.parametrize("exponent", [-80, 20])
def test_quarter_turns(exponent):
    """Every angle of the list for an element that is not 0, alone and with half a turn, all but a little, of a saturated key."""
    rng, channels = np.random.default_rng(3), 46
    angles = np.array([*ANGLES, 0]).reshape(1, channels).repeat(POSITIONS, axis=0)
    parts = [turn(name, angles, TURN_TABLE, (40000, -7)) for name in ("queries", "keys")]
    tensors = inputs(rng, channels, 2, 2, 1 << 14, exponent)
    tensors["before"] = np.where(tensors["before"] < 0, -1, 1).astype(np.int8) * 127
    assert_on_core(program(*parts, channels=channels, heads=2, key_heads=2), tensors)


@pytest.mark.parametrize("change", ["angles", "table", "constant", "nothing"])
def test_factors_are_kept_only_for_what_turns_alike(change):
    rng = np.random.default_rng(1)
    angles = rng.integers(0, 1 << 16, (POSITIONS, 6))
    queries, keys = (turn(name, angles, TURN_TABLE, (40000, -22)) for name in ("queries", "keys"))
    other = {
        "angles": {"angles": keys.angles + 100},
        "table": {"table": TURN_TABLE // 2},
        "constant": {"constant": (40000, -21)},
        "nothing": {},
    }
    made = program(queries, replace(keys, **other[change]), channels=6, heads=2, key_heads=2)
    assert_on_core(made, inputs(rng, 6, 2, 2, 1000, -15))
    layers = schedule(made, sim_parameters(made)).layers
    assert (layers[1].instructions < layers[0].instructions / 2) == (change == "nothing")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"output_scale": ""}, "no result of 32 bits with a scale"),
        ({"output": "before", "output_scale": "keys.scale", "input": "keys", "input_scale": ""}, "no result of 32 bits with a scale"),
        ({"before_scale": "queries.scale"}, "has a scale of shape"),
        ({"input_scale": "keys.scale"}, "no scale for each head"),
        ({"output_scale": "before.scale"}, "no scale for each head"),
        ({"table": TURN_TABLE[:-1]}, "tables for other channels"),
        ({"position": "before"}, "has a position of"),
    ],
)
def test_impossible_rotations_are_malformed(change, words):
    angles = np.zeros((POSITIONS, 6), np.int32)
    queries, keys = (turn(name, angles, TURN_TABLE, (40000, -22)) for name in ("queries", "keys"))
    for wanted in ({}, change):
        made = program(replace(queries, **wanted), keys, channels=6, heads=4, key_heads=1)
        with pytest.raises(Malformed, match=words) if wanted else nullcontext():
            for operation in made.operations:
                check_block(operation, made, made.tensors[operation.output], "it")


@pytest.mark.parametrize("exponent", [-45, -29, -26, -10])
def test_golden_is_the_definition(exponent):
    """``x * cos(angle + pi * tanh(key)) + other * sin(...)``: ``tanh`` and angle are off by half a step at most, pi / 512 and pi / 4096; ``tanh`` beyond 4 by less.
    Cosines have 14 fraction bits, elements 15 bits of the largest one of their head."""
    rng = np.random.default_rng(-exponent)
    angles = rng.choice([*ANGLES[:42], *rng.integers(0, 1 << 16, 60)], (POSITIONS, 32))
    operation = turn("queries", angles, TURN_TABLE, (1 << 15, -8))
    tensors = inputs(rng, 32, 4, 2, 1 << 24, exponent)
    made = run_block(operation, tensors)

    def real(name: str, source: dict[str, np.ndarray]) -> np.ndarray:
        scale = source[f"{name}.scale"].astype(np.float64)
        return (source[name] * scale[:, :1] * 2.0 ** scale[:, 1:])[0, :, :, 0]

    x, key = real("queries", tensors), np.repeat(real("before", tensors), 2, axis=1) * (1 << 15) / (1 << 8)
    angle = 2 * np.pi * angles[tensors["position"].item()][:, None] / (1 << 16) + np.pi * np.tanh(key)
    other = np.concatenate([-x[16:], x[:16]])
    wanted = x * np.cos(angle) + other * np.sin(angle)
    error = np.abs(real("queries.turned", made) / (1 << 14) - wanted)
    assert (error <= 0.0071 * np.hypot(x, other) + 2**-13 * np.abs(x).max(axis=0)).all()
    assert (np.abs(np.tanh(key)[key != 0]).min() > 0.9999) == (exponent == -10)
