"""The interface to outside tools: what it runs, what it says, and that its Verilog depends on the design only."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from tritloom.boards.toolchain import TOOLS, error_lines, run_tool, run_yosys, to_verilog, tool_version
from tritloom.errors import BuildError, MissingToolError

PLACE_LOG = """\
Warning: unmatched constraint 'led' (on line 4)
Info: Packing constants..
Info: Device utilisation:
Info: 	         ICESTORM_LC:    9211/   7680   119%
Info: 	        ICESTORM_RAM:      40/     32   125%
Info: Placed 4 cells based on constraints.
ERROR: Unable to place cell 'core.weights.memory.0.7', no BELs remaining to implement cell type 'ICESTORM_RAM'
1 warning, 1 error
"""

EXAMPLE = """
from amaranth.hdl import Module
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out
from tritloom.boards.toolchain import to_verilog


class Example(wiring.Component):
    a: In(8)
    b: Out(9)
    c: Out(8)

    def elaborate(self, platform):
        m = Module()
        m.submodules.table = table = memory.Memory(shape=8, depth=16, init=range(16))
        port = table.read_port()
        m.d.comb += [port.addr.eq(self.a), self.c.eq(port.data)]
        with m.FSM():
            with m.State("ADD"):
                m.d.sync += self.b.eq(self.a + self.b)
                with m.If(self.b[8]):
                    m.next = "SUBTRACT"
            with m.State("SUBTRACT"):
                m.d.sync += self.b.eq(self.b - self.a)
                m.next = "ADD"
        return m


print(to_verilog(Example(), name="example"))
"""


def fake_tool(path: Path, body: str) -> str:
    """An executable Python program at ``path``."""
    path.write_text(f"#!{sys.executable}\n{body}")
    path.chmod(0o755)
    return str(path)


def test_error_lines_are_the_tools_own():
    assert error_lines(PLACE_LOG) == [
        "ERROR: Unable to place cell 'core.weights.memory.0.7', no BELs remaining to implement cell type 'ICESTORM_RAM'"
    ]


def test_error_lines_of_a_python_tool_are_its_exception():
    log = "Traceback (most recent call last):\n  File 'x.py', line 3, in main\nKeyError: 'GW1N-9C'\n"
    assert error_lines(log) == ["KeyError: 'GW1N-9C'"]


def test_error_lines_without_an_error_are_the_last_ones():
    assert error_lines("one\n\ntwo\nthree\nfour\n") == ["two", "three", "four"]
    assert error_lines("") == []


def test_yosys_runs_in_the_folder_and_leaves_script_and_log(tmp_path):
    (tmp_path / "top.v").write_text("module top(input a, output b); assign b = ~a; endmodule")
    log = run_yosys("read_verilog top.v\nprep -top top\nwrite_json top.json\n", cwd=tmp_path, name="step")
    assert "Executing JSON backend" in log
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step.log", "step.ys", "top.json", "top.v"]


def test_yosys_error_becomes_a_build_error(tmp_path):
    with pytest.raises(BuildError, match=r"^yosys failed: ERROR: No such command: no_such_pass"):
        run_yosys("no_such_pass\n", cwd=tmp_path)


def test_tool_failure_quotes_the_tool(tmp_path, monkeypatch):
    monkeypatch.setenv("NEXTPNR_ICE40", fake_tool(tmp_path / "place", f"import sys; print({PLACE_LOG!r}); sys.exit(1)"))
    with pytest.raises(BuildError, match=r"^nextpnr-ice40 failed: ERROR: Unable to place cell .* 'ICESTORM_RAM'$"):
        run_tool("nextpnr-ice40", [], cwd=tmp_path, log="place.log")
    assert "unmatched constraint" in (tmp_path / "place.log").read_text()


def test_silent_failure_names_the_exit_status(tmp_path, monkeypatch):
    monkeypatch.setenv("ICEPACK", fake_tool(tmp_path / "pack", "import sys; sys.exit(7)"))
    with pytest.raises(BuildError, match=r"^icepack failed: exit status 7, without a message$"):
        run_tool("icepack", [], cwd=tmp_path, log="pack.log")


def test_a_tool_that_is_ended_says_by_what(tmp_path, monkeypatch):
    body = "import os, signal; print('Info: placing', flush=True); os.kill(os.getpid(), signal.SIGTERM)"
    monkeypatch.setenv("ICEPACK", fake_tool(tmp_path / "pack", body))
    with pytest.raises(BuildError, match=r"^icepack failed: it was ended by signal 15 \(Terminated\)$"):
        run_tool("icepack", [], cwd=tmp_path, log="pack.log")


def test_override_that_is_no_program(monkeypatch):
    monkeypatch.setenv("ECPPACK", "no-such-program")
    with pytest.raises(MissingToolError, match=r"^ECPPACK is set to 'no-such-program', which is not an executable program$"):
        TOOLS["ecppack"].command()


@pytest.mark.parametrize("name", TOOLS)
def test_missing_package_names_the_command_that_installs_it(name, monkeypatch):
    def absent(package):
        raise metadata.PackageNotFoundError(package)

    monkeypatch.delenv(TOOLS[name].variable, raising=False)
    monkeypatch.setattr(metadata, "version", absent)
    monkeypatch.setattr(metadata, "entry_points", lambda **selection: ())
    with pytest.raises(
        MissingToolError, match=rf"^{name} is not installed: pip install 'tritloom\[fpga\]' \(or set {TOOLS[name].variable} "
    ):
        tool_version(name)


@pytest.mark.parametrize("name", TOOLS)
def test_version_names_package_and_number(name):
    package, version = tool_version(name).split()
    assert package == TOOLS[name].package
    assert version == metadata.version(package)


def test_version_of_an_override_is_its_first_line(tmp_path, monkeypatch):
    monkeypatch.setenv("GOWIN_PACK", fake_tool(tmp_path / "pack", "print('gowin_pack 9.9')\nprint('more')"))
    assert tool_version("gowin_pack") == "gowin_pack 9.9"


def test_verilog_depends_on_the_design_only(tmp_path):
    texts = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        folder.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", EXAMPLE],
            cwd=folder,
            env={**os.environ, "PYTHONHASHSEED": seed, "TMPDIR": str(folder)},
            capture_output=True,
            text=True,
            check=True,
        )
        texts.append(done.stdout)
    assert texts[0] == texts[1]
    assert texts[0].startswith("module example(")
    for hidden in (str(tmp_path), "Generated by", ".py:", "Yosys"):
        assert hidden not in texts[0]


def test_verilog_names_ports_by_path():
    from amaranth.hdl import Module
    from amaranth.lib import stream, wiring
    from amaranth.lib.wiring import In, Out

    class Passes(wiring.Component):
        i: In(stream.Signature(8))
        o: Out(stream.Signature(8))

        def elaborate(self, platform):
            m = Module()
            wiring.connect(m, wiring.flipped(self.i), wiring.flipped(self.o))
            return m

    text = to_verilog(Passes(), name="passes")
    for port in ("input [7:0] i__payload", "input i__valid", "output i__ready", "output [7:0] o__payload"):
        assert f"{port};" in text
