"""The packaged language models: what they claim, judged by ONNX Runtime."""

import json
import platform

import numpy as np
import onnx
import pytest
from decoder_cases import Runner
from onnx import numpy_helper

from tritloom.hw.arch.trits import encode_trits
from tritloom.models import zoo
from tritloom.models.data import text
from tritloom.models.train.language_settings import LanguageSettings
from tritloom.models.train.perplexity import evaluate, windows
from tritloom.models.train.settings import read_settings

NAMES = [name for name in zoo.names() if name.startswith("charlm_")]


def settings(name: str) -> LanguageSettings:
    found = read_settings(zoo.path(name).with_suffix(".toml").read_text(), name, {})
    assert isinstance(found, LanguageSettings)
    return found


def held_out(vocabulary: list[str]) -> np.ndarray:
    """The held-out text of the running Python in the model's codes, without characters that it does not know."""
    data = text.load("topics")
    known = {letter: code for code, letter in enumerate(vocabulary)}
    return np.array([known[data.alphabet[code]] for code in data.held_out if data.alphabet[code] in known])


@pytest.mark.parametrize("name", NAMES)
def test_claims_about_the_held_out_text(name):
    """The same characters and nats as the file says, with the Python that it was trained with; about the same with another, whose help texts are others."""
    said = zoo.properties(name)
    figures = json.loads(zoo.path(name).with_suffix(".json").read_text())
    assert figures["settings"] == settings(name).as_dict() and figures["name"] == name
    score = evaluate(zoo.path(name).read_bytes(), windows(held_out(json.loads(said["vocabulary"])), int(said["context"])))
    if platform.python_version() in said["data"]:
        assert abs(score.nats - figures["nats_exported"]) < 1e-3 and abs(score.correct - figures["correct"]) <= 20
        assert score.characters == figures["characters"]
        assert f"({figures['correct']} of {figures['characters']})" in said["accuracy"]
    assert abs(score.nats - figures["nats_exported"]) < 0.2


@pytest.mark.parametrize("name", NAMES)
def test_weights_and_cache_fit_a_small_fpga(name):
    """Trits at five a byte, embeddings of 8 bits, 192 positions of keys and values with a scale of 16 bits for each position: less than 140 kB."""
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(zoo.path(name)).graph.initializer}
    trits = [array for key, array in arrays.items() if key.endswith("weight_codes")]
    assert len(trits) == 3 * 7 + 1 and all(set(np.unique(array)) == {-1, 0, 1} for array in trits)
    assert arrays["embedding"].dtype == np.int8
    decoder = settings(name).decoder(len(arrays["embedding"]))
    cache = decoder.layers * 2 * 192 * decoder.kv_heads * (decoder.head_size + 2)
    packed = sum(encode_trits(array.reshape(1, -1), "trit5").size for array in trits)
    assert decoder.context == 192 and packed + arrays["embedding"].nbytes + cache < 140_000


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_is_continued_through_the_cache(name):
    """Greedily, token by token, as over the whole sequence."""
    vocabulary = json.loads(zoo.properties(name)["vocabulary"])
    runner = Runner(zoo.path(name).read_bytes(), settings(name).decoder(len(vocabulary)))
    prompt = np.array([vocabulary.index(letter) for letter in 'The "with" statement is used to '])
    logits, state = runner.advance(prompt, runner.start())
    tokens, stepped = list(prompt), [logits]
    for _ in range(40):
        tokens.append(int(stepped[-1][-1].argmax()))
        logits, state = runner.advance(np.array(tokens[-1:]), state)
        stepped.append(logits)
    whole, found = runner.whole(np.array(tokens)), np.concatenate(stepped)
    assert np.abs(found - whole).max() < 0.2 * whole.std() and (found.argmax(-1) == whole.argmax(-1)).mean() > 0.95
    written = "".join(vocabulary[token] for token in tokens[len(prompt) :])
    assert written.count(" ") >= 3 and len(set(written)) > 6, written
