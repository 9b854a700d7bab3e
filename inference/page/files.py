"""A file of prompts on the page: read, scored, shown and written back, without gradio."""

import csv
import tempfile
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas

from inference.page import html_parts
from inference.page.answers import Page
from inference.page.html_parts import cost_change, dollars
from inference.scored_rows import read_prompts, with_answer
from prompt_files import READERS, Record, first_user_turn, prompt_column, read_records
from router_data import SUPERIOR, TIER_NAMES, InputError, Prices, write_rows
from router_model import Decision

HINT = (
    "JSONL, JSON, CSV, Excel, parquet or text; prompts, or conversations as ChatGPT, ShareGPT and the OpenAI API write "
    "them. Nothing leaves this server."
)
MAX_ROWS = 200_000
MAX_CHARACTERS = 500_000_000
MAX_TABLE_ROWS = 500
MAX_SHOWN = 120  # characters of a prompt in the table
MAX_PROBLEMS = 5  # that are named
BATCH = 256  # prompts between two looks at whether to stop
TABLE_SUFFIXES = (".csv", ".tsv", ".tab", ".xlsx", ".xls", ".ods")
TABLE_COLUMNS = ["Row", "Prompt", "Superior, %", "Route"]
ORDERS: dict[str, Callable[[tuple, float], float]] = {  # of the table's rows, by the threshold
    "nearest the threshold first": lambda row, threshold: abs(row[2] - 100 * threshold),
    "highest first": lambda row, threshold: -row[2],
    "lowest first": lambda row, threshold: row[2],
    "as in the file": lambda row, threshold: row[0],
}
BINS = 20
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # spreadsheets take the wide ones too


class ColumnNeeded(InputError):
    """No column is plainly the prompt.

    Attributes:
        columns: those the file has.
    """

    def __init__(self, columns: Sequence[str]) -> None:
        super().__init__("Which column holds the prompts?")
        self.columns = list(columns)


@dataclass(eq=False)
class ScoredFile:
    """A file that was dropped on the page, with the router's decision on each row (None: it has no prompt).

    It counts as equal to itself only, so that nobody compares thousands of rows.
    """

    path: Path
    name: str
    column: str | None
    columns: list[str]
    records: list[Record] = field(repr=False)
    prompts: list[str | list[dict] | None] = field(repr=False)
    decisions: list[Decision | None] = field(repr=False)
    problems: list[str] = field(repr=False)
    notes: list[str] = field(repr=False)

    @property
    def scores(self) -> np.ndarray:
        """The router scores of the rows with a prompt, in order."""
        return np.array([decision.router_score for decision in self.decisions if decision])


class FileTab:
    """Scores files one after the other, so that a second one does not halve the speed of the first.

    Args:
        page: the page whose checkpoint scores.
    """

    def __init__(self, page: Page) -> None:
        self.page = page
        self._turn = threading.Lock()
        self._progress = (0, 0)

    def score(self, path: Path, column: str | None) -> Generator[str | ScoredFile, None, None]:
        """Say how far the work is, again and again, and at last give the scored file.

        Whoever closes the generator ends the work.

        Raises:
            ColumnNeeded: no column is plainly the prompt, and none is named.
            InputError: the file can't be read, or holds no prompt.
        """
        while not self._turn.acquire(timeout=0.5):
            done, of = self._progress
            yield f"Waiting: another visitor's file is being scored, {done:,} of {of:,} prompts so far. Yours is next."
        try:
            yield f"Reading {path.name} …"
            scored = read_file(path, column)
            rows = [i for i, prompt in enumerate(scored.prompts) if prompt]
            rows.sort(key=lambda i: str(scored.prompts[i]))  # repeats lie side by side, and are scored once
            if not rows:
                raise InputError("; ".join([f"{path.name} holds no prompt", *scored.problems[:1]]))
            for start in range(0, len(rows), BATCH):
                self._progress = (start, len(rows))
                yield f"{start:,} of {len(rows):,} prompts scored"
                batch = rows[start : start + BATCH]
                prompts = [prompt for i in batch if (prompt := scored.prompts[i])]
                for i, decision in zip(batch, self.page.router.decide(prompts), strict=True):
                    scored.decisions[i] = decision
            yield scored
        finally:
            self._turn.release()

    def summary(self, scored: ScoredFile, threshold: float, prices: Prices) -> str:
        """What the threshold does to a file: figures, and what could not be read."""
        superior = sum(self.is_superior(decision, threshold) for decision in scored.decisions if decision)
        rows = len(scored.scores)
        blank = len(scored.decisions) - rows
        cost, alone = (prices.per_thousand(share) * rows / 1000 for share in (superior / rows, 1))
        stats = [
            (f"{rows:,}", "prompts scored", f"{blank:,} without a prompt, left out" if blank else ""),
            (f"{superior / rows:.0%}", "to the superior model", f"{superior:,} prompt{'s' * (superior != 1)}"),
            (dollars(cost), "for this file", cost_change(cost, alone)),
        ]
        problems = scored.problems[:MAX_PROBLEMS]
        if more := len(scored.problems) - len(problems):
            problems.append(f"and {more:,} more")
        return (
            html_parts.stats_html(stats)
            + "".join(html_parts.message(note) for note in scored.notes)
            + html_parts.list_html("Passed over", problems)
        )

    def is_superior(self, decision: Decision, threshold: float) -> bool:
        """Whether a decision's prompt goes to the superior model at this threshold."""
        return self.page.at_threshold(decision, threshold).router_label == SUPERIOR

    def table(self, scored: ScoredFile, threshold: float, order: str) -> pandas.DataFrame:
        """The first rows for `gr.Dataframe`, in one of `ORDERS`."""
        rows = [
            (
                record.number,
                html_parts.shortened(first_user_turn(prompt), MAX_SHOWN),
                round(100 * decision.router_score, 1),
                TIER_NAMES[self.page.at_threshold(decision, threshold).router_label],
            )
            for record, prompt, decision in zip(scored.records, scored.prompts, scored.decisions, strict=True)
            if decision
        ]
        rows.sort(key=lambda row: ORDERS[order](row, threshold))
        return pandas.DataFrame(rows[:MAX_TABLE_ROWS], columns=TABLE_COLUMNS)

    def histogram(self, scored: ScoredFile, threshold: float) -> pandas.DataFrame:
        """How many prompts got which score, for `gr.BarPlot`: columns score (percent), prompts and route."""
        counts, edges = np.histogram(scored.scores, bins=BINS, range=(0, 1))
        middle = 50 * (edges[:-1] + edges[1:])
        routes = ["superior" if score >= 100 * threshold else "inferior" for score in middle]
        return pandas.DataFrame({"score": middle, "prompts": counts, "route": routes})

    def curve(self, scored: ScoredFile, prices: Prices) -> pandas.DataFrame:
        """What each threshold would cost, for `gr.LinePlot`: columns threshold and share (percent), cost and route."""
        thresholds = np.linspace(0, 1, 51)
        scores = np.sort(scored.scores)
        shares = 1 - np.searchsorted(scores, thresholds, side="left") / len(scores)
        costs = [dollars(prices.per_thousand(share) * len(scores) / 1000) for share in shares]
        return pandas.DataFrame(
            {"threshold": 100 * thresholds, "share": 100 * shares, "cost": costs, "route": "superior"}
        )

    def write(self, scored: ScoredFile, threshold: float) -> Path:
        """The file again, each row with the fields of contract 1: a table as CSV, anything else as JSONL."""
        rows = [
            with_answer(
                record.fields,
                self.page.at_threshold(decision, threshold) if decision else None,
                threshold,
                self.page.router,
            )
            for record, decision in zip(scored.records, scored.decisions, strict=True)
        ]
        folder = Path(tempfile.mkdtemp(dir=scored.path.parent))  # so that nobody else's download has this name
        stem = scored.name.removesuffix(".gz").rpartition(".")[0] or scored.name
        if not scored.name.lower().removesuffix(".gz").endswith(TABLE_SUFFIXES):
            path = folder / f"{stem}-scored.jsonl"
            write_rows(path, rows)
            return path
        path = folder / f"{stem}-scored.csv"
        with open(path, "w", encoding="utf-8-sig", newline="") as file:  # with the mark by which Excel knows UTF-8
            table = csv.writer(file)
            table.writerow(map(as_cell, rows[0]))
            table.writerows([as_cell(row[name]) for name in rows[0]] for row in rows)
        return path


def read_file(path: Path, column: str | None) -> ScoredFile:
    """A file's rows and prompts, not scored yet.

    Raises:
        ColumnNeeded, InputError: as `FileTab.score`.
    """
    problems: list[str] = []
    notes: list[str] = []
    records: list[Record] = []
    characters = 0

    def bad_row(problem: str) -> None:
        problems.append(problem.removeprefix(f"{path}, ").removeprefix(f"{path.name}, "))

    for record in read_records([path], bad_row, notes.append):
        records.append(record)
        characters += sum(len(value) for value in record.fields.values() if isinstance(value, str))
        if len(records) > MAX_ROWS or characters > MAX_CHARACTERS:
            raise InputError(f"{path.name} has more than {MAX_ROWS:,} rows; score it with inference/score_prompts.py")
    if not records:
        raise InputError(f"{path.name} holds no row that can be read; {problems[0]}")
    columns = list(map(str, records[0].fields))
    found = column or prompt_column(records[0].fields)
    if found not in records[0].fields:
        raise ColumnNeeded(columns)
    prompts = read_prompts(records, column, bad_row)
    return ScoredFile(path, path.name, found, columns, records, prompts, [None] * len(records), problems, notes)


def as_cell(value: object) -> object:
    """A value for a cell that no spreadsheet takes for a formula."""
    if isinstance(value, str) and value.startswith(FORMULA_STARTS) and not is_number(value):
        return f"'{value}"
    return value


def is_number(text: str) -> bool:
    """Whether a text is a plain number, such as -3.5."""
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False


ACCEPTED_SUFFIXES = [*READERS, ".gz"]
