"""The documents made from the code are those that the code would make now."""

import ast
import sys

import pytest
from conftest import ROOT

from docs import generate

REMEDY = "out of date; run: make docs"


def test_the_row_schema_is_that_of_the_models():
    written = (ROOT / "docs" / "row_schema.md").read_text(encoding="utf-8")
    assert written == generate.schema_document(), REMEDY


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info >= (3, 13), reason="from 3.13 on argparse shows a flag of two names otherwise")
def test_the_help_is_that_of_the_programs():
    written = (ROOT / "docs" / "command_line.md").read_text(encoding="utf-8")
    assert written == generate.commands_document(), REMEDY


def test_every_program_of_a_stage_is_documented():
    documented = (ROOT / "docs" / "command_line.md").read_text(encoding="utf-8")
    assert len(generate.programs()) >= 10
    assert [str(path) for path in generate.programs() if f"## {path}\n" not in documented] == []


@pytest.mark.parametrize("path", generate.programs(), ids=str)
def test_a_programs_docstring_says_what_it_reads_and_writes_and_has_an_example(path):
    docstring = ast.get_docstring(ast.parse((ROOT / path).read_text(encoding="utf-8")))
    assert docstring and [word for word in ("Reads ", "Writes ", "Example") if f"\n{word}" not in docstring] == []


@pytest.mark.parametrize("name", ["README.md", "docs/results.md"])
def test_pages_for_readers_stay_short(name):
    assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= {"README.md": 200}.get(name, 100)
