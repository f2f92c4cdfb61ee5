import numpy as np
import onnxruntime
import pytest

import tritloom
from tritloom.errors import MissingToolError, UserError
from tritloom.session import InferenceSession


def _feeds(samples: int) -> np.ndarray:
    return np.random.default_rng(1).integers(-128, 128, (samples, 6)).astype(np.float32) / 16


def test_public_names():
    for name in tritloom.__all__:
        assert getattr(tritloom, name).__name__ == name
    assert set(tritloom.__all__) <= set(dir(tritloom))
    unknown = "Session"
    with pytest.raises(AttributeError, match=r"^module 'tritloom' has no attribute 'Session'$"):
        getattr(tritloom, unknown)


@pytest.mark.parametrize("kind", ["path", "text", "bytes", "compiled", "file", "file bytes"])
def test_a_session_opens_whatever_holds_a_model(mlp, tmp_path, kind):
    compiled = tritloom.compile(mlp)
    compiled.save(tmp_path / "m.loom")
    source = {
        "path": mlp, "text": str(mlp), "bytes": mlp.read_bytes(), "compiled": compiled, "file": tmp_path / "m.loom",
        "file bytes": (tmp_path / "m.loom").read_bytes(),
    }[kind]  # fmt: skip
    (outputs,) = InferenceSession(source).run(None, {"x": _feeds(2)})
    np.testing.assert_array_equal(outputs, InferenceSession(compiled).run(["y"], {"x": _feeds(2)})[0])


def test_it_answers_like_onnx_runtime(mlp):
    ours, theirs = InferenceSession(str(mlp)), onnxruntime.InferenceSession(str(mlp), providers=["CPUExecutionProvider"])
    for mine, other in zip([*ours.get_inputs(), *ours.get_outputs()], [*theirs.get_inputs(), *theirs.get_outputs()], strict=True):
        assert (mine.name, mine.shape, mine.type) == (other.name, other.shape, other.type)
    for row in _feeds(40):
        (mine,), (other,) = ours.run(None, {"x": row[None]}), theirs.run(None, {"x": row[None]})
        assert (mine.shape, mine.dtype) == (other.shape, other.dtype)
        np.testing.assert_allclose(mine, other, rtol=0, atol=1e-6)


def test_grids_are_told(mlp):
    (argument,) = InferenceSession(mlp).get_inputs()
    assert argument.quant.scale[0] == 1 / 16
    assert (argument.quant.bits, argument.quant.low, argument.quant.high) == (8, -128, 127)


def test_cycles_add_up_over_the_batch(mlp):
    session = InferenceSession(mlp)
    assert session.last_cycles is None
    session.run(None, {"x": _feeds(3)})
    assert session.last_cycles == 3 * session.model.schedule().cycles


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"providers": ["gpu"]}, r"^provider must be one of golden, amaranth, verilator, netlist, bitstream, not 'gpu'$"),
        ({"providers": "golden"}, r"^providers must be a list of names, not 'golden'; write \['golden'\]$"),
        ({"providers": []}, r"^providers must name at least one of"),
        ({"providers": [("golden", {"bord": "sim"})]}, r"^provider 'golden' has no option 'bord'; its only option is 'board'$"),
        ({"providers": ["golden"], "provider_options": []}, r"^provider_options must have one entry a provider, 1, not 0$"),
        ({"providers": ["golden"], "provider_options": [{"board": "ulx4s"}]}, r"^unknown board 'ulx4s'"),
        ({"sess_options": object()}, r"^sess_options must be None"),
    ],
)
def test_wrong_arguments(mlp, arguments, message):
    with pytest.raises(UserError, match=message):
        InferenceSession(mlp, **arguments)


def test_a_missing_tool_is_an_error_unless_another_provider_is_listed(mlp, monkeypatch):
    from tritloom.sim import backends

    real = backends.open_backend

    def without_verilator(name, *arguments, **options):
        if name == "verilator":
            raise MissingToolError("no C++ compiler")
        return real(name, *arguments, **options)

    monkeypatch.setattr("tritloom.session.open_backend", without_verilator)
    with pytest.raises(MissingToolError, match=r"^no C"):
        InferenceSession(mlp, providers=["verilator"])
    assert InferenceSession(mlp, providers=["verilator", "golden"]).get_providers() == ["golden"]


def test_wrong_inputs_are_value_errors(mlp):
    session = InferenceSession(mlp)
    with pytest.raises(ValueError, match="x"):
        session.run(None, {"z": _feeds(1)})
    with pytest.raises(ValueError, match=r"^the model has no output 'z'; its outputs are y$"):
        session.run(["z"], {"x": _feeds(1)})


def test_compile_checks_its_arguments(mlp):
    for arguments, message in (
        ({"method": "magic"}, r"^method must be one of auto, twn, absmean, planes, not 'magic'$"),
        ({"planes": 0}, r"^planes must be from 1 to 6, not 0$"),
        ({"activation_bits": 9}, r"^activation_bits must be from 2 to 8, not 9$"),
        ({"board": "sims"}, r"^unknown board 'sims'; did you mean 'sim'\?$"),
    ):
        with pytest.raises(UserError, match=message):
            tritloom.compile(mlp, **arguments)


def test_schedules_are_stored_by_board(mlp, tmp_path):
    compiled = tritloom.compile(mlp, board="ulx3s-25f")
    assert compiled.boards == ("ulx3s-25f",)
    both = compiled.with_schedule("sim")
    both.save(tmp_path / "m.loom")
    loaded = tritloom.CompiledModel.load(tmp_path / "m.loom")
    assert set(loaded.boards) == {"ulx3s-25f", "sim"}
    assert loaded.schedule("ulx3s-25f").cycles == compiled.schedule("ulx3s-25f").cycles
    assert loaded.digest == both.digest != compiled.digest
