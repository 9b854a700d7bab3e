"""The row of JSONL that the stages hand to one another: its fields, and how it is read, checked and written.

A file has one JSON object a line, is UTF-8, and ends in a newline, so that files can be merged with `cat` and
filtered with `grep '"ROUTE_TO_INFERIOR"'`. Importing this module is cheap: no torch, transformers, datasets or gradio.
"""

import glob
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

INFERIOR = "ROUTE_TO_INFERIOR"
SUPERIOR = "ROUTE_TO_SUPERIOR"
LABELS = (INFERIOR, SUPERIOR)  # the position is the class index of every checkpoint


class InputError(ValueError):
    """Something the user gave is wrong; the message is one line that names it and the remedy."""


class LabelledPrompt(BaseModel):
    """One labelled prompt. Unknown fields are kept."""

    model_config = ConfigDict(extra="allow")

    prompt: str = Field(description="what the user typed first; not blank")
    label: Literal["ROUTE_TO_INFERIOR", "ROUTE_TO_SUPERIOR"] = Field(description="the preferred route")
    superior_probability: float | None = Field(
        default=None, ge=0, le=1, description="how sure the labeller was that the superior model is needed, 0..1"
    )
    source: str | None = Field(default=None, description="the data set the prompt came from")
    source_id: str | None = Field(default=None, description="the row of that data set")
    labelled_by: str | None = Field(default=None, description="openai_gpt-3.5-turbo, local_smollm2, human, ...")
    labelling_prompt: str | None = Field(
        default=None, description="first 12 hex digits of the labelling prompt's SHA-256"
    )
    labelled_at: str | None = Field(default=None, description="ISO 8601, UTC")

    @field_validator("prompt")
    @classmethod
    def _not_blank(cls, prompt: str) -> str:
        if not prompt.strip():
            raise ValueError("is blank")
        return prompt

    @model_validator(mode="after")
    def _label_follows_probability(self) -> "LabelledPrompt":
        if self.superior_probability is not None and self.label != label_of(self.superior_probability):
            raise ValueError(f"label {self.label} contradicts superior_probability {self.superior_probability}")
        return self

    @property
    def target(self) -> float:
        """The superior probability to train on: the grade where there is one, else the label as 0 or 1."""
        return float(self.label == SUPERIOR) if self.superior_probability is None else self.superior_probability


class LabelledQuestion(LabelledPrompt):
    """A question of MT-Bench, labelled by the human votes between the tiers."""

    question_id: int
    category: str
    turns: list[str]
    superior_wins: int = Field(ge=0)
    inferior_wins: int = Field(ge=0)
    ties: int = Field(ge=0)
    inferior_ratio: float = Field(ge=0, le=1, description="(inferior wins + ties / 2) / votes")
    inferior_ratio_low: float = Field(ge=0, le=1, description="lower end of its 95% interval")
    inferior_ratio_high: float = Field(ge=0, le=1, description="upper end of its 95% interval")
    difficulty_rank: int = Field(ge=1, description="1 = hardest for the inferior models")
    in_labelling_prompt: bool = Field(description="true where the labeller was shown it: never a test question")


class Outcome(BaseModel):
    """What really happened: how two models did on one prompt. Unknown fields are kept."""

    model_config = ConfigDict(extra="allow")

    prompt: str
    group: str | None = Field(default=None, description="subject or category")
    weak_model: str | None = None
    strong_model: str | None = None
    weak_score: float = Field(allow_inf_nan=False, description="quality of the inferior model's answer")
    strong_score: float = Field(allow_inf_nan=False, description="quality of the superior model's answer")


Row = TypeVar("Row", bound=BaseModel)


def label_of(superior_probability: float, threshold: float = 0.5) -> str:
    """The route for a superior probability (0..1): SUPERIOR exactly when it reaches the threshold."""
    return SUPERIOR if superior_probability >= threshold else INFERIOR


def prompt_key(prompt: str) -> str:
    """The form in which two prompts count as the same: case and white space folded."""
    return " ".join(prompt.casefold().split())


def prompt_id(text: str) -> str:
    """The first 12 hex digits of the text's SHA-256."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def near_copy_groups(prompts: Sequence[str], similarity: float = 0.8) -> list[int]:
    """Group prompts so that near copies share a group.

    Two prompts are near copies when the estimated Jaccard similarity of their sets of five-character pieces (case and
    white space folded) reaches `similarity`; groups are the connected components. MinHash with locality-sensitive
    hashing (Broder 1997), so time grows with the number of prompts, not of pairs.

    Returns:
        A group number per prompt, numbered in order of first appearance.
    """
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=similarity, num_perm=64)
    group_of: list[int] = []
    parent: list[int] = []  # union-find over groups

    def root(group: int) -> int:
        while parent[group] != group:
            group = parent[group]
        return group

    for i, signature in enumerate(MinHash.generator(map(pieces, prompts), num_perm=64)):
        near = {root(group_of[j]) for j in index.query(signature)}
        if not near:
            parent.append(len(parent))
        group_of.append(min(near, default=len(parent) - 1))
        for group in near:
            parent[group] = min(near)
        index.insert(i, signature)
    return [root(group) for group in group_of]


def pieces(prompt: str, size: int = 5) -> list[bytes]:
    """The distinct runs of `size` characters of a prompt, case and white space folded; what MinHash compares."""
    text = prompt_key(prompt)
    return list({text[i : i + size].encode("utf-8", "replace") for i in range(max(1, len(text) - size + 1))})


def expand_paths(patterns: Iterable[str | Path]) -> list[Path]:
    """Files named by paths or globs, each once, in the order given.

    Raises:
        InputError: a path does not exist, or a glob matches nothing.
    """
    paths: dict[Path, None] = {}
    for pattern in map(str, patterns):
        matches = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern))
        if not matches:
            raise InputError(f"no such file: {pattern}")
        for match in matches:
            if os.path.isdir(match):
                raise InputError(f"{match} is a folder; name a JSONL file or a glob such as '{match}/*.jsonl'")
            paths[Path(match)] = None
    return list(paths)


def read_rows(path: str | Path, row_type: type[Row] = LabelledPrompt) -> Iterator[Row]:
    """The rows of one JSONL file, checked one by one; blank lines are passed over.

    Raises:
        InputError: the file can't be read, or a line is not valid; names the file, the line and the field.
    """
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _parse(line, row_type, f"{path}, line {number}")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def _parse(line: bytes, row_type: type[Row], where: str) -> Row:
    try:
        return row_type.model_validate(json.loads(line.decode("utf-8-sig")))
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8; convert the file to UTF-8") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON ({error.msg}); mend or delete the line") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"])) or "row"
        raise InputError(f"{where}: {field}: {first['msg'].removeprefix('Value error, ')}") from error


def encode_row(row: BaseModel | dict) -> bytes:
    r"""One line of JSONL, newline included.

    `grep '"ROUTE_TO_INFERIOR"'` must find a label and nothing else, so wherever a label's text stands in another
    field its underscores are written as `\u005f`, which every JSON reader turns back.
    """
    fields = row.model_dump() if isinstance(row, BaseModel) else row
    return ("{" + ", ".join(map(_encode_field, fields.items())) + "}\n").encode("utf-8", "backslashreplace")


def _encode_field(item: tuple[str, object]) -> str:
    def dump(value: object) -> str:
        return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("ROUTE_TO_", r"ROUTE\u005fTO\u005f")

    key, value = item
    return f"{dump(key)}: {json.dumps(value) if key == 'label' and value in LABELS else dump(value)}"


def write_rows(path: str | Path, rows: Iterable[BaseModel | dict]) -> None:
    """Write a whole JSONL file; a reader never sees half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        file.writelines(map(encode_row, rows))
    os.replace(partial, path)


def run_script(main) -> None:
    """Run a script's `main()`; an InputError ends it with one line on stderr and exit status 1, without a traceback."""
    try:
        status = main()
        sys.exit(status if isinstance(status, int) else 0)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `| head` closed the other end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
