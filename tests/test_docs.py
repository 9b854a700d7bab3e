"""The documents made from the code are those that the code would make now."""

import ast
import re
import sys

import pytest
from conftest import ROOT

from docs import generate

REMEDY = "out of date; run: make docs"
COMMANDS = (ROOT / "docs" / "command_line.md").read_text(encoding="utf-8")
HEAVY = set("torch transformers datasets gradio onnxruntime openai pandas scipy sklearn matplotlib ray".split())


def test_the_row_schema_is_that_of_the_models():
    written = (ROOT / "docs" / "row_schema.md").read_text(encoding="utf-8")
    assert written == generate.schema_document(), REMEDY


def test_every_program_of_a_stage_is_documented():
    assert len(generate.programs()) >= 10
    assert re.findall(r"^## (.*)", COMMANDS, re.MULTILINE) == list(map(str, generate.programs())), REMEDY


@pytest.mark.parametrize("program", generate.programs(), ids=str)
def test_a_programs_help_is_documented_and_imports_nothing_heavy(program):
    done = generate.help_of(program, "-X", "importtime")
    imported = set(re.findall(r"\| +([\w.]+)$", done.stderr, re.MULTILINE))
    heavy = HEAVY | {"numpy"} if program.parts[0] == "create_dataset" else HEAVY
    assert "argparse" in imported and not imported & heavy
    if sys.version_info < (3, 13):  # from there on argparse shows a flag of two names otherwise
        assert generate.help_section(program, done.stdout) in COMMANDS, REMEDY


@pytest.mark.parametrize("path", generate.programs(), ids=str)
def test_a_programs_docstring_says_what_it_reads_and_writes_and_has_an_example(path):
    docstring = ast.get_docstring(ast.parse((ROOT / path).read_text(encoding="utf-8")))
    assert docstring and [word for word in ("Reads ", "Writes ", "Example") if f"\n{word}" not in docstring] == []


@pytest.mark.parametrize("name", ["README.md", "docs/results.md"])
def test_pages_for_readers_stay_short(name):
    assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= {"README.md": 200}.get(name, 100)
