"""The documents made from the code are those that the code would make now."""

import pytest
from conftest import ROOT

from docs import generate


def test_the_row_schema_is_that_of_the_models():
    assert (ROOT / "docs" / "row_schema.md").read_text(encoding="utf-8") == generate.schema_document()


@pytest.mark.slow
def test_the_help_is_that_of_the_programs():
    assert (ROOT / "docs" / "command_line.md").read_text(encoding="utf-8") == generate.commands_document()
