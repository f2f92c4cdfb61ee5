"""Synthesis falls back to the older mapping pass only where the newer one breaks down."""

import pytest

from tritloom.boards import flow, get_board
from tritloom.errors import BuildError

BROKEN = "yosys failed: ERROR: Assert `GetSize(conn.first) == GetSize(conn.second)' failed in kernel/rtlil.cc:3091."


def _scripts(monkeypatch, failures):
    seen = []

    def run(script, *, cwd):
        seen.append(script)
        if len(seen) <= len(failures):
            raise BuildError(failures[len(seen) - 1])
        return ""

    monkeypatch.setattr(flow, "run_yosys", run)
    return seen


@pytest.mark.parametrize("name", ["ulx3s-25f", "tang-nano-9k"])
def test_a_broken_mapping_pass_is_replaced(monkeypatch, tmp_path, name):
    seen = _scripts(monkeypatch, [BROKEN])
    flow.synthesise(get_board(name), tmp_path)
    assert ["-noabc9" in script for script in seen] == [False, True]


def test_other_failures_are_reported_at_once(monkeypatch, tmp_path):
    seen = _scripts(monkeypatch, ["yosys failed: ERROR: Module `top' not found!"])
    with pytest.raises(BuildError, match="not found"):
        flow.synthesise(get_board("ulx3s-25f"), tmp_path)
    assert len(seen) == 1


def test_a_second_break_down_is_reported(monkeypatch, tmp_path):
    seen = _scripts(monkeypatch, [BROKEN, BROKEN])
    with pytest.raises(BuildError, match="Assert"):
        flow.synthesise(get_board("ulx3s-25f"), tmp_path)
    assert len(seen) == 2
