"""The page on the instruction set is the one that the tables give."""

import re
from pathlib import Path

from tritloom.hw.arch.document import isa_page, main
from tritloom.hw.arch.isa import FIELDS, LOOP_FIELDS

PAGE = Path(__file__).parents[2] / "docs" / "isa.md"


def test_committed_page_is_up_to_date():
    assert PAGE.read_text() == isa_page(), "run python -m tritloom.hw.arch.document docs/isa.md"


def test_page_has_every_field_and_no_markup_left():
    page = isa_page()
    for name in {**FIELDS, **LOOP_FIELDS}:
        assert f"| `{name}` |" in page
    assert not re.search(r":\w+:`|(?<!`)``(?!`)", page)


def test_page_goes_to_a_file_or_to_standard_output(tmp_path, capsys):
    assert main([str(tmp_path / "isa.md")]) == 0
    assert main([]) == 0
    assert capsys.readouterr().out == (tmp_path / "isa.md").read_text() == isa_page()
