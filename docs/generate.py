"""Write the two documents that are made from the code: row_schema.md from the pydantic models, and command_line.md
from the programs' own --help. `make docs` runs it; a test compares what it would write with what is there.

Writes  docs/row_schema.md, docs/command_line.md

Example:
    python3 docs/generate.py
"""

import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pydantic import BaseModel

from router_data import LabelledPrompt, LabelledQuestion, Outcome, RouterAnswer, ShadowedDecision, run_script

STAGES = ("dataset_analysis", "create_dataset", "finetuning_model", "inference")
SCHEMA_INTRODUCTION = """\
# The fields of a row

Made from `router_data.py` by `make docs`. Files are JSONL in UTF-8, one object a line; unknown fields are kept.
"""
COMMANDS_INTRODUCTION = """\
# The command line

What each program says with `--help`; made by `make docs`.
"""


def schema_document() -> str:
    """row_schema.md: a table of fields for each kind of row."""
    parts = [SCHEMA_INTRODUCTION]
    models: list[type[BaseModel]] = [LabelledPrompt, LabelledQuestion, Outcome, RouterAnswer, ShadowedDecision]
    for model in models:
        parent = model.__mro__[1]
        inherited = set(parent.model_fields) if issubclass(parent, BaseModel) and parent is not BaseModel else set()
        lines = [f"## {model.__name__}", "", inspect.cleandoc(model.__doc__ or ""), ""]
        if inherited:
            lines += [f"The fields of {parent.__name__}, and:", ""]
        lines += ["| field | type | meaning |", "|---|---|---|"]
        lines += [row for name, row in field_rows(model) if name not in inherited]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def field_rows(model: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """Each field's name and its row of the table."""
    schema = model.model_json_schema()
    for name, field in schema["properties"].items():
        kinds = [describe_type(kind) for kind in field.get("anyOf", [field])]
        optional = "" if name in schema.get("required", ()) else ", optional"
        yield name, f"| `{name}` | {' or '.join(kind for kind in kinds if kind)}{optional} | {field['description']} |"


def describe_type(schema: dict) -> str:
    """A JSON schema's type in words; empty for null."""
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    if schema["type"] == "array":
        return f"list of {describe_type(schema['items'])}s"
    if schema["type"] == "null":
        return ""
    low, high = schema.get("minimum"), schema.get("maximum")
    bounds = f" {low:g}..{high:g}" if high is not None else f" ≥ {low:g}" if low is not None else ""
    return schema["type"] + bounds


def programs() -> list[Path]:
    """The programs of the four stages, in the stages' order."""
    found = [path for stage in STAGES for path in sorted((ROOT / stage).glob("*.py"))]
    return [path.relative_to(ROOT) for path in found if "run_script(main)" in path.read_text(encoding="utf-8")]


def commands_document() -> str:
    """command_line.md: the help of each program, 100 characters wide."""
    sections = [help_section(program, help_of(program).stdout) for program in programs()]
    return "\n".join([COMMANDS_INTRODUCTION, *sections])


def help_section(program: Path, text: str) -> str:
    """A program's part of command_line.md."""
    return f"## {program}\n\n```text\n{text.rstrip()}\n```\n"


def help_of(program: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """What a program prints for `--help`; the options are those of the interpreter."""
    environment = os.environ | {"COLUMNS": "100", "NO_COLOR": "1"}
    command = [sys.executable, *options, str(program), "--help"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)


def main() -> None:
    """Write both documents."""
    for name, text in (("row_schema.md", schema_document()), ("command_line.md", commands_document())):
        (ROOT / "docs" / name).write_text(text, encoding="utf-8")
        print(f"wrote docs/{name}")


if __name__ == "__main__":
    run_script(main)
