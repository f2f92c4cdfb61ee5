"""Language models without PyTorch: dimensions, choices, and their ONNX files against NumPy, in ONNX Runtime."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from decoder_cases import Runner, assert_alike, clear_sequences, random_weights, small
from onnx import numpy_helper

from tritloom.errors import UserError
from tritloom.models.nets.decoder import Decoder
from tritloom.models.nets.decoder_export import decoder_model, state_names
from tritloom.models.nets.language_methods import precision
from tritloom.models.train.language_settings import LanguageSettings
from tritloom.models.train.perplexity import windows
from tritloom.models.train.settings import read_settings

CASES = [
    ("llama", 4, "half", "float"), ("llama", 2, "interleaved", "float"), ("llama", 1, "half", "ternary"), ("llama", 2, "interleaved", "ternary"),
    ("bitnet", 1, "half", "ternary"), ("bitnet", 4, "half", "float"), ("drna", 4, "half", "float"), ("drna", 2, "half", "ternary"), ("drna", 1, "half", "float"),
    ("llama", 4, "half", "1"), ("llama", 4, "half", "1.585"), ("llama", 4, "half", "2"), ("bitnet", 4, "half", "4"),
]  # fmt: skip


def written(decoder: Decoder, kind: str, seed: int = 1) -> bytes:
    return decoder_model("net", decoder, random_weights(decoder, kind, seed), {"b": "1", "a": "2"}).SerializeToString(deterministic=True)


@pytest.mark.parametrize(("block", "kv_heads", "rotation", "kind"), CASES)
def test_a_file_computes_the_definitions(block, kv_heads, rotation, kind):
    """With and without the optimiser of ONNX Runtime, and for a single token."""
    decoder = small(block, kv_heads=kv_heads, rotation=rotation)
    rows, wanted = clear_sequences(decoder, random_weights(decoder, kind, 1), seed=7)
    for optimise in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL"):
        runner = Runner(written(decoder, kind), decoder, optimise)
        assert_alike([runner.whole(row) for row in rows], wanted)
        assert_alike([runner.whole(row[:1]) for row in rows], [row[:1] for row in wanted])


@pytest.mark.parametrize(("block", "kv_heads", "rotation", "kind"), CASES)
def test_token_by_token_is_the_whole_sequence(block, kv_heads, rotation, kind):
    decoder = small(block, kv_heads=kv_heads, rotation=rotation)
    rows, _ = clear_sequences(decoder, random_weights(decoder, kind, 1), seed=8)
    runner = Runner(written(decoder, kind), decoder)
    whole = [runner.whole(row) for row in rows]
    for prompt in (1, 4, 7):
        assert_alike([runner.in_parts(row, prompt) for row in rows], whole)
    changed = [np.concatenate([row[:4], (row[4:] + 1) % decoder.vocabulary]) for row in rows]
    assert_alike([runner.whole(row)[:4] for row in changed], [logits[:4] for logits in whole])  # no token sees a later one


@pytest.mark.parametrize("block", ["llama", "bitnet", "drna"])
def test_what_a_file_holds(block):
    """Integers where there must be integers, names that people know, a cache whose every token is on a grid of 8 bits."""
    decoder = small(block)
    model = onnx.load_from_string(written(decoder, "ternary"))
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for index in range(decoder.layers):
        for part, names in (("attention", ("query", "key", "value", "output")), ("perceptron", ("gate", "up", "down"))):
            for name in names:
                codes = arrays[f"block{index}.{part}.{name}.weight_codes"]
                assert codes.dtype == np.int8 and set(np.unique(codes)) == {-1, 0, 1}
                assert arrays[f"block{index}.{part}.{name}.weight_scale"].shape == (1,)
    assert arrays["embedding"].dtype == np.int8 and arrays["logits.weight_codes"].dtype == np.int8
    assert not [
        name for name, array in arrays.items() if array.dtype == np.float32 and array.ndim == 2 and array.shape[0] != decoder.context
    ]
    assert model.opset_import[0].version == 23
    assert [entry.name for entry in model.graph.input] == ["input_ids", *(name for name, _ in state_names(decoder))]
    assert [entry.name for entry in model.graph.output] == ["logits", *(name for _, name in state_names(decoder))]
    assert state_names(decoder)[:2] == [("past_key_values.0.key", "present.0.key"), ("past_key_values.0.value", "present.0.value")]
    runner = Runner(model.SerializeToString(), decoder)
    _, state = runner.advance(np.arange(11), runner.start())
    for array in state:
        codes = array.astype(np.float64) * 127 / np.abs(array).max(-1, keepdims=True)
        np.testing.assert_allclose(codes, np.rint(codes), atol=2e-5)
        assert array.shape[:2] == (1, decoder.kv_heads) and array.shape[2] in (1, 11)


def test_the_same_arguments_give_the_same_bytes():
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from test_decoder import written, small; import hashlib;"
        "print([hashlib.sha256(written(small(block), 'ternary')).hexdigest() for block in ('bitnet', 'drna')])"
    )
    said = {
        subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True).stdout
        for seed in ("0", "1")
    }
    assert len(said) == 1
    assert written(small(), "ternary", 1) != written(small(), "ternary", 2)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"block": "gpt"}, "^block must be one of llama, bitnet, drna, not 'gpt'$"),
        ({"rotation": "none"}, "^rotation must be one of half, interleaved, not 'none'$"),
        ({"width": 36}, "^width must be a multiple of twice the heads, .* 36 is none of 8$"),
        ({"kv_heads": 3}, "^heads must be a multiple of kv_heads, but 4 is none of 3$"),
        ({"layers": 0}, "^layers must be 1 or more, not 0$"),
        ({"block": "drna", "rotation": "interleaved"}, "^a drna block rotates halves: take rotation = 'half'$"),
    ],
)
def test_dimensions_that_make_no_network(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        Decoder(**{"vocabulary": 5, "width": 32, "layers": 1, "heads": 4, "hidden": 8} | changes)


def test_what_a_method_quantises():
    assert precision("float") == precision("float", activations="float", head="float", embedding="float", cache="float")
    bitnet = precision("bitnet", head="ternary")
    assert (bitnet.activations, bitnet.head, bitnet.embedding, bitnet.cache) == ("int8", "ternary", "int8", "int8")
    assert precision("quest-w2a2").activations == "quest" and precision("drna-reference").cache == "float"
    for words, sentence in (
        ({"method": "int8"}, "^method of a language model must be one of float, twn, .*, not 'int8'$"),
        ({"method": "twn", "head": "int4"}, "^head must be one of auto, float, int8, ternary, not 'int4'$"),
        ({"method": "quest-w1a1", "activations": "int8"}, "^quest-w1a1 has activations of its own: leave activations at 'auto'$"),
    ):
        with pytest.raises(UserError, match=sentence):
            precision(**words)


def test_settings_of_a_language_model():
    text = 'method = "bitnet"\nnet = "bitnet"\nhead = "ternary"\nkv_heads = 1\nlearning_rate = 1'
    found = read_settings(text, "run.toml", {"seed": 3, "data": "text:library"})
    assert found == LanguageSettings("bitnet", net="bitnet", head="ternary", kv_heads=1, learning_rate=1.0, seed=3, data="text:library")
    assert found.steps == 1000 and found.decoder(99).context == 64
    for text, sentence in (
        (
            'method = "bitnet"\nnet = "llama"\nchannels = [3]',
            "^run.toml has the unknown key 'channels'; known are method, net, data, seed, epochs, batch, sequence",
        ),
        (
            'method = "bitnet"\nnet = "llama"\ndata = "digits"',
            "^data of a language model must be one of text, text:topics, text:library, not 'digits'$",
        ),
        ('method = "bitnet"\nnet = "llama"\nsequence = 1', r"^sequence must lie in 2\.\.4096, not 1$"),
        ('method = "bitnet"\nnet = "llama"\nkv_heads = 3', "^heads must be a multiple of kv_heads"),
        ('method = "int4"\nnet = "llama"', "^method of a language model must be one of"),
        ('method = "twn"\nnet = 3', "^net must be one of mlp, cnn, llama"),
    ):
        with pytest.raises(UserError, match=sentence):
            read_settings(text, "run.toml", {})


def test_held_out_windows_tile_the_text():
    rows = windows(np.arange(23), 5)
    assert rows.shape == (4, 6) and rows[:, 1:].ravel().tolist() == list(range(1, 21)) and rows[:, 0].tolist() == [0, 5, 10, 15]
    assert len(windows(np.arange(5), 5)) == 0
