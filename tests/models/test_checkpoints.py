"""Import of ternary checkpoints, against what the formats' own packages write and read (``gguf``, ``safetensors``) and their published formulas."""

import json
import struct

import gguf
import ml_dtypes
import numpy as np
import onnxruntime
import pytest
from gguf import GGMLQuantizationType as Kind
from safetensors.numpy import save_file

import tritloom
from tritloom.cli.main import main
from tritloom.errors import ModelError, TritloomError, UserError
from tritloom.models.checkpoints import LeftOut, TernaryTensor, arrays_of, read_checkpoint, weights_model

MULTIPLIES = {"quantization_config": {"quant_method": "bitnet", "linear_class": "autobitlinear"}}
DIVIDES = {"quantization_config": {"quant_method": "bitnet", "modules_to_not_convert": None}}


def random_trits(seed, *shape):
    return np.random.default_rng(seed).integers(-1, 2, shape).astype(np.int8)


def ternary(path, **options):
    """Ternary tensors by name."""
    return {tensor.name: tensor for tensor in read_checkpoint(path, **options) if isinstance(tensor, TernaryTensor)}


def write_gguf(path, tensors):
    """Each entry: name, float array, kind; GGUF's own quantiser makes the bytes."""
    writer = gguf.GGUFWriter(path, "bitnet")
    writer.add_array("tokenizer.ggml.tokens", ["a", "bc", ""])
    writer.add_array("some.numbers", [1, 2, 3])
    writer.add_float32("a.number", 1.5)
    writer.add_bool("flag", True)
    for name, values, kind in tensors:
        raw = kind not in (Kind.F32, Kind.F16)
        writer.add_tensor(name, gguf.quants.quantize(values, kind) if raw else values, raw_dtype=kind if raw else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("kind", [Kind.TQ1_0, Kind.TQ2_0])
def test_gguf_blocks_are_what_its_package_reads(tmp_path, kind):
    """One scale for all, one a row, one a block, blocks of zeros, and floats that its quantiser ternarised: trits times scale is its dequantised value, to the bit."""
    rng = np.random.default_rng(7)
    trits = random_trits(1, 6, 768).astype(np.float32)
    trits[2, 256:512] = 0
    rows = (2.0 ** np.arange(-2, 4, dtype=np.float32))[:, None]
    blocks = np.repeat(rng.uniform(0.1, 2, (6, 3)).astype(np.float16).astype(np.float32), 256, axis=1)
    cases = {
        "all": trits * 0.375,
        "rows": trits * rows,
        "blocks": trits * blocks,
        "floats": rng.normal(size=(2, 512)).astype(np.float32),
        "zeros": trits * 0,
    }
    cases["single"] = trits[:1, :256] * 0.5
    path = tmp_path / "model.gguf"
    write_gguf(path, [(f"{name}.weight", values, kind) for name, values in cases.items()])
    found = ternary(path)
    assert list(found) == [f"{name}.weight" for name in cases]
    theirs = {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in gguf.GGUFReader(path).tensors}
    for name, tensor in found.items():
        scale = np.repeat(tensor.scale, 256, axis=1) if tensor.scale.ndim == 2 else tensor.scale[:, None]
        np.testing.assert_array_equal(tensor.trits * scale, theirs[name])
        assert tensor.trits.dtype == np.int8 and (tensor.scale > 0).all() and tensor.stored == kind.name
    shapes = {name: found[f"{name}.weight"].scale.shape for name in cases}
    assert shapes == {"all": (1,), "rows": (6,), "blocks": (6, 3), "floats": (2, 2), "zeros": (1,), "single": (1,)}
    assert np.array_equal(found["all.weight"].trits, trits) and found["zeros.weight"].zeros == 1.0


def i2s_bytes(trits, scale, group):
    """One weight after the other, as ``quantize_i2_s`` of bitnet.cpp is described."""
    flat, packed = trits.ravel() + 1, bytearray(trits.size // 4)
    for block in range(trits.size // (4 * group)):
        for j in range(4 * group):
            packed[block * group + j % group] |= int(flat[block * 4 * group + j]) << (6 - 2 * (j // group))
    return bytes(packed) + struct.pack("<f", scale) + bytes(28)


def patched(path, name, kind=None, data=None, **fields):
    """Another type, bytes, axes, sizes or offset for a tensor; the writer knows no I2_S and does not lie."""
    content = bytearray(path.read_bytes())
    tensor = next(tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == name)
    axes = content.index(name.encode()) + len(name)
    if data is not None:
        content[tensor.data_offset : tensor.data_offset + len(data)] = data
    at = {"axes": (axes, "<I"), "size": (axes + 4, "<Q"), "kind": (axes + 20, "<I"), "offset": (axes + 24, "<Q")}
    for field, value in {**fields, **({} if kind is None else {"kind": kind})}.items():
        struct.pack_into(at[field][1], content, at[field][0], value)
    path.write_bytes(content)


@pytest.mark.parametrize(("machine", "group"), [("x86", 32), ("arm", 16)])
def test_i2s(tmp_path, machine, group):
    trits, path = random_trits(2, 3, 256), tmp_path / "model.gguf"

    def write(data, **fields):
        write_gguf(path, [("blk.0.attn_q.weight", np.zeros((3, 256), np.float32), Kind.F32)])
        patched(path, "blk.0.attn_q.weight", kind=36, data=data, **fields)

    write(i2s_bytes(trits, 1.25, group))
    (tensor,) = ternary(path, i2s=machine).values()
    assert np.array_equal(tensor.trits, trits) and tensor.scale.tolist() == [1.25] and tensor.stored == "I2_S"
    other = {"x86": "arm", "arm": "x86"}[machine]
    assert not np.array_equal(ternary(path, i2s=other)["blk.0.attn_q.weight"].trits, trits), "why it must be said"
    with pytest.raises(UserError, match=r"^tensor 'blk.0.attn_q.weight' has the type I2_S, .*; say --i2s x86 or --i2s arm$"):
        ternary(path)
    with pytest.raises(UserError, match=r"^--i2s must be one of x86, arm, not 'mips'$"):
        ternary(path, i2s="mips")
    for data, sentence in (
        (b"\xff" + i2s_bytes(trits, 1, group)[1:], r"is not ternary: 4 of its 2-bit codes are 3"),
        (i2s_bytes(trits, float("nan"), group), r"scale that is negative or not finite$"),
        (i2s_bytes(trits, -1.0, group), r"scale that is negative or not finite$"),
    ):
        write(data)
        with pytest.raises(ModelError, match=sentence):
            ternary(path, i2s=machine)
    write(i2s_bytes(trits, 1, group), size=255)
    with pytest.raises(ModelError, match=r"of 3 x 255 weights is no whole number of I2_S blocks"):
        ternary(path, i2s=machine)


def hugging_face(folder, tensors, config):
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def packed_one_by_one(trits):
    rows = len(trits) // 4
    packed = np.zeros((rows, trits.shape[1]), np.uint8)
    for row in range(len(trits)):
        for column in range(trits.shape[1]):
            packed[row % rows, column] |= (int(trits[row, column]) + 1) << (2 * (row // rows))
    return packed


def test_packed_hugging_face_weights(tmp_path):
    """The example in the documentation of their unpacking, and random trits; the scale multiplies or divides as the configuration says."""
    example = np.array([[0b10100001, 0b00011000], [0b10010000, 0b00001010]], np.uint8)
    trits = random_trits(3, 12, 5)
    tensors = {
        "a.weight": example, "a.weight_scale": np.array([4.0], np.float32), "b.weight": packed_one_by_one(trits),
        "b.weight_scale": np.array([0.5], ml_dtypes.bfloat16), "b.bias": np.ones(12, np.float32), "model.embed_tokens.weight": np.ones((9, 5), np.float32) * 3,
    }  # fmt: skip
    for config, factors in ((MULTIPLIES, (4.0, 0.5)), (DIVIDES, (0.25, 2.0))):
        found = list(read_checkpoint(hugging_face(tmp_path / "net", tensors, config)))
        taken = {tensor.name: tensor for tensor in found if isinstance(tensor, TernaryTensor)}
        assert taken["a.weight"].trits.tolist() == [[0, -1], [-1, 1], [-1, 1], [-1, 1], [1, 0], [0, -1], [1, -1], [1, -1]]
        assert np.array_equal(taken["b.weight"].trits, trits)
        assert [taken[name].scale.tolist() for name in ("a.weight", "b.weight")] == [[factor] for factor in factors]
        left = {tensor.name: tensor.reason for tensor in found if isinstance(tensor, LeftOut)}
        assert left == {"b.bias": "a vector", "model.embed_tokens.weight": "kept in floats by its model"}
    one_file = ternary(tmp_path / "net" / "model.safetensors")
    assert np.array_equal(one_file["b.weight"].trits, trits)


@pytest.mark.parametrize("kind", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_unpacked_weights(tmp_path, kind):
    """Values -g, 0 and g, with the scale in them, beside them, or one a row."""
    trits = random_trits(4, 7, 9)
    rows = np.linspace(0.5, 2, 7)[:, None]
    tensors = {
        "one.weight": (trits * 0.3).astype(kind),
        "rows.weight": (trits * rows).astype(kind),
        "beside.weight": trits.astype(kind),
        "beside.weight_scale": np.array([0.125], np.float32),
    }
    found = ternary(hugging_face(tmp_path / "net", tensors, MULTIPLIES))
    for tensor in found.values():
        assert np.array_equal(tensor.trits, trits), tensor.name
    assert found["one.weight"].scale.tolist() == [float(kind(0.3))] and found["beside.weight"].scale.tolist() == [0.125]
    np.testing.assert_array_equal(found["rows.weight"].scale, np.abs(tensors["rows.weight"].astype(np.float32)).max(1))


def test_shards_and_choice_of_tensors(tmp_path):
    trits, folder = random_trits(5, 4, 3), tmp_path / "net"
    folder.mkdir()
    save_file({"l.0.q.weight": packed_one_by_one(trits)}, folder / "model-00001-of-00002.safetensors")
    save_file(
        {"l.0.q.weight_scale": np.ones(1, np.float32), "l.0.v.weight": np.full((2, 2), 0.5, np.float32) * [[1, 2]]},
        folder / "model-00002-of-00002.safetensors",
    )
    (folder / "config.json").write_text(json.dumps(MULTIPLIES))
    assert np.array_equal(ternary(folder, only=["*.q.*"])["l.0.q.weight"].trits, trits)
    with pytest.raises(
        ModelError, match=r"^tensor 'l.0.v.weight' is not ternary: one row has 2 magnitudes beside 0 \(such as 0.5, 1\), not one; "
    ):
        ternary(folder)
    with pytest.raises(ModelError, match=r"holds no ternary matrix of such a name$"):
        ternary(folder, only=["*.k.*"])
    save_file({"l.0.q.weight": packed_one_by_one(trits)}, folder / "other.safetensors")
    with pytest.raises(ModelError, match=r"^tensor 'l.0.q.weight' is in model-00001-of-00002.safetensors and in other.safetensors$"):
        ternary(folder)


def good():
    return {"q.weight": packed_one_by_one(random_trits(6, 8, 4)), "q.weight_scale": np.ones(1, np.float32)}


@pytest.mark.parametrize(
    ("change", "config", "kind", "sentence"),
    [
        ({"q.weight": np.full((2, 4), 0b11, np.uint8)}, MULTIPLIES, ModelError, r"^tensor 'q.weight' is not ternary: 8 of its 2-bit codes are 3, which"),
        ({"q.weight": np.ones((2, 4), np.int8)}, MULTIPLIES, ModelError, r"^tensor 'q.weight' has the type I8, which is not ternary; floats and packed"),
        ({"r.weight": np.ones((2, 4), np.uint8)}, MULTIPLIES, ModelError, r"^tensor 'r.weight' has the type U8 without a weight_scale beside it"),
        ({"q.weight_scale": np.zeros(1, np.float32)}, MULTIPLIES, ModelError, r"^tensor 'q.weight_scale' must be one number above 0, not \[0.0\]"),
        ({"q.weight_scale": np.ones(8, np.float32)}, MULTIPLIES, ModelError, r"^tensor 'q.weight_scale' must be one number above 0"),
        ({"r.weight": np.full((1, 2), np.inf, np.float32)}, MULTIPLIES, ModelError, r"^tensor 'r.weight' holds values that are not finite$"),
        ({"r.weight": np.ones((2, 2, 2), np.float32)}, MULTIPLIES, ModelError, r"^tensor 'r.weight' has the shape \(2, 2, 2\); only matrices"),
        ({"r.weight": np.ones((0, 2), np.float32)}, MULTIPLIES, ModelError, r"^tensor 'r.weight' has the shape \(0, 2\); only matrices"),
        ({}, None, UserError, r"^the checkpoint has weight_scale tensors, and '.*config.json', which says whether they multiply or divide, is not there"),
        ({}, {}, UserError, r"has no readable quantization_config$"),
        ({}, [], UserError, r"has no readable quantization_config$"),
        ({}, {"quantization_config": {"quant_method": "gptq"}}, ModelError, r"names the quantisation 'gptq' with 'bitlinear'; bitnet with"),
        ({}, {"quantization_config": {"quant_method": "bitnet", "linear_class": "x"}}, ModelError, r"names the quantisation 'bitnet' with 'x'"),
    ],
)  # fmt: skip
def test_what_is_not_ternary_is_refused(tmp_path, change, config, kind, sentence):
    with pytest.raises(kind, match=sentence):
        ternary(hugging_face(tmp_path / "net", {**good(), **change}, config))


def test_other_files(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"abcdef")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    for name, sentence in (
        ("a.bin", "neither a .safetensors file nor a GGUF"),
        ("none.gguf", "cannot be read: No such file"),
        ("folder", "holds no .safetensors"),
    ):
        with pytest.raises(UserError, match=sentence):
            ternary(tmp_path / name)
    with pytest.raises(UserError, match="neither"):
        ternary(tmp_path / "empty.safetensors")
    write_gguf(
        tmp_path / "floats.gguf",
        [
            ("token_embd.weight", np.ones((2, 256), np.float32), Kind.F32),
            ("x.weight", np.arange(64, dtype=np.float32).reshape(2, 32), Kind.Q8_0),
        ],
    )
    with pytest.raises(
        ModelError,
        match=r"^tensor 'x.weight' has the GGUF type 8, which is not ternary; TQ1_0 \(34\), TQ2_0 \(35\), I2_S \(36\) and floats are read$",
    ):
        ternary(tmp_path / "floats.gguf")
    with pytest.raises(ModelError, match=r"holds no ternary matrix of such a name$"):
        ternary(tmp_path / "floats.gguf", only=["y*"])


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"axes": 5}, r"has 5 axes; GGUF files have at most 4$"),
        ({"axes": 2**31}, r"axes; GGUF files have at most 4$"),
        ({"size": 2**40}, r"^tensor 'blk.weight' is cut short: it ends at byte \d+ of a file of \d+$"),
        ({"size": 255}, r"has rows of 255 weights, no multiple of its blocks of 256$"),
        ({"size": 0}, r"has the shape \(2, 0\); only matrices"),
        ({"offset": 2**62}, r"^tensor 'blk.weight' is cut short"),
        ({"kind": 99}, r"has the GGUF type 99, which is not ternary"),
    ],
)
def test_lying_gguf_headers(tmp_path, fields, sentence):
    path = tmp_path / "model.gguf"
    write_gguf(path, [("blk.weight", random_trits(8, 2, 256).astype(np.float32), Kind.TQ2_0)])
    patched(path, "blk.weight", **fields)
    with pytest.raises(ModelError, match=sentence):
        ternary(path)


def test_damaged_files_end_in_one_sentence(tmp_path):
    """Cut anywhere, counts of 2**63, and random bytes changed: a sentence, or the right trits where what changed is not read."""
    path = tmp_path / "model.gguf"
    trits = random_trits(9, 2, 256)
    write_gguf(path, [("blk.weight", trits.astype(np.float32), Kind.TQ2_0)])
    whole, last = path.read_bytes(), gguf.GGUFReader(path).tensors[0]
    for length in range(4, last.data_offset + last.n_bytes, 3):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError):
            ternary(path)
    for at in (4, 8, 16, 24):  # version, tensors, values, length of the first key
        path.write_bytes(whole[:at] + b"\xff" * 8 + whole[at + 8 :])
        with pytest.raises(ModelError):
            ternary(path)
    save_file({"q.weight": trits.astype(np.float32), "k.weight": trits.astype(np.float16)}, tmp_path / "net.safetensors")
    stored = (tmp_path / "net.safetensors").read_bytes()
    rng = np.random.default_rng(10)
    for name, content, header in (("model.gguf", whole, last.data_offset), ("net.safetensors", stored, 160)):
        refused = 0
        for _ in range(150):
            damaged = bytearray(content)
            for at in rng.integers(0, header, 2):
                damaged[at] = rng.integers(0, 256)
            (tmp_path / name).write_bytes(damaged)
            try:
                ternary(tmp_path / name)
            except TritloomError:
                refused += 1
        assert refused > 40, "the test would prove nothing"
    for length in range(1, len(stored), 7):
        (tmp_path / "net.safetensors").write_bytes(stored[:length])
        with pytest.raises(ModelError):
            ternary(tmp_path / "net.safetensors")


def test_names_that_a_terminal_would_obey(tmp_path):
    for name in ("a\x1b[2Jb", " ", "n" * 2001):
        with pytest.raises(ModelError, match=r"is blank, too long or not printable$"):
            ternary(hugging_face(tmp_path / "net", {name: np.ones((2, 2), np.float32)}, None))
    path = tmp_path / "model.gguf"
    write_gguf(path, [(name, np.ones((2, 32), np.float32), Kind.F32) for name in ("first", "other")])
    path.write_bytes(path.read_bytes().replace(b"other", b"first"))
    with pytest.raises(ModelError, match=r"has two tensors of the name 'first'$"):
        ternary(path)


def run_import(capsys, *words, code=0):
    with pytest.raises(SystemExit) as stopped:
        main(["import", *map(str, words)])
    said = capsys.readouterr()
    assert (stopped.value.code or 0) == code, said.err
    return said


def test_from_the_command_line(tmp_path, capsys, monkeypatch):
    """The ONNX file gives the products, exactly where the sums are exact; golden agrees; the arrays are the same weights; a failure leaves nothing."""
    monkeypatch.chdir(tmp_path)
    q, v = random_trits(11, 8, 16), random_trits(12, 3, 16)
    tensors = {
        "l.q.weight": packed_one_by_one(q),
        "l.q.weight_scale": np.array([0.5], np.float32),
        "l.v.weight": (v * np.float32([[1], [2], [4]])),
        "norm.weight": np.ones(16, np.float32),
    }
    hugging_face(tmp_path / "net", tensors, MULTIPLIES)
    found = json.loads(run_import(capsys, "net", "--json").out)
    assert found["output"] == "net.onnx" and [row["zeros"] for row in found["tensors"]] == [(q == 0).mean(), (v == 0).mean()]
    assert found["left_out"] == [{"name": "norm.weight", "shape": [16], "reason": "a vector"}]
    first = (tmp_path / "net.onnx").read_bytes()
    assert "2 matrices, 176 weights; 1 tensors left out" in run_import(capsys, "net").err and (tmp_path / "net.onnx").read_bytes() == first
    x = np.random.default_rng(0).integers(-127, 128, (5, 16)).astype(np.float32)
    session = onnxruntime.InferenceSession(first, providers=["CPUExecutionProvider"])
    products = dict(
        zip([output.name for output in session.get_outputs()], session.run(None, {"l.q.input": x, "l.v.input": x}), strict=True)
    )
    assert np.array_equal(products["l.q"], x @ q.T * np.float32(0.5)) and np.array_equal(products["l.v"], x @ v.T * np.float32([1, 2, 4]))
    verified = tritloom.verify(
        tritloom.compile(first, calibration={"l.q.input": x, "l.v.input": x}), on=["golden"], feeds={"l.q.input": x, "l.v.input": x}
    )
    assert all(comparison.mismatches == 0 for comparison in verified.against("onnx"))
    run_import(capsys, "net", "-o", "net.npz", "-q")
    arrays = dict(np.load(tmp_path / "net.npz"))
    assert np.array_equal(arrays["l.q.trits"], q) and np.array_equal(arrays["l.v.trits"], v) and arrays["l.v.scale"].tolist() == [1, 2, 4]
    assert sorted(arrays) == ["l.q.scale", "l.q.trits", "l.v.scale", "l.v.trits"]
    assert run_import(capsys, "net", "-o", "net.bin", code=1).err.startswith("tritloom: output file 'net.bin' must end in .onnx or .npz")
    before = sorted(path.name for path in tmp_path.iterdir())
    for name in ("bad.onnx", "bad.npz"):
        tensors["l.v.weight"][2, 0] = 0.3
        hugging_face(tmp_path / "net", tensors, MULTIPLIES)
        assert run_import(capsys, "net", "-o", name, code=1).err.startswith(
            "tritloom: tensor 'l.v.weight' is not ternary: one row has 2 magnitudes"
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_block_scales_and_sizes_of_one(tmp_path):
    """Written to ONNX and computed by ONNX Runtime; 2 bits a weight."""
    trits, scales = random_trits(13, 4, 512), np.float32([[1, 2], [0.5, 1], [4, 1], [1, 1]])
    tensors = [
        TernaryTensor("blocks", trits, scales, ""),
        TernaryTensor("one.weight", random_trits(14, 1, 1) | np.int8(1), np.float32([0.5]), ""),
    ]
    model = weights_model("net", tensors, {"source": "x"})
    assert len(next(entry for entry in model.graph.initializer if entry.name == "blocks.trits").raw_data) == trits.size // 4
    x = np.random.default_rng(1).integers(-9, 10, (3, 512)).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    wide, single = session.run(None, {"blocks.input": x, "one.input": x[:, :1]})
    assert np.array_equal(wide, x @ (trits * np.repeat(scales, 256, axis=1)).T)
    assert np.array_equal(single, x[:, :1] * tensors[1].trits * np.float32(0.5))
    assert set(arrays_of(tensors)) == {"blocks.trits", "blocks.scale", "one.trits", "one.scale"}
    with pytest.raises(UserError, match=r"^two tensors would have the name 'one'"):
        weights_model("net", [tensors[1], TernaryTensor("one", trits, scales, "")], {})
