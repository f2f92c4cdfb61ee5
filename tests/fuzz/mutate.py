"""Mutations of files: of any bytes, of the fields of an ONNX model, of the entries of an archive. All of them follow one random generator."""

import hashlib
import io
import json
import random
import warnings
import zipfile
from typing import Any

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from tritloom.compiler.image.archive import pack, unpack
from tritloom.errors import ModelError

__all__ = ["mutate"]

INTEGERS = (
    0,
    1,
    -1,
    2,
    3,
    7,
    8,
    16,
    31,
    127,
    128,
    255,
    256,
    32768,
    65535,
    65536,
    1 << 20,
    1 << 24,
    (1 << 31) - 1,
    1 << 31,
    -(1 << 31),
    1 << 32,
    (1 << 63) - 1,
    -(1 << 63),
)
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, 1e-38, 3e38, -3e38, 1e300, float("inf"), float("-inf"), float("nan"))
TEXTS = (
    "",
    "x",
    "y",
    "..",
    "../../etc/passwd",
    "/etc/passwd",
    "a" * 5000,
    "\x00",
    "\n",
    "\u2603",
    "[/bold]",
    "Conv",
    "Relu",
    "Loop",
    "qonnx.custom_op.general",
    "ai.onnx",
)
JSON_VALUES = (
    None,
    True,
    -1,
    0,
    1,
    7,
    255,
    1 << 31,
    1 << 40,
    10**30,
    1.5,
    1e308,
    "",
    "x",
    "1/0",
    "1/3",
    "9" * 5000 + "/1",
    [],
    [[]],
    {},
    {"x": 1},
    [1, 2, 3],
)
TOML_VALUES = (
    "true", "-1", "0", "2.5", "nan", "1e999", "0x7f", "9" * 5000, "0x" + "f" * 5000, "1979-05-27", '""', '"x"', '"\\u001b"', "[]", "[1, [2]]", "{}", "{a = {b = 1}}", "[" * 3000,
    "{a=" * 3000, '["cnn"]', '"twn"', '"evolve"', '"bitnet"', '"layered"', '"ring"', '"trm-sudoku4"',
)  # fmt: skip
_LARGEST = 1 << 20


def mutate(target: str, whole: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """A damaged file: a few mutations of ``whole``, of bytes or of what ``target`` is made of."""
    structured = {"onnx": _fields, "loom": _artefact, "npz": _members, "toml": _lines}[target]
    data = whole
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5))):
        data = structured(data, rng) if rng.random() < 0.7 else _bytes(data, others, rng)
    return data[:_LARGEST]


def _bytes(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """Flip, overwrite, cut, repeat, insert, or join with another file."""
    if not data:
        return rng.randbytes(rng.randrange(64))
    place, size = rng.randrange(len(data)), rng.choice((1, 1, 2, 4, 8, 64))
    match rng.randrange(7):
        case 0:
            return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]
        case 1:
            return data[:place] + rng.choice(INTEGERS).to_bytes(9, "little", signed=True)[:size] + data[place + size :]
        case 2:
            return data[:place]
        case 3:
            return data[:place] + data[place + size :]
        case 4:
            return data[:place] + data[place : place + size] * rng.choice((2, 3, 50)) + data[place + size :]
        case 5:
            return data[:place] + rng.randbytes(size) + data[place:]
        case _:
            other = rng.choice(others)
            return data[:place] + other[rng.randrange(len(other)) :]


# ---- ONNX: any field of any message -----------------------------------------------------------------------------------


def _messages(message: Message) -> list[Message]:
    found = [message]
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for inner in value if field.is_repeated else [value]:
                found += _messages(inner)
    return found


def _fields(data: bytes, rng: random.Random) -> bytes:
    """Change one field of the model, chosen by the kind of message first, so that common ones do not crowd out rare ones."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        return data
    messages = _messages(model)
    kind = rng.choice(sorted({message.DESCRIPTOR.name for message in messages}))
    message = rng.choice([message for message in messages if message.DESCRIPTOR.name == kind])
    present = [field for field, _ in message.ListFields()]
    field = rng.choice(present if present and rng.random() < 0.8 else list(message.DESCRIPTOR.fields))
    try:
        _change(message, field, messages, rng)
        return model.SerializeToString(deterministic=True)
    except (TypeError, ValueError):  # a text that is not UTF-8, a value beyond the field's type
        return data


def _change(message: Message, field: FieldDescriptor, messages: list[Message], rng: random.Random) -> None:
    if rng.random() < 0.1:
        message.ClearField(field.name)
    elif field.is_repeated:
        _change_list(getattr(message, field.name), field, messages, rng)
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        donors = [other for other in messages if other.DESCRIPTOR is field.message_type]
        if donors:
            copy = type(donors[0])()
            copy.CopyFrom(rng.choice(donors))
            getattr(message, field.name).CopyFrom(copy)
    else:
        setattr(message, field.name, _scalar(getattr(message, field.name), field, messages, rng))


def _change_list(values: Any, field: FieldDescriptor, messages: list[Message], rng: random.Random) -> None:
    place = rng.randrange(len(values)) if values else 0
    choice = rng.randrange(4)
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        donors = [other for other in messages if other.DESCRIPTOR is field.message_type]
        if choice == 0 and values:
            del values[place]
        elif donors and (choice < 3 or len(values) < 2):
            # A copy first: the donor may hold the list itself, and would grow while it is copied.
            donor = rng.choice(donors)
            copy = type(donor)()
            copy.CopyFrom(donor)
            values.add().CopyFrom(copy)
        elif len(values) > 1:
            order = list(values)
            copies = [type(order[0])() for _ in order]
            for copy, value in zip(copies, order, strict=True):
                copy.CopyFrom(value)
            rng.shuffle(copies)
            del values[:]
            values.extend(copies)
    elif choice == 0 and values:
        del values[place]
    elif choice == 1 or not values:
        values.append(_scalar(values[place] if values else None, field, messages, rng))
    elif choice == 2:
        values[place] = _scalar(values[place], field, messages, rng)
    else:
        values.extend(list(values)[: rng.choice((1, 4, 100))])


def _scalar(value: Any, field: FieldDescriptor, messages: list[Message], rng: random.Random) -> Any:
    kind = field.cpp_type
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return rng.choice(FLOATS)
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return rng.choice([entry.number for entry in field.enum_type.values])
    if kind == FieldDescriptor.CPPTYPE_STRING and field.type == FieldDescriptor.TYPE_BYTES:
        old = value or b""
        if not old or rng.random() < 0.2:
            return rng.choice(TEXTS).encode()
        return _bytes(old, [old], rng)[:_LARGEST]
    if kind == FieldDescriptor.CPPTYPE_STRING:
        texts = [
            text
            for message in messages
            for other, text in message.ListFields()
            if other.type == other.TYPE_STRING and not other.is_repeated
        ]
        nodes = [text for message in messages if isinstance(message, onnx.NodeProto) for text in (*message.input, *message.output)]
        return rng.choice(rng.choice([list(TEXTS), texts or [""], nodes or [""]]))
    number = rng.choice(INTEGERS) if rng.random() < 0.6 or value is None else value + rng.choice((-2, -1, 1, 2))
    low, high = (-(1 << 31), (1 << 31) - 1) if kind == FieldDescriptor.CPPTYPE_INT32 else (-(1 << 63), (1 << 63) - 1)
    if kind in (FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64):
        low, high = 0, (1 << 64) - 1
    return min(max(number, low), high)


# ---- TOML: values, keys and lines -------------------------------------------------------------------------------------


def _lines(data: bytes, rng: random.Random) -> bytes:
    """Change one value, move or repeat a line, or put a key or a table in."""
    lines = data.decode("utf-8", "replace").split("\n")
    place = rng.randrange(len(lines))
    key, equals, _ = lines[place].partition(" = ")
    match rng.randrange(4):
        case 0 | 1 if equals:
            lines[place] = f"{key} = {rng.choice(TOML_VALUES)}"
        case 2:
            lines.insert(rng.randrange(len(lines)), lines[place])
        case _:
            name = rng.choice(("method", "net", "planes", "hidden", "seed", "a.b", json.dumps(rng.choice(TEXTS))))
            lines.insert(place, rng.choice((f"[{name}]", f"[[{name}]]", f"{name} = {rng.choice(TOML_VALUES)}")))
    return "\n".join(lines).encode()


# ---- archives: entries with the right digests and checksums, so that their contents are read -----------------------------


def _artefact(data: bytes, rng: random.Random) -> bytes:
    """Change one entry of a ``.loom`` file and give it the digest that it then has."""
    try:
        entries = unpack(data, "")
        manifest = json.loads(entries["manifest.json"])
    except (ModelError, KeyError, ValueError):
        return data
    name = rng.choice(sorted(entries))
    if name.endswith(".json"):
        try:
            entries[name] = json.dumps(_changed_json(json.loads(entries[name]), rng)).encode()
        except ValueError:
            return data
    elif rng.random() < 0.1:
        del entries[name]
    else:
        entries[name] = _bytes(entries[name], [entries[other] for other in sorted(entries) if entries[other]], rng)
    if name != "manifest.json" and isinstance(manifest, dict) and rng.random() < 0.98:
        digests = {
            key: {"bytes": len(value), "sha256": hashlib.sha256(value).hexdigest()}
            for key, value in entries.items()
            if key != "manifest.json"
        }
        entries["manifest.json"] = json.dumps({**manifest, "entries": digests}).encode()
    return pack(entries)


def _changed_json(value: Any, rng: random.Random) -> Any:
    """The document with one value replaced, removed or copied from elsewhere in it."""
    places: list[tuple[Any, Any]] = []

    def walk(inner: Any) -> None:
        for key in range(len(inner)) if isinstance(inner, list) else inner if isinstance(inner, dict) else ():
            places.append((inner, key))
            walk(inner[key])

    walk(value)
    if not places:
        return rng.choice(JSON_VALUES)
    holder, key = rng.choice(places)
    match rng.randrange(5):
        case 0:
            del holder[key]
        case 1:
            other, place = rng.choice(places)
            try:
                holder[key] = json.loads(json.dumps(other[place]))
            except (IndexError, KeyError):
                pass
        case 2 if isinstance(holder[key], int) and not isinstance(holder[key], bool):
            holder[key] += rng.choice((-1, 1, 2, 100))
        case 3 if isinstance(holder, dict):
            holder[rng.choice(TEXTS)] = holder.pop(key)
        case _:
            holder[key] = rng.choice(JSON_VALUES)
    return value


def _members(data: bytes, rng: random.Random) -> bytes:
    """Change one array of an ``.npz`` file, or its name, and write the archive anew."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, RuntimeError, NotImplementedError, OverflowError):
        return data
    except Exception:  # what zipfile raises for damaged archives is not all documented
        return data
    if not members:
        return data
    place = rng.randrange(len(members))
    name, content = members[place]
    if rng.random() < 0.15:
        members[place] = (rng.choice(TEXTS).replace("\x00", "0") + rng.choice(("", ".npy")), content)
    elif rng.random() < 0.5:
        header = content[:128].decode("latin-1")
        swap = rng.choice(
            (("'<f8'", "'|O'"), ("'<f8'", "'<U9'"), ("'<f8'", "'>f8'"), ("'<f8'", "'V1000000000'"), ("'<f8'", "[('a', '<i4'), ('b', '|O')]"),
             ("(3, 6)", "(99999999999, 9999999999)"), ("(3, 6)", "(-3, -6)"), ("(3, 6)", "(0, 6)"), ("False", "True"), ("'shape'", "'shap'"), ("{", "{{"), ("(5,)", "(5.0,)"))
        )  # fmt: skip
        members[place] = (name, header.replace(*swap).encode("latin-1") + content[128:])
    else:
        members[place] = (name, _bytes(content, [content], rng))
    stream = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        warnings.simplefilter("ignore")  # two members of one name
        for index, (name, content) in enumerate(members):
            archive.writestr(zipfile.ZipInfo(name or f"member{index}"), content)
    return stream.getvalue()
