import re
from html.parser import HTMLParser

import numpy as np
import onnx
import pytest

import tritloom
from tritloom.compiler.ir.program import Proof
from tritloom.report import Accuracy, BuildFacts, Sample, render
from tritloom.report.charts import bars, count, split_bars, usage_bars
from tritloom.report.exactness import exactness
from tritloom.report.facts import layer_facts, signed_bits

VOID = {"meta", "br", "img", "link", "rect", "path"}


class _Balance(HTMLParser):
    """Collects open tags, text and addresses."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.addresses = [], "", []

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def page(mlp):
    compiled = tritloom.compile(mlp)
    built = BuildFacts(
        board="Board",
        bitstream="top.bit",
        fmax_mhz=81.234,
        clock_mhz=80.0,
        macs_per_cycle=256,
        utilisation={"LUT4": {"used": 5, "available": 20}},
    )
    samples = [Sample(np.eye(8), "1", "1"), Sample(np.zeros((8, 8)), "2", "<b>7</b>")]
    return render(
        compiled,
        board="sim",
        accuracies=[Accuracy("golden", 97, 100)],
        verification=tritloom.verify(compiled, on=["golden"], samples=3),
        built=built,
        samples=samples,
        versions={"numpy": "2"},
    )


def test_the_page_is_well_formed_and_needs_no_network(page):
    parser = _Balance()
    parser.feed(page)
    assert parser.open == []
    assert parser.addresses == []
    assert not re.search(r"https?://|@import|url\(", page)


def test_the_page_says_what_was_measured(page):
    parser = _Balance()
    parser.feed(page)
    for text in ("97.00 %", "97 of 100 correct", "81.2", "5 of 20", "exact, proven", "classifier", "top.bit"):
        assert text in parser.text


def test_text_from_outside_is_escaped(page):
    assert "<b>7</b>" not in page
    assert "&lt;b&gt;7&lt;/b&gt;" in page
    assert "<script" not in bars([("<script>", 1, "<script>")], "<script>")


def test_bars_are_shares_of_the_largest():
    assert re.findall(r"width: ([\d.]+)%", bars([("a", 50, ""), ("b", 200, ""), ("c", 0, "")], "t")) == ["25.00", "100.00"]
    assert re.findall(r"width: ([\d.]+)%", split_bars([("a", (1, 2, 1), "")], "t")) == ["25.00", "50.00", "25.00"]
    assert re.findall(r"width: ([\d.]+)%", usage_bars([("a", 3, 4), ("b", 0, 0)], "t")) == ["75.00", "25.00", "100.00"]
    assert bars([], "t") == '<div class="chart" role="img" aria-label="t"></div>'


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (9999, "9999"), (10_000, "10\u202f000"), (-12_345_678, "-12\u202f345\u202f678")])
def test_long_numbers_are_grouped(value, text):
    assert count(value) == text


def test_the_same_facts_give_the_same_bytes(mlp):
    pages = {render(tritloom.compile(mlp), board="sim", versions={"b": "1", "a": "2"}) for _ in range(2)}
    assert len(pages) == 1


def test_a_page_without_build_and_samples(mlp):
    text = render(tritloom.compile(mlp), board="sim")
    assert "Bitstream for" not in text
    assert "Samples" not in text


def test_layer_facts_count_digits(mlp):
    compiled = tritloom.compile(mlp)
    facts = layer_facts(compiled.program, compiled.schedule())
    assert [fact.kind for fact in facts] == ["dense", "dense"]
    assert sum(facts[0].trits) == 30
    assert sum(facts[1].trits) == 15 * facts[1].planes
    assert facts[0].planes == 1
    assert isinstance(facts[0].proof, Proof)
    assert facts[0].proof.exact


@pytest.mark.parametrize(("low", "high", "bits"), [(0, 0, 1), (-1, 0, 1), (0, 1, 2), (-128, 127, 8), (-129, 0, 9), (-1, 128, 9)])
def test_signed_bits(low, high, bits):
    assert signed_bits(low, high) == bits


def test_exactness_says_where_every_integer_comes_from(mlp, float_mlp, rng):
    known = exactness(tritloom.compile(mlp).program)
    tensors = {tensor["name"]: tensor for tensor in known["tensors"]}
    given, hidden, result = tensors.values()
    assert (given["bits"], given["low"], given["high"], given["scale"], given["zero_point"]) == (8, -128, 127, ["1/16"], [0])
    assert hidden["scale"] == ["1/8"] and hidden["low"] == 0 and hidden["range_from"] == "a quantiser of the model"
    assert result["bits"] == 32 and result["scale"] == ["1/32"] and result["range_from"] == "sums of weights and codes"
    first, second = known["layers"]
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor).astype(int) for tensor in onnx.load(mlp).graph.initializer}
    weights = np.abs(stored["first_codes"]).sum(axis=0).max()
    assert first["accumulator"]["bits"] == int(np.ceil(np.log2(128 * weights + 1))) + 1
    assert -128 * weights <= first["accumulator"]["low"] < first["accumulator"]["high"] <= 128 * weights
    # Every accumulator that a channel can reach was looked at, both ends included.
    positive, negative = (np.clip(sign * stored["first_codes"], 0, 1).sum(axis=0) for sign in (1, -1))
    assert first["proof"] == {"exact": True, "reachable": int((255 * (positive + negative) + 1).sum()), "differing": 0, "largest": 0}
    assert second["proof"] is None
    samples = {"x": rng.normal(size=(9, 4)).astype(np.float32)}
    calibrated = exactness(tritloom.compile(float_mlp, calibration=samples).program)
    assert [tensor["range_from"] for tensor in calibrated["tensors"]] == [
        "calibration samples",
        "calibration samples",
        "sums of weights and codes",
    ]


def test_a_step_that_is_not_exact_is_counted_in_the_report(cli, monkeypatch, mlp):
    plain = cli("compile", mlp, "--json")
    assert "1 of 1 step functions are proven exact" in plain.err
    assert [layer["name"] for layer in plain.json["layers"]] == ["hidden", "classifier"]
    monkeypatch.setattr("tritloom.report.exactness.proof_of", lambda operation: Proof(exact=False, reachable=99, differing=3, largest=2))
    assert "layer 'hidden': 3 of 99 reachable inputs differ from the float graph, by 2 at most" in cli("compile", mlp).err
