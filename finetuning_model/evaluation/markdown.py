"""What every Markdown report is put together from: tables, figures with their intervals, and text that stays text."""

from collections.abc import Sequence

from finetuning_model.evaluation.metrics import Estimate

EXCERPT_CHARACTERS = 160


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are aligned to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def show(figure: dict | None, percent: bool = False, signed: bool = False) -> str:
    """An `Estimate` of a JSON report, as `Estimate.show` writes it; a dash where there is none."""
    return "–" if figure is None else Estimate(**figure).show(percent, signed)


def cell(text: str, characters: int = EXCERPT_CHARACTERS) -> str:
    """Any text in a cell of a table: one line, nothing of it read as Markdown or HTML."""
    text = " ".join(text.split())
    text = text if len(text) <= characters else text[: characters - 1] + "…"
    for character, safe in (("&", "&amp;"), ("<", "&lt;"), ("|", "&#124;")):
        text = text.replace(character, safe)
    for character in r"\`*_[]$":
        text = text.replace(character, "\\" + character)
    return text
