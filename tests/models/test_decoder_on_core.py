"""Decoders on a core: the vector unit's twin and the gateware in Verilator against golden, every tensor of every token, and the clocks."""

from dataclasses import replace

import numpy as np
import pytest
from decoder_cases import random_weights, small
from test_decoder_compiled import TOKENS, compiled
from test_decoder_quest import exported as quest_decoder
from twin import Twin

import tritloom
from tritloom.compiled import CompiledModel
from tritloom.compiler.frontend import check
from tritloom.compiler.golden import Stream, sampler
from tritloom.compiler.ir.block import BlockSum, Norm, Quantise
from tritloom.compiler.schedule import has_blocks, schedule, sim_parameters
from tritloom.errors import ModelError, UserError
from tritloom.estimation import estimate
from tritloom.generation import TextGenerator
from tritloom.hw.arch.link import Space
from tritloom.hw.arch.parameters import CoreParameters
from tritloom.models.nets.decoder_export import decoder_model
from tritloom.sim.backends import open_backend
from tritloom.sim.stream import CoreStream


def token_codes(model: CompiledModel, token: int) -> dict[str, np.ndarray]:
    return {model.program.inputs[0].tensor: np.full((1, 1, 1), token)}


def assert_equal(expected: dict[str, np.ndarray], found: dict[str, np.ndarray], where: str) -> None:
    for name, values in found.items():
        assert np.array_equal(values, expected[name]), f"{where}: tensor {name} differs"


@pytest.mark.parametrize(
    "block,kv_heads,rotation,core",
    [
        ("bitnet", 1, "half", {"vector_lanes": 4}),
        ("bitnet", 4, "interleaved", {"rows": 8, "columns": 3, "post_lanes": 1, "vector_lanes": 2}),
        ("llama", 2, "half", {"rows": 4, "columns": 5, "post_lanes": 1, "vector_lanes": 1}),
        ("llama", 2, "interleaved", {"rows": 32, "columns": 8, "weight_encoding": "trit5", "vector_lanes": 8}),
        ("drna", 1, "half", {"rows": 8, "columns": 3, "post_lanes": 1, "vector_lanes": 2}),
        ("drna", 4, "half", {}),
    ],
)
def test_every_tensor_of_the_twin_equals_golden(block, kv_heads, rotation, core) -> None:
    model = compiled(block, 3, kv_heads=kv_heads, rotation=rotation)
    assert not model.golden_only and has_blocks(model.program)
    sizes = {field: 1 << 14 for field in ("weight_words", "activation_words", "program_words")}
    shape = {**sim_parameters(model.program).to_json(), **sizes, **core}
    made = schedule(model.program, CoreParameters.from_json(shape))
    twin, stream = Twin(model.program, made), Stream(model.program)
    seen = set()
    for index, token in enumerate(TOKENS.tolist()):
        stream.step(np.array([token]))
        found = twin.trace(token_codes(model, token))
        assert_equal(stream.tensors, found, f"token {index}")
        seen |= set(found)
    assert seen == {
        name for operation in model.program.operations for name in (operation.output, getattr(operation, "output_scale", "")) if name
    }


@pytest.mark.parametrize(("bits", "block"), [("1", "llama"), ("1.585", "bitnet"), ("2", "llama"), ("4", "bitnet")])
def test_quest_decoders(bits, block) -> None:
    """The Hadamard transform, and codes of an odd and of even numbers of levels."""
    model = tritloom.compile(quest_decoder(bits, block)[0].SerializeToString(), context=12)
    twin, stream = Twin(model.program, schedule(model.program, sim_parameters(model.program))), Stream(model.program)
    for index, token in enumerate(TOKENS.tolist()[:6]):
        stream.step(np.array([token]))
        assert_equal(stream.tensors, twin.trace(token_codes(model, token)), f"token {index}")


@pytest.mark.parametrize("with_bias", [False, True])
def test_layer_norms(with_bias) -> None:
    """Norms with a mean, with and without a bias, in place of a decoder's own ones."""
    model, rng = compiled("bitnet", 4), np.random.default_rng(4)

    def centred(operation):
        if not isinstance(operation, Norm):
            return operation
        bias = rng.integers(-30000, 30000, operation.gain.shape).astype(np.int16) if with_bias else None
        return replace(operation, centre=True, bias=bias, bias_scale=(40000, -34) if with_bias else (0, 0))

    program = replace(model.program, operations=tuple(map(centred, model.program.operations)))
    changed = CompiledModel(replace(model.artefact, program=program))
    assert not changed.golden_only
    twin, stream = Twin(program, schedule(program, sim_parameters(program))), Stream(program)
    for index, token in enumerate(TOKENS.tolist()[:6]):
        stream.step(np.array([token]))
        assert_equal(stream.tensors, twin.trace(token_codes(model, token)), f"token {index}")


def test_codes_in_a_sum() -> None:
    """The largest magnitude of a tensor that no instruction has counted on the way is looked for where it is needed."""
    model = compiled("bitnet", 6)
    first = next(operation for operation in model.program.operations if isinstance(operation, BlockSum))
    codes = next(operation for operation in model.program.operations if isinstance(operation, Quantise))
    changed = replace(first, left=codes.output, left_scale=codes.output_scale)
    operations = tuple(changed if operation is first else operation for operation in model.program.operations)
    program = replace(model.program, operations=operations)
    twin = Twin(program, schedule(program, sim_parameters(program)))
    stream = Stream(program)
    for index, token in enumerate(TOKENS.tolist()[:4]):
        stream.step(np.array([token]))
        assert_equal(stream.tensors, twin.trace(token_codes(model, token)), f"token {index}")


def test_tokens_of_zeros() -> None:
    """Embeddings, and with them norms, keys and values, that are nothing at all: exponents must not take the others with them."""
    model = compiled("bitnet", 5)
    (lookup,) = [operation for operation in model.program.operations if type(operation).__name__ == "Lookup"]
    lookup.table[3] = 0
    twin, stream = Twin(model.program, schedule(model.program, sim_parameters(model.program))), Stream(model.program)
    for index, token in enumerate([3, 1, 3, 3, 2, 0]):
        stream.step(np.array([token]))
        assert_equal(stream.tensors, twin.trace(token_codes(model, token)), f"token {index}")


def test_clocks_of_a_token() -> None:
    """What a schedule says at each position is what the twin's whole run takes, which adds the same for every earlier token."""
    model = compiled("llama", 1, kv_heads=2)
    made = schedule(model.program, sim_parameters(model.program))
    twin = Twin(model.program, made)
    said = [made.cycles_at(position) for position in range(5)]
    for cycles in said:
        assert twin.cycles(token_codes(model, 4)) == cycles
    assert len(set(np.diff(said))) == 1 and said[1] > said[0]
    found = estimate(model)
    assert (found.first_token, found.further_token, found.cycles) == (said[0], said[1] - said[0], made.cycles)
    assert made.generation is not None and made.cycles == made.cycles_at(made.generation.capacity - 1)


@pytest.mark.parametrize("prompt,count", [([2], 1), ([2, 5, 1], 6), ([0, 1, 2, 3], 8)])
def test_a_core_generates_by_itself(prompt, count) -> None:
    """In one run from the prompt to the last token, as golden's likeliest ones."""
    model = compiled("bitnet", 2)
    made = schedule(model.program, sim_parameters(model.program))
    twin, place = Twin(model.program, made), made.generation
    assert place is not None
    twin.core.write(Space.ACTIVATIONS, place.tokens, np.array(prompt, "<u4").tobytes())
    twin.core.write(Space.ACTIVATIONS, place.prompt, len(prompt).to_bytes(4, "little"))
    twin.core.write(Space.ACTIVATIONS, place.total, (len(prompt) + count - 1).to_bytes(4, "little"))
    twin.core.run()
    words = np.frombuffer(twin.core.read(place.tokens, 4 * (len(prompt) + count)), "<u4").tolist()
    expected = list(TextGenerator(tritloom.InferenceSession(model)).generate(prompt, count=count))
    assert words == [*prompt, *expected]
    assert twin.core.cycles > sum(made.cycles_at(position) for position in range(len(prompt) + count - 1)) - 20 * count


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, 1), (2.0, 3), (0.5, 0), (40.0, 0)])
def test_a_core_draws_tokens(temperature, top_k) -> None:
    """In one run, with its own random numbers, as golden draws them; not inside of the prompt."""
    model = compiled("bitnet", 2)
    made = schedule(model.program, sim_parameters(model.program))
    twin, place, prompt, count = Twin(model.program, made), made.generation, [1, 3], 7
    drawn = sampler(model.program, temperature=temperature, top_k=top_k, seed=5)
    assert place is not None and drawn is not None
    words = [len(prompt), len(prompt) + count - 1, 4 * drawn.count, drawn.constant[0], drawn.constant[1] & 0xFFFFFFFF, drawn.state, *prompt]
    assert (place.total, place.choices, place.constant, place.state, place.tokens) == tuple(
        place.prompt + offset for offset in (4, 8, 12, 20, 24)
    )
    twin.core.write(Space.ACTIVATIONS, place.prompt, np.array(words, "<u4").tobytes())
    twin.core.run()
    found = np.frombuffer(twin.core.read(place.tokens, 4 * (len(prompt) + count)), "<u4").tolist()
    generator = TextGenerator(tritloom.InferenceSession(model))
    assert found == [*prompt, *generator.generate(prompt, count=count, temperature=temperature, top_k=top_k, seed=5)]


def test_check_says_what_runs_where() -> None:
    for block in ("llama", "drna"):
        report = check(compiled(block, 1).source, name="small")
        assert report.facts["runs"]["golden only"] == {}
        assert {tuple(entry["runs"]) for entry in report.facts["operators"]} == {("core",)}


def test_a_core_without_vector_unit_is_refused() -> None:
    bitnet = compiled("bitnet")
    plain = CoreParameters.from_json({**sim_parameters(bitnet.program).to_json(), "vector_lanes": 0})
    with pytest.raises(ModelError, match="no vector unit"):
        schedule(bitnet.program, plain)


def test_heads_of_one_pair() -> None:
    """Two channels a head, of which each is turned by an angle of its own; the first token has no key before it."""
    decoder = replace(small("drna", kv_heads=4), width=8, hidden=5)
    weights = random_weights(decoder, "ternary", 2)
    model = tritloom.compile(decoder_model("small", decoder, weights, {}).SerializeToString(), context=12)
    assert not model.golden_only
    twin, stream = Twin(model.program, schedule(model.program, sim_parameters(model.program))), Stream(model.program)
    for index, token in enumerate(TOKENS.tolist()[:6]):
        stream.step(np.array([token]))
        assert_equal(stream.tensors, twin.trace(token_codes(model, token)), f"token {index}")


def assert_gateware(stream: Stream | CoreStream, model: CompiledModel) -> None:
    golden = Stream(model.program)
    for token in TOKENS.tolist()[:4]:
        golden.step(np.array([token]))
        stream.trace(np.array([token]))
        assert_equal(golden.tensors, stream.tensors, f"token {token}")


def test_gateware_equals_golden() -> None:
    """Verilator's core: all tensors of some tokens, tokens that it generates, and its clock counter. One core serves two decoders."""
    model, other = compiled("drna", 3, kv_heads=2), compiled("llama", 3, kv_heads=2, rotation="interleaved")
    session, made = tritloom.InferenceSession(model, providers=["verilator"]), model.schedule()
    assert_gateware(session.stream(), model)
    with open_backend("verilator", other.program, schedule(other.program, made.parameters)) as backend:
        assert_gateware(backend.stream(), other)
    stream = session.stream()
    for position in range(3):
        before = stream.cycles
        assert np.array_equal(stream.step(TOKENS[position : position + 1])["logits"], _logits(model, position))
        assert stream.cycles - before == made.cycles_at(position)
    generator = TextGenerator(session)
    assert list(generator.generate([2, 5], count=9)) == list(TextGenerator(tritloom.InferenceSession(model)).generate([2, 5], count=9))
    assert generator.cycles is not None and generator.cycles > 9 * made.cycles_at(0)
    drawn = [
        list(TextGenerator(one).generate([2, 5], count=9, temperature=1.5, top_k=4, seed=2))
        for one in (session, tritloom.InferenceSession(model))
    ]
    assert drawn[0] == drawn[1] and list(generator.generate([2], count=3)) == list(
        TextGenerator(tritloom.InferenceSession(model)).generate([2], count=3)
    )
    (logits,) = session.run(["logits"], {"input_ids": np.stack([TOKENS[:4], TOKENS[4:8]])})
    (expected,) = tritloom.InferenceSession(model).run(["logits"], {"input_ids": np.stack([TOKENS[:4], TOKENS[4:8]])})
    assert np.array_equal(logits, expected)
    found = tritloom.verify(model, on=["golden", "verilator"], samples=4, seed=1)
    assert found.exact and found.samples == 4 and {comparison.candidate for comparison in found.comparisons} == {"verilator"}
    assert "of 4 places" in found.details["onnx"]
    with pytest.raises(UserError, match="random tokens"):
        tritloom.verify(model, feeds={"input_ids": TOKENS[None]})
    with pytest.raises(UserError, match="has no stream"):
        tritloom.InferenceSession(tritloom.models.zoo.path("digits_mlp_twn")).stream()


def _logits(model: CompiledModel, position: int) -> np.ndarray:
    stream = Stream(model.program)
    return [stream.step(TOKENS[index : index + 1])["logits"] for index in range(position + 1)][-1]
