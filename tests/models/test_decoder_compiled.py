"""Decoders compiled to integers, in golden against ONNX Runtime; what the front end refuses of them; the files."""

import json
import math
from dataclasses import replace

import numpy as np
import onnx
import pytest
from decoder_cases import Runner, random_weights, small

import tritloom
from tritloom.compiled import CompiledModel
from tritloom.compiler.golden import Sampler, Stream, sampler
from tritloom.compiler.image import decode_artefact, encode_artefact
from tritloom.compiler.image.validate import validate_program
from tritloom.compiler.image.values import Malformed
from tritloom.compiler.ir.block import Norm
from tritloom.errors import ModelError, UserError
from tritloom.generation import TextGenerator
from tritloom.models import zoo
from tritloom.models.nets.decoder_export import decoder_model

TOKENS = np.random.default_rng(7).integers(0, 13, 12)
VOCABULARY = [*"abcdefghijkl", "ab"]


def exported(block: str, seed: int, **options: object) -> tuple[onnx.ModelProto, object]:
    decoder = small(block, context=12, **options)
    return decoder_model("small", decoder, random_weights(decoder, "ternary", seed), {"vocabulary": json.dumps(VOCABULARY)}), decoder


def compiled(block: str = "bitnet", seed: int = 0, context: int | None = 12, **options: object) -> CompiledModel:
    return tritloom.compile(exported(block, seed, **options)[0].SerializeToString(), context=context)


def golden_logits(model: CompiledModel, tokens: np.ndarray) -> np.ndarray:
    return tritloom.InferenceSession(model).run(["logits"], {"input_ids": tokens[None]})[0][0]


@pytest.mark.parametrize(
    "block,kv_heads,rotation",
    [
        ("bitnet", 1, "half"),
        ("bitnet", 4, "interleaved"),
        ("llama", 2, "half"),
        ("llama", 2, "interleaved"),
        ("drna", 1, "half"),
        ("drna", 4, "half"),
    ],
)
def test_golden_follows_onnx_runtime(block, kv_heads, rotation):
    """Activations are rounded to 8 bits again and again, so a value near a half may go the other way; everything else would show as a far larger error."""
    model, decoder = exported(block, 3, kv_heads=kv_heads, rotation=rotation)
    expected = Runner(model.SerializeToString(), decoder).whole(TOKENS)
    found = golden_logits(tritloom.compile(model.SerializeToString(), context=12), TOKENS)
    error = np.sqrt(((found - expected) ** 2).mean()) / expected.std()
    print(f"{block} {rotation}: rms error {error:.4f} of the logits' deviation")
    assert error < 0.04
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.999


def test_packaged_models_compile():
    for name in ("charlm_bitnet", "charlm_drna_repaired"):
        generator = TextGenerator(tritloom.InferenceSession(tritloom.compile(zoo.path(name))))
        assert generator.context == 192 and len(generator.vocabulary) == 103
        text = "".join(generator.vocabulary[token] for token in generator.generate(generator.tokens("The "), count=3))
        assert len(text) == 3 and text.isprintable()


def test_sequences_of_a_batch_do_not_touch_each_other():
    model = compiled()
    session = tritloom.InferenceSession(model)
    batch = np.random.default_rng(1).integers(0, 13, (3, 6))
    (together,) = session.run(None, {"input_ids": batch})
    assert together.shape == (3, 6, 13) and together.dtype == np.float32
    for index, tokens in enumerate(batch):
        np.testing.assert_array_equal(golden_logits(model, tokens), together[index])


@pytest.mark.parametrize("block", ["llama", "drna"])
def test_a_prefix_has_the_same_logits(block):
    model = compiled(block)
    np.testing.assert_array_equal(golden_logits(model, TOKENS)[:5], golden_logits(model, TOKENS[:5]))


def test_the_size_of_the_caches_changes_nothing():
    tokens = TOKENS[:6]
    np.testing.assert_array_equal(golden_logits(compiled(context=6), tokens), golden_logits(compiled(context=12), tokens))


def test_every_tensor_keeps_its_width():
    model = compiled()
    program, stream = model.program, Stream(model.program)
    for token in TOKENS:
        stream.step(np.array([token]))
        for name, array in stream.tensors.items():
            tensor = program.tensors[name]
            assert array.shape[1:] == tensor.shape
            assert tensor.low <= array.min() and array.max() <= tensor.high, name


def test_caches_hold_what_was_stored():
    model = compiled()
    stream = Stream(model.program)
    for count, token in enumerate(TOKENS[:4], 1):
        stream.step(np.array([token]))
        keys = stream.tensors["past_key_values.0.key.after"]
        assert keys[..., :count].any(axis=(1, 2)).all() and not keys[..., count:].any()


@pytest.mark.parametrize("block", ["bitnet", "drna"])
def test_a_file_gives_the_same_text(tmp_path, block):
    model = compiled(block)
    model.save(tmp_path / "model.loom")
    read = CompiledModel.load(tmp_path / "model.loom")
    np.testing.assert_array_equal(golden_logits(read, TOKENS), golden_logits(model, TOKENS))
    assert encode_artefact(read.artefact) == encode_artefact(model.artefact) == encode_artefact(compiled(block).artefact)


# ---- text ----


def test_longest_tokens_first_and_back():
    generator = TextGenerator(tritloom.InferenceSession(compiled()))
    assert generator.tokens("abba") == [12, 1, 0]
    assert generator.context == 12
    with pytest.raises(UserError, match="does not know the character 'z'"):
        generator.tokens("az")


def test_greedy_text_is_the_argmax_of_the_logits():
    model = compiled()
    generator = TextGenerator(tritloom.InferenceSession(model))
    given = [3, 1]
    made = list(generator.generate(given, count=6))
    logits = golden_logits(model, np.array([*given, *made]))
    assert made == logits[1:-1].argmax(axis=1).tolist()


def test_draws_repeat_with_their_seed():
    generator = TextGenerator(tritloom.InferenceSession(compiled()))
    texts = [list(generator.generate([0], count=8, temperature=2.0, seed=seed)) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_choosing_a_token():
    """Integer logits of a grid of 1/64 with a scale of 1/2: shares are those of floats, and equal ones come in their order."""
    drawn = sampler(compiled().program, temperature=1.0, top_k=0, seed=3)
    assert drawn is not None
    elements, scale = np.array([0, 3 * 64, 3 * 64, 64]), (1 << 15, -16)
    draws = Sampler(count=4, constant=(round((1 << 20) / 64 * 2 / math.log(2)), -20), state=drawn.state)
    counts = np.bincount([draws.choose(elements, scale) for _ in range(4000)], minlength=4) / 4000
    shares = np.exp(elements / 64) / np.exp(elements / 64).sum()
    assert np.abs(counts - shares).max() < 0.03
    for count, seen in ((1, {1}), (2, {1, 2})):
        few = Sampler(count=count, constant=draws.constant, state=7)
        assert {few.choose(elements, scale) for _ in range(40)} == seen
    assert sampler(compiled().program, temperature=0, top_k=5, seed=0) is None


@pytest.mark.parametrize("temperature", [1e-30, 0.01, 1.0, 30.0, 1e30])
def test_constants_of_temperatures(temperature):
    """16 bits of the scale over ``temperature * ln 2``."""
    program = compiled().program
    drawn = sampler(program, temperature=temperature, top_k=2, seed=1)
    assert drawn is not None and drawn.count == 2
    wanted = float(program.tensors[program.outputs[0].tensor].scale[0]) / (temperature * math.log(2))
    assert 1 << 15 <= drawn.constant[0] < 1 << 16 and abs(drawn.constant[0] * 2.0 ** drawn.constant[1] / wanted - 1) < 2**-16


def test_logits_far_apart_and_alike():
    draws = Sampler(count=3, constant=(1 << 15, 60), state=1)
    assert {draws.choose(np.array([5, 1, 4]), (1 << 15, -15)) for _ in range(10)} == {0}
    assert draws.choose(np.array([-(1 << 30), (1 << 30), 0]), (1 << 15, 3000)) == 1
    assert {draws.choose(np.zeros(3, np.int64), (1 << 15, -15)) for _ in range(60)} == {0, 1, 2}
    assert {Sampler(count=2, constant=(1 << 15, -4000), state=9).choose(np.array([5, 1, 4]), (1, 0))} <= {0, 2}


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"prompt": [], "count": 1}, "the prompt is empty"),
        ({"prompt": [0], "count": 12}, "do not fit the caches of 12"),
        ({"prompt": [0], "count": 1, "temperature": -1.0}, "must not be negative"),
    ],
)
def test_wrong_requests(arguments, message):
    with pytest.raises(UserError, match=message):
        TextGenerator(tritloom.InferenceSession(compiled())).generate(**arguments)


def test_the_verb(tmp_path, capsys):
    from tritloom.cli.main import main

    path = tmp_path / "m.onnx"
    path.write_bytes(exported("bitnet", 0)[0].SerializeToString())
    with pytest.raises(SystemExit) as caught:
        main(["chat", str(path), "--prompt", "ab", "--tokens", "5", "--context", "12", "--json"])
    assert caught.value.code == 0
    answer = json.loads(capsys.readouterr().out)
    expected = list(TextGenerator(tritloom.InferenceSession(compiled())).generate([12], count=5))
    assert answer["text"] == "".join(VOCABULARY[token] for token in expected)
    arrays = tmp_path / "in.npz"
    np.savez(arrays, input_ids=TOKENS[None])
    for words, sentence in (
        (["chat", str(path), "--prompt", "z"], "does not know the character 'z'"),
        (["verify", str(path), "--input", str(arrays)], "is verified on random tokens"),
        (["compile", str(path), "--context", "0", "-o", str(tmp_path / "x.loom")], "context must be from 1 to 4096"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 1
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "x.loom").exists()


# ---- refusals ----


def changed(change) -> bytes:
    model = exported("bitnet", 0)[0]
    change(model.graph)
    return model.SerializeToString()


def _float_weights(graph):
    for tensor in graph.initializer:
        if tensor.name == "block0.attention.query.weight_codes":
            node = next(node for node in graph.node if tensor.name in node.input)
            shape = tuple(tensor.dims)
            graph.initializer.append(onnx.numpy_helper.from_array(np.random.default_rng(0).normal(size=shape).astype(np.float32), "float"))
            for reader in graph.node:
                reader.input[:] = ["float" if name == node.output[0] else name for name in reader.input]


def _unquantised(graph):
    """The first layer reads what the norm gives."""
    for node in graph.node:
        node.input[:] = [
            "block0.attention_norm" if name == "block0.attention_norm.quantised" and node.op_type == "MatMul" else name
            for name in node.input
        ]


def _wrong_limit(graph):
    for node in graph.node:
        if node.op_type == "Clip":
            node.input[2] = node.input[1]


def _other_turn(graph):
    """The cosine where the sine belongs."""
    next(node for node in graph.node if node.op_type == "Sin").op_type = "Cos"


def _cast(graph):
    """A token's codes as integers."""
    node = next(node for node in graph.node if node.op_type == "Relu")
    node.op_type = "Cast"
    node.attribute.append(onnx.helper.make_attribute("to", onnx.TensorProto.INT32))


def test_another_rotation_is_refused():
    model = exported("drna", 0)[0]
    _other_turn(model.graph)
    with pytest.raises(ModelError, match="it is no step of a rotation"):
        tritloom.compile(model.SerializeToString())


def _unknown(graph):
    next(node for node in graph.node if node.op_type == "Relu").op_type = "Elu"


def _epsilon(value):
    def change(graph):
        node = next(node for node in graph.node if node.op_type == "RMSNormalization")
        next(entry for entry in node.attribute if entry.name == "epsilon").f = value

    return change


@pytest.mark.parametrize(
    "change,message",
    [
        (_epsilon(-1e-5), r"'block0.attention_norm': its epsilon is negative or not finite"),
        (_epsilon(math.inf), r"'block0.attention_norm': its epsilon is negative or not finite"),
        (_float_weights, r"'block0.attention.query': .*not small integers with one scale"),
        (_unquantised, r"'block0.attention.query': its activations are not quantised"),
        (_wrong_limit, r"'block0.attention_norm.codes': only rounded codes"),
        (_cast, r"'block0.perceptron.positive': activations are only cast from one float type to another"),
        (_unknown, r"'block0.perceptron.positive': no rule lowers it in a language model"),
    ],
)
def test_what_is_refused_is_named(change, message):
    with pytest.raises(ModelError, match=message):
        tritloom.compile(changed(change))


def test_caches_are_no_longer_than_the_tables_unless_asked():
    assert TextGenerator(tritloom.InferenceSession(compiled(context=None))).context == 12


def test_tables_shorter_than_the_caches():
    with pytest.raises(ModelError, match="its tables hold 12 positions, the caches 13"):
        compiled(context=13)


def _damaged_tensor(graph):
    next(tensor for tensor in graph.initializer if tensor.name == "block0.attention_norm.gain").dims[0] = 7


def _no_shape(graph):
    del graph.output[0].type.tensor_type.shape.dim[:]


def _wrong_order(graph):
    node = next(node for node in graph.node if node.op_type == "Transpose")
    next(entry for entry in node.attribute if entry.name == "perm").ints[0] = 9


def _three_axes(graph):
    value = next(value for value in graph.input if value.name.startswith("past_key_values"))
    del value.type.tensor_type.shape.dim[3:]
    value.type.tensor_type.shape.dim[2].dim_value = 1


def test_damaged_files_are_one_sentence():
    """What fuzzing found."""
    with pytest.raises(ModelError, match=r"must have the shape \(1, heads, tokens, channels\)"):
        tritloom.compile(changed(_three_axes))
    with pytest.raises(ModelError, match="damaged"):
        tritloom.compile(changed(_damaged_tensor))
    model = tritloom.compile(changed(_no_shape), context=12)
    assert CompiledModel(decode_artefact(encode_artefact(model.artefact), "x")).program.outputs[0].shape == ("N", "S", 13)
    with pytest.raises(ModelError, match="its operands and attributes do not fit together"):
        tritloom.compile(changed(_wrong_order), context=12)
    with pytest.raises(ModelError, match="nothing but the caches is computed"):
        tritloom.compile(changed(lambda graph: graph.output.pop(0)), context=12)
    program = compiled().program
    changed_layers = tuple(
        replace(operation, output_scale="nowhere") if isinstance(operation, Norm) else operation for operation in program.operations
    )
    with pytest.raises(Malformed, match="writes a scale that does not exist"):
        validate_program(replace(program, operations=changed_layers))
