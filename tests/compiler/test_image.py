"""The artefact: round trips, fixed bytes, and a reader that answers anything else with one sentence."""

import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from program_cases import ProgramBuilder, random_program

from tritloom.compiler.image import Artefact, artefact_digest, decode_artefact, encode_artefact, read_artefact, write_artefact
from tritloom.compiler.image.archive import pack, unpack
from tritloom.compiler.ir.program import Convolution, Copy, HostOp, Proof
from tritloom.compiler.schedule import schedule, sim_parameters
from tritloom.errors import ModelError, UserError
from tritloom.hw.arch.parameters import CoreParameters


def artefact(seed=1, operations=7):
    program = random_program(seed, operations)
    small = replace(
        sim_parameters(program),
        rows=8,
        columns=4,
        weight_encoding="trit5",
        weight_words=1 << 14,
        program_words=1 << 14,
        record_words=1 << 14,
    )
    return Artefact(
        source=b"\x08\x07the model \xff\x00",
        program=program,
        schedules={"sim": schedule(program, sim_parameters(program)), "ulx3s-25f": schedule(program, small)},
        settings={"method": "auto", "planes": None, "calibration": {"samples": 12}},
    )


def rich():
    """A program with every field away from its default."""
    builder = ProgramBuilder(4)
    source = builder.input((5, 4, 4))
    left = builder.convolution(source, 5, kernel=(3, 3), pads=(1, 1, 1, 1), planes=2)
    builder.output(builder.sum_pool(builder.concat(builder.add(source, left), builder.max_pool(source, (1, 1))), (2, 2)))
    builder.output(builder.copy(left, np.arange(80)[::-1], (80, 1, 1)))
    program = builder.program('a name with \u00e9, "quotes" and \u2603')
    operations = (
        HostOp(kind="Mul", constants={"B": np.array(2, np.float32), "a": np.arange(3, dtype=np.int8), "b": np.float32([[1.5, -0.0, np.nan, np.inf]])}),
        HostOp(kind="Quantize", constants={"scale": np.array(0.5, np.float32)}, attributes={
            "axis": -1, "high": 7, "keep": True, "limits": [-np.inf, np.inf], "low": -8, "mode": "half_even", "nested": {"shape": (1, -1)}, "none": None,
            "scale": (Fraction(-1, 3**50), Fraction(7)), "slope": 0.1, "table": np.arange(4, dtype=np.uint8),
        }),
    )  # fmt: skip
    tensor = program.tensors[source]
    tensors = {
        **program.tensors,
        source: replace(tensor, bits=4, low=-8, high=7, scale=(Fraction(1, 3),) * 5, zero_point=(-3, 2, 1, 0, 9), source="calibration"),
    }
    convolution = program.operations[0]
    step = replace(convolution.step, proof=Proof(exact=False, reachable=1 << 33, differing=5, largest=1))
    changed = replace(convolution, step=step, weight_method="planes", weight_error=0.125, acc_low=-(1 << 17))
    index = np.arange(80)[::-1].copy()
    return replace(
        program,
        tensors=tensors,
        operations=(changed, *program.operations[1:]),
        inputs=(replace(program.inputs[0], prologue=operations, index=index, shape=("batch", 5, 4, 4)),),
        outputs=(
            replace(
                program.outputs[0],
                witness="before",
                epilogue=(HostOp(kind="Dequantize", constants={"scale": np.array(1, np.float32)}), HostOp(kind="Softmax")),
            ),
            program.outputs[1],
        ),
    )


UNSCHEDULED = {"unscheduled": "the test makes none"}


def assert_same_program(one, two):
    assert repr(one) == repr(two)
    for left, right in zip(one.operations, two.operations, strict=True):
        if isinstance(left, Convolution):
            assert left.weights.dtype == right.weights.dtype == np.int16
            np.testing.assert_array_equal(left.weights, right.weights)
        if isinstance(left, Copy):
            np.testing.assert_array_equal(left.index, right.index)


def assert_same_schedule(one, two):
    for name in ("parameters", "instructions", "layers", "placements", "program_words", "records", "cycles", "macs"):
        assert getattr(one, name) == getattr(two, name), name
    assert one.weights.dtype == two.weights.dtype
    np.testing.assert_array_equal(one.weights, two.weights)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9))
def test_reading_gives_what_was_written(seed, operations):
    before = artefact(seed, operations)
    data = encode_artefact(before)
    after = decode_artefact(data, "x.loom")
    assert (after.source, after.settings, list(after.schedules)) == (before.source, before.settings, sorted(before.schedules))
    assert_same_program(before.program, after.program)
    for board in before.schedules:
        assert_same_schedule(before.schedules[board], after.schedules[board])
    assert encode_artefact(after) == data
    assert artefact_digest(after) == artefact_digest(before)


def test_every_field_survives():
    program = rich()
    data = encode_artefact(Artefact(source=b"", program=program, schedules={}, settings=UNSCHEDULED))
    after = decode_artefact(data, "x.loom").program
    assert_same_program(program, after)
    before_op, after_op = program.inputs[0].prologue[0], after.inputs[0].prologue[0]
    assert list(after_op.constants) == ["B", "a", "b"]
    for name, values in before_op.constants.items():
        assert values.dtype == after_op.constants[name].dtype
        np.testing.assert_array_equal(values, after_op.constants[name])
    np.testing.assert_array_equal(after.inputs[0].index, program.inputs[0].index)
    schedule(after, sim_parameters(after))


def test_an_input_of_which_only_a_part_is_read():
    program = artefact(3).program
    spec = program.inputs[0]
    tensor = program.tensors[spec.tensor]
    wide = (*tensor.shape[:2], tensor.shape[2] + 3)
    index = np.arange(np.prod(wide)).reshape(wide)[..., 3:].ravel()
    part = replace(program, inputs=(replace(spec, shape=("N", *wide), index=index), *program.inputs[1:]))
    data = encode_artefact(Artefact(source=b"", program=part, schedules={}, settings=UNSCHEDULED))
    np.testing.assert_array_equal(decode_artefact(data, "x.loom").program.inputs[0].index, index)
    beyond = replace(part, inputs=(replace(part.inputs[0], index=index + 1), *part.inputs[1:]))
    refused(encode_artefact(Artefact(source=b"", program=beyond, schedules={}, settings=UNSCHEDULED)), "has an index beyond its array")
    refused(
        encode_artefact(
            Artefact(
                source=b"",
                program=replace(part, inputs=(replace(part.inputs[0], index=index - 4), *part.inputs[1:])),
                schedules={},
                settings=UNSCHEDULED,
            )
        ),
        "index beyond",
    )


def test_another_schedule_is_made_from_the_stored_program():
    before = artefact(3)
    after = decode_artefact(encode_artefact(replace(before, schedules={}, settings=UNSCHEDULED)), "x.loom")
    assert_same_schedule(schedule(after.program, before.schedules["sim"].parameters), before.schedules["sim"])


@pytest.mark.parametrize("settings", [{}, {"unscheduled": ""}, {"unscheduled": 1}])
def test_without_a_schedule_there_must_be_a_reason(settings):
    data = encode_artefact(replace(artefact(3), schedules={}, settings=settings))
    refused(data, "it has no schedule, and no reason for that")


def test_bytes_do_not_depend_on_the_hash_seed(tmp_path):
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_image import artefact, artefact_digest, encode_artefact\n"
        "import hashlib; made = artefact(9); print(hashlib.sha256(encode_artefact(made)).hexdigest(), artefact_digest(made).hex())\n"
    )
    results = set()
    for hash_seed in ("0", "1", "4711"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        result = subprocess.run(
            [sys.executable, "-c", script, str(Path(__file__).parent)],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        results.add(result.stdout)
    assert len(results) == 1


def test_the_file_is_a_stored_zip_with_fixed_dates(tmp_path):
    path = tmp_path / "model.loom"
    made = artefact()
    write_artefact(path, made)
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        assert archive.read("source.onnx") == made.source
        manifest = archive.read("manifest.json")
        assert np.load(io.BytesIO(archive.read("arrays/00000.npy")), allow_pickle=False).size
    assert [info.filename for info in infos] == sorted(info.filename for info in infos)
    assert {(info.compress_type, info.date_time, info.extra, info.comment) for info in infos} == {(0, (1980, 1, 1, 0, 0, 0), b"", b"")}
    assert artefact_digest(made) == hashlib.sha256(manifest).digest()[:8]
    assert json.loads(manifest)["schema"] == 4
    assert read_artefact(path).source == made.source
    assert os.listdir(tmp_path) == ["model.loom"]


def test_digest_changes_with_every_part():
    made = artefact()
    others = [
        replace(made, source=b"other"), replace(made, settings={}), replace(made, schedules={}), replace(made, program=replace(made.program, name="other")),
    ]  # fmt: skip
    assert len({artefact_digest(other) for other in (made, *others)}) == 5


def test_failed_writes_leave_nothing(tmp_path, monkeypatch):
    made = artefact()
    with pytest.raises(UserError, match=r"cannot be written: No such file or directory$"):
        write_artefact(tmp_path / "missing" / "model.loom", made)
    path = tmp_path / "model.loom"
    path.write_bytes(b"precious")

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_artefact(path, made)
    assert path.read_bytes() == b"precious"
    assert os.listdir(tmp_path) == ["model.loom"]


def test_unreadable_paths(tmp_path):
    for path in (tmp_path / "absent.loom", tmp_path):
        with pytest.raises(UserError, match=r"^artefact .* cannot be read: "):
            read_artefact(path)


DATA = encode_artefact(artefact())
ENTRIES = unpack(DATA, "x")


def refused(data, match="."):
    with pytest.raises(ModelError, match=match) as caught:
        decode_artefact(data, "x.loom")
    message = str(caught.value)
    assert message.startswith("x.loom")
    assert "\n" not in message and len(message) < 600
    return message


def sealed(entries):
    """An archive whose manifest has the right digests, so that the contents alone must be refused."""
    entries = {name: data for name, data in entries.items() if name != "manifest.json"}
    manifest = json.loads(ENTRIES["manifest.json"])
    manifest["entries"] = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in entries.items()}
    return pack({**entries, "manifest.json": json.dumps(manifest).encode()})


def test_resealing_alone_is_accepted():
    assert decode_artefact(sealed(ENTRIES), "x.loom").source == artefact().source


def test_every_truncation_is_refused():
    rng = np.random.default_rng(1)
    for length in [0, 1, 22, len(DATA) - 1, *rng.integers(0, len(DATA), 60).tolist()]:
        refused(DATA[:length])


def test_every_flipped_bit_is_refused():
    rng = np.random.default_rng(2)
    directory = DATA.index(b"PK\x01\x02")
    positions = [
        *range(40),
        *rng.integers(0, len(DATA), 120).tolist(),
        *rng.integers(directory, len(DATA), 120).tolist(),
        *range(len(DATA) - 22, len(DATA)),
    ]
    for position in positions:
        damaged = bytearray(DATA)
        damaged[position] ^= 1 << int(rng.integers(0, 8))
        refused(bytes(damaged))


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=300), st.integers(0, len(DATA)))
def test_garbage_is_refused(garbage, position):
    refused(garbage)
    if garbage:
        refused(DATA[:position] + garbage + DATA[position:])


def test_other_zip_files_are_refused():
    def zipped(entries, **options):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", **options) as archive:
            for name, data in entries:
                archive.writestr(name, data)
        return buffer.getvalue()

    refused(zipped(ENTRIES.items()), "its bytes are not those of its entries")
    refused(
        zipped([("bomb", bytes(1 << 24))], compression=zipfile.ZIP_DEFLATED), "has compressed entries; an artefact is stored uncompressed"
    )
    refused(zipped([]), "entry manifest.json is missing")
    with pytest.warns(UserWarning, match="Duplicate name"):
        twice = zipped([*ENTRIES.items(), ("source.onnx", b"")])
    refused(twice, "has two entries called 'source.onnx'")


def test_a_declared_size_beyond_the_file_is_refused():
    directory = DATA.index(b"PK\x01\x02")
    damaged = bytearray(DATA)
    damaged[directory + 20 : directory + 28] = (0x7FFFFFFF).to_bytes(4, "little") * 2
    refused(bytes(damaged), "declares more data than it has")


@pytest.mark.parametrize(
    "schema,match",
    [(1, "has artefact version 1, this tritloom reads version 4"), ("1", "schema: '1' is not an integer"), (None, "None is not")],
)
def test_unknown_versions_are_refused(schema, match):
    manifest = json.loads(ENTRIES["manifest.json"]) | {"schema": schema}
    refused(pack({**ENTRIES, "manifest.json": json.dumps(manifest).encode()}), match)


def test_entries_are_exactly_those_of_the_manifest():
    refused(pack({**ENTRIES, "source.onnx": b"other"}), "entry source.onnx does not have the digest that the manifest gives")
    refused(pack({**ENTRIES, "extra": b""}), "entry 'extra' is not both in the file and in its manifest")
    for name in ("../evil", "/etc/passwd", "schedules/sim/other.bin", "schedules/SIM/program.bin", "arrays/1.npy", ""):
        refused(sealed({**ENTRIES, name: b""}), "has no place in an artefact")
    refused(sealed({**ENTRIES, "arrays/99999.npy": b""}), "nothing refers to arrays/99999.npy")
    refused(
        sealed({name: data for name, data in ENTRIES.items() if name != "arrays/00000.npy"}), "array 'arrays/00000.npy' .* does not exist"
    )
    for name in ENTRIES:
        refused(pack({other: data for other, data in ENTRIES.items() if other != name}))
        if name.startswith("schedules"):
            refused(sealed({other: data for other, data in ENTRIES.items() if other != name}), "has no")


JSON_CASES = [b"", b"{", b"[" * 100000, b"NaN", b"\xff", b"1" * 10000, b"{}", b"[]", b"null", b'"x"']


@pytest.mark.parametrize(
    "name", ["manifest.json", "program.json", "schedules/sim/parameters.json", "schedules/sim/layers.json", "schedules/sim/placements.json"]
)
def test_broken_json_is_refused(name):
    for content in JSON_CASES:
        refused(pack({**ENTRIES, name: content}) if name == "manifest.json" else sealed({**ENTRIES, name: content}))


def leaves(value, path=()):
    """Paths to every value inside a JSON document."""
    yield path
    for key in range(len(value)) if isinstance(value, list) else value if isinstance(value, dict) else ():
        yield from leaves(value[key], (*path, key))


STRANGE = [None, True, -1, 0, 1, 7, 1 << 40, 10**30, 1.5, "", "x", "1/0", "9" * 5000 + "/1", [], [[]], {}, {"x": 1}, [1, 2, 3]]


@settings(deadline=None, max_examples=400)
@given(st.data())
def test_changed_json_values_never_crash_the_reader(data):
    name = data.draw(
        st.sampled_from(["program.json", "schedules/sim/parameters.json", "schedules/sim/layers.json", "schedules/sim/placements.json"])
    )
    value = json.loads(ENTRIES[name])
    path = data.draw(st.sampled_from(list(leaves(value))))
    strange = data.draw(st.sampled_from(STRANGE))
    if not path:
        value = strange
    else:
        inner = value
        for key in path[:-1]:
            inner = inner[key]
        if data.draw(st.booleans()) and isinstance(inner, dict):
            del inner[path[-1]]
        else:
            inner[path[-1]] = strange
    changed = sealed({**ENTRIES, name: json.dumps(value).encode()})
    try:
        after = decode_artefact(changed, "x.loom")
    except ModelError as error:
        assert "\n" not in str(error)
        return
    encode_artefact(after)
    schedule(after.program, sim_parameters(after.program))


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["sim", "ulx3s-25f"]))
def test_changed_instructions_never_leave_the_memories(seed, board):
    """What the reader accepts, the core runs without an address beyond a memory."""
    from tritloom.hw.arch.link import Space
    from tritloom.hw.model import CoreModel

    rng = np.random.default_rng(seed)
    name = f"schedules/{board}/program.bin"
    words = np.frombuffer(ENTRIES[name], "<u8").copy()
    position = int(rng.integers(0, len(words)))
    words[position] = (
        words[position] ^ np.uint64(1 << int(rng.integers(0, 64)))
        if rng.integers(0, 2)
        else rng.integers(0, (1 << 64) - 1, dtype=np.uint64, endpoint=True)
    )
    try:
        after = decode_artefact(sealed({**ENTRIES, name: words.tobytes()}), "x.loom").schedules[board]
    except ModelError as error:
        assert "\n" not in str(error)
        return
    model = CoreModel(after.parameters)
    model.write(Space.PROGRAM, 0, words.tobytes())
    model.write(Space.WEIGHTS, 0, after.weights.tobytes())
    model.write(Space.RECORDS, 0, after.records)
    model.run()
    assert model.cycles == after.cycles


def layer(value, kind):
    return next(operation for operation in value["operations"] if operation["type"] == kind)


def all_kinds():
    """An artefact of the rich program, whose operations the cases below change."""
    program = rich()
    return unpack(
        encode_artefact(Artefact(source=b"", program=program, schedules={"sim": schedule(program, sim_parameters(program))})), "x"
    )


RICH = all_kinds()

PROGRAM_CASES = [
    (lambda p: layer(p, "Convolution").update(input="nowhere"), "reads a tensor before it is made"),
    (lambda p: layer(p, "Convolution").update(output="nowhere"), "writes a tensor that does not exist"),
    (lambda p: layer(p, "Convolution").update(output="t0"), "writes a tensor that exists already"),
    (lambda p: layer(p, "Convolution").update(groups=2), "has 2 groups"),
    (lambda p: layer(p, "Convolution").update(planes=1), "has weights beyond 1 digit planes"),
    (lambda p: layer(p, "Convolution").update(step=None), "writes accumulators into a tensor of codes"),
    (lambda p: layer(p, "Convolution").update(acc_low=1, acc_high=0), "has an empty accumulator range"),
    (lambda p: layer(p, "Convolution")["window"].update(strides=[2, 1]), "has a window that does not give its output's size"),
    (lambda p: layer(p, "Convolution")["window"].update(kernel=[3, 3, 3]), "kernel: list is not a list of 2"),
    (lambda p: layer(p, "Convolution")["step"].update(channels=4), "step function has a record table|step functions for 4 of 5 channels"),
    (lambda p: layer(p, "Convolution")["step"].update(low=127, high=-128), "step function has low above high"),
    (lambda p: layer(p, "SumPool")["regions"].pop(), "has regions that do not tile its output"),
    (
        lambda p: layer(p, "SumPool").update(regions=[layer(p, "SumPool")["regions"][0] | {"region": [y, y + 1, 0, 3]} for y in (0, 0, 1)]),
        "do not tile",
    ),
    (lambda p: layer(p, "SumPool")["regions"][0].update(region=[0, 9, 0, 1]), "has a region outside its output"),
    (lambda p: layer(p, "Rescale").update(channel_offset=6), "does not fit its output"),
    (lambda p: layer(p, "Rescale").update(channel_offset=1), "writes channels that exist already"),
    (lambda p: layer(p, "Add").update(right="t3"), "reads a tensor before|adds tensors of unlike shapes"),
    (lambda p: layer(p, "MaxPool").update(type="MinPool"), "'MinPool' is not an operation"),
    (lambda p: p["operations"].pop(), "output 'out_t6' has no tensor"),
    (lambda p: p["tensors"][0].update(shape=[1 << 20, 1 << 20, 1]), "has more than"),
    (lambda p: p["tensors"][0].update(bits=9), "has 9 bits"),
    (lambda p: p["tensors"][0].update(low=8), "has an empty range"),
    (lambda p: p["tensors"][0].update(high=128), "codes beyond 8 bits"),
    (lambda p: p["tensors"][0].update(scale=["1/2", "1/2"]), "has 2 scales"),
    (lambda p: p["tensors"][0].update(scale=["1/0"]), "'1/0' is not a fraction"),
    (lambda p: p["tensors"].append(p["tensors"][0]), "two tensors have one name"),
    (lambda p: p["inputs"][0].update(prologue=[]), "is not quantised"),
    (lambda p: p["inputs"][0]["prologue"][0].update(kind="System"), "'System' is not a host operation"),
    (lambda p: p["inputs"].clear(), "reads a tensor before it is made"),
    (lambda p: p["outputs"].append(p["outputs"][0]), "two outputs have one name"),
    (lambda p: p["outputs"][0].update(tensor="nowhere"), "has no tensor"),
    (lambda p: p["outputs"].clear(), "there is no input or no output"),
    (lambda p: layer(p, "Copy")["index"].update(shape=[8, 10, 1]), "is not of dtype"),
    (lambda p: layer(p, "Copy")["index"].update(dtype="|O"), "does not exist"),
]


@pytest.mark.parametrize("change,match", PROGRAM_CASES)
def test_programs_that_do_not_fit_together_are_refused(change, match):
    value = json.loads(RICH["program.json"])
    change(value)
    refused(sealed({**RICH, "program.json": json.dumps(value).encode()}), match)


def test_a_small_file_does_not_unfold_to_a_large_program():
    builder = ProgramBuilder()
    source = builder.input((3, 1, 1))
    builder.output(builder.convolution(source, 2, step=builder.step(2, shared=True)))
    entries = unpack(encode_artefact(Artefact(source=b"", program=builder.program(), schedules={})), "x")
    value = json.loads(entries["program.json"])
    layer(value, "Convolution")["step"].update(channels=1 << 29)
    refused(sealed({**entries, "program.json": json.dumps(value).encode()}), "step functions have more than 4194304 channels")


SIM = "schedules/sim/"
SCHEDULE_CASES = [
    ("parameters.json", lambda v: v.update(isa=1), "instruction set version 1 is unknown, this version knows 4"),
    ("parameters.json", lambda v: v.update(rows=5), "rows must be a power of two"),
    ("parameters.json", lambda v: v.update(extra=5), "has not exactly the fields"),
    ("parameters.json", lambda v: v.update(accumulator_bits=16), "needs accumulators of 18 bits, the core has 16"),
    ("parameters.json", lambda v: v.update(activation_words=1), "impossible place"),
    ("parameters.json", lambda v: v.update(weight_words=1), "weights.bin has"),
    ("parameters.json", lambda v: v.update(record_words=1), "records.bin has"),
    ("parameters.json", lambda v: v.update(program_words=8), "program.bin has"),
    ("placements.json", lambda v: v["t0"].update(address=1), "impossible place for tensor 't0'"),
    ("placements.json", lambda v: v["t0"].update(pixel_bytes=3), "impossible place for tensor 't0'"),
    ("placements.json", lambda v: v.pop("t0"), "does not place exactly the program's tensors"),
    ("layers.json", lambda v: v.update(cycles=1), "does not agree"),
    ("layers.json", lambda v: v["layers"][0].update(instructions=2), "counts|does not agree"),
    ("layers.json", lambda v: v["layers"].pop(), "has not one layer for each operation"),
]


@pytest.mark.parametrize("name,change,match", SCHEDULE_CASES)
def test_schedules_that_do_not_fit_their_program_are_refused(name, change, match):
    value = json.loads(RICH[SIM + name])
    change(value)
    refused(sealed({**RICH, SIM + name: json.dumps(value).encode()}), match)


@pytest.mark.parametrize(
    "name,change,match",
    [
        ("weights.bin", lambda data: data[:-1], "weights.bin has"),
        ("weights.bin", lambda data: b"", r"instruction 0 \(MATRIX\) uses weight word \d+, but there are 0"),
        ("records.bin", lambda data: data[:-1], "records.bin has"),
        ("records.bin", lambda data: data[:-1] + b"\x01", "records.bin has no record at"),
        ("records.bin", lambda data: data[:14] + b"\x7e\x00" + data[16:], "records.bin has no record at 0"),
        ("program.bin", lambda data: data[:-8], "does not end at its only HALT|is cut"),
        ("program.bin", lambda data: data + data[-8:], "does not end at its only HALT"),
        ("program.bin", lambda data: data[:-8] + b"\x3f" + bytes(7), "unknown opcode 0x3f"),
        ("program.bin", lambda data: b"\x80" + bytes(7) + data, "which no stored program has"),
        ("program.bin", lambda data: data[:3] + bytes([data[3] | 0x80]) + data[4:], "which no stored program has"),
        ("program.bin", lambda data: data[:-8] + b"\x00\x01" + bytes(6), "has bits that no instruction uses"),
        ("program.bin", lambda data: data[:-8] + data[8 * 19 : 8 * 29] + data[-8:], "layers.json counts 8 instructions, program.bin has 9"),
        ("program.bin", lambda data: data[:-1], "program.bin has"),
        ("program.bin", lambda data: b"", "program.bin has"),
    ],
)
def test_memory_images_that_do_not_fit_are_refused(name, change, match):
    refused(sealed({**RICH, SIM + name: change(RICH[SIM + name])}), match)


def test_parameters_of_the_default_board_are_valid():
    assert (
        CoreParameters.from_json({key: value for key, value in json.loads(RICH[SIM + "parameters.json"]).items() if key != "isa"}).rows
        == 16
    )
