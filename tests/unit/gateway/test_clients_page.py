"""The table of clients names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import gateway

PAGE = Path(gateway.__file__).parent / "CLIENTS.md"


def test_each_cell_of_the_table_is_a_test() -> None:
    text = PAGE.read_text()
    cells = re.findall(r"\[yes\]\[(\w+)\]", text)
    named = dict(re.findall(r'^\[(\w+)\]: (\S+ "[^"]+")$', text, re.MULTILINE))
    assert set(cells) == set(named)
    for path, name in (reference.split(" ", 1) for reference in named.values()):
        tests = (PAGE.parent / path).read_text()
        test = name.strip('"')
        assert f"def {test}(" in tests or f'test("{test}"' in tests, name
