import io
import zipfile
from datetime import date

import numpy as np
import pytest

from tritloom.errors import UserError
from tritloom.files import parse_toml, read_arrays, read_bytes, replacing, write_arrays


def test_arrays_survive_a_round_trip_under_any_name(tmp_path):
    arrays = {
        "x": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a/b:0": np.array([[1, -2]], np.int64),
        "file": np.zeros((0, 3), np.float32),
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
    }
    write_arrays(tmp_path / "a.bin", arrays)
    found = read_arrays(tmp_path / "a.bin")
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    np.testing.assert_array_equal(np.load(tmp_path / "a.bin")["a/b:0"], arrays["a/b:0"])


def test_files_of_numpy_are_read(tmp_path):
    values = np.asfortranarray(np.random.default_rng(0).standard_normal((3, 4, 5)))
    np.savez_compressed(tmp_path / "a.npz", values=values)
    np.testing.assert_array_equal(read_arrays(tmp_path / "a.npz")["values"], values)


def test_equal_arrays_give_equal_bytes(tmp_path):
    for name in "ab":
        write_arrays(tmp_path / name, {"x": np.arange(5)})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def _zip(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return stream.getvalue()


def _pickled() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, x=np.array([{"a": 1}], dtype=object))
    return stream.getvalue()


GOOD = _zip(x=_npy(np.arange(1000)))
GIANT = _npy(np.arange(4)).replace(b"(4,)", b"(9999999999999,)")[:128] + bytes(32)
BAD_FILES = {
    "empty": b"",
    "text": b"not arrays\n" * 30,
    "truncated": GOOD[: len(GOOD) // 2],
    "single array": _npy(np.arange(4)),
    "no arrays": _zip(),
    "pickled": _pickled(),
    "not an array inside": _zip(x=b"hello"),
    "cut array": _zip(x=_npy(np.arange(100))[:-9]),
    "giant header": _zip(x=GIANT),
    "flipped": GOOD[:200] + bytes([GOOD[200] ^ 255]) + GOOD[201:],
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_array_file_is_refused_in_one_sentence(tmp_path, kind):
    (tmp_path / "bad.npz").write_bytes(BAD_FILES[kind])
    with pytest.raises(UserError, match=r"^input file '.*bad\.npz' (is not a readable .npz file|holds no arrays)") as caught:
        read_arrays(tmp_path / "bad.npz", "input file")
    assert "\n" not in str(caught.value)


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"^model '.*absent' cannot be read: No such file or directory$"):
        read_bytes(tmp_path / "absent", "model")
    with pytest.raises(UserError, match=r"^array file '.*' cannot be read: Is a directory$"):
        read_arrays(tmp_path)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "out"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(target) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert target.read_text() == "old"


def test_a_written_file_has_the_usual_permissions(tmp_path):
    (tmp_path / "usual").write_text("")
    write_arrays(tmp_path / "a", {"x": np.zeros(1)})
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_folder_that_is_absent_is_named(tmp_path):
    with pytest.raises(UserError, match=r"^output file '.*nowhere/a' cannot be written: No such file or directory$"):
        write_arrays(tmp_path / "nowhere" / "a", {"x": np.zeros(1)})


@pytest.mark.parametrize(("text", "sentence"), [
    ("x = " + "[" * 3000, "is nested too deeply for a file of settings$"),
    ("x = " + "{a=" * 3000, "is nested too deeply for a file of settings$"),
    ("x = " + "9" * 5000, "has an integer of more than 64 bits with its sign$"),
    ("x = 0x" + "f" * 5000, "has an integer of more than 64 bits with its sign"),
    ("[[a]]\nx = [[0, -9223372036854775809]]", "has an integer of more than 64 bits with its sign"),
    ("[[a]]\nx = ['" + "y" * 2001 + "']", "has a key or a string of 2001 characters; at most 2000 are read"),
    ("[" + "y" * 2001 + "]", "has a key or a string of 2001 characters; at most 2000 are read"),
])  # fmt: skip
def test_toml_that_no_settings_look_like_is_refused_in_one_sentence(text, sentence):
    with pytest.raises(UserError, match=f"^file 'x' {sentence}") as caught:
        parse_toml(text, "file 'x'")
    assert len(str(caught.value)) < 200 and "\n" not in str(caught.value)


def test_toml_of_any_kind_is_read():
    tables = parse_toml("a = [true, 1.5, -9223372036854775808, 9223372036854775807]\n[b]\nday = 1979-05-27\nx = {y = 'z'}", "")
    assert tables == {"a": [True, 1.5, -(1 << 63), (1 << 63) - 1], "b": {"day": date(1979, 5, 27), "x": {"y": "z"}}}
