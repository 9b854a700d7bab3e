"""Reading pairwise judgments of MT-Bench, from the hub or a local copy, and keeping the votes between two tiers."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from prompt_files import READERS, is_local, prompt_in, read_records
from router_data import InputError

COLUMNS = ("question_id", "model_a", "model_b", "winner", "judge", "conversation_a", "turn")
WINNERS = ("model_a", "model_b", "tie", "tie (inconsistent)")  # the last where GPT-4 changed its mind with the order
# MT-Bench numbers its questions 81 to 160, ten to a category.
CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
QUESTIONS = "question.jsonl"  # MT-Bench's own file


@dataclass
class Judgments:
    """The rows of both splits, as the data set has them, and where they were read."""

    human: pd.DataFrame
    gpt4: pd.DataFrame | None
    categories: dict[int, str]  # from question.jsonl; empty without one
    read_from: str


def read_judgments(dataset: str) -> Judgments:
    """The judgments of a local folder or file, or of a data set of the hub.

    A local folder is searched for `human*` (required), `gpt4_pair*` and `question.jsonl`, in any form that
    `prompt_files.read_records` reads; of a file, the folder it stands in is searched for the other two.

    Raises:
        InputError: nothing there, the hub refuses or is away, a column is missing, a winner is none of WINNERS.
    """
    if Path(dataset).exists():
        judgments = _read_local(Path(dataset))
    elif HUB_ID.fullmatch(dataset) and not is_local(dataset):
        judgments = _read_hub(dataset)
    else:
        raise InputError(f"no such file or folder: {dataset}; --dataset takes a local copy or a hub id")
    _check(judgments.human, f"{judgments.read_from}, human votes")
    if judgments.gpt4 is not None:
        _check(judgments.gpt4, f"{judgments.read_from}, GPT-4's votes")
    if set(judgments.human["judge"]) == {"gpt4_pair"}:
        raise InputError(f"{judgments.read_from} holds GPT-4's votes; name the file of the human ones")
    return judgments


def _read_local(path: Path) -> Judgments:
    folder = path if path.is_dir() else path.parent
    human = _find(path, "human") if path.is_dir() else [path]
    if not human:
        raise InputError(f"no human.parquet in {path}; it should be a copy of lmsys/mt_bench_human_judgments")
    gpt4 = [file for file in _find(folder, "gpt4_pair") if file not in human]
    categories = _read_categories(folder / QUESTIONS) if (folder / QUESTIONS).exists() else {}
    return Judgments(_read_votes(human), _read_votes(gpt4) if gpt4 else None, categories, str(path))


def _find(folder: Path, split: str) -> list[Path]:
    """A split's files, or its folder: in the folder or, as the hub has it, in `data/` below it."""
    found = sorted([*folder.glob(f"{split}*"), *folder.glob(f"data/{split}*")])
    readable = [
        path for path in found if path.is_dir() or path.name.lower().removesuffix(".gz").endswith(tuple(READERS))
    ]
    return [path for path in readable if path.suffix == readable[0].suffix]


def _read_votes(paths: list[Path]) -> pd.DataFrame:
    """The rows of a split, numbers as numbers where the file has text."""
    rows = pd.DataFrame([record.fields for record in read_records(paths)])
    for column in {"question_id", "turn"} & set(rows):
        rows[column] = pd.to_numeric(rows[column], errors="coerce")
        if rows[column].isna().any():
            raise InputError(f"{', '.join(map(str, paths))}: {column} is not a number in every row")
    return rows


def _read_categories(path: Path) -> dict[int, str]:
    questions = [record.fields for record in read_records([path])]
    if not all({"question_id", "category"} <= question.keys() for question in questions):
        raise InputError(f"{path}: needs the fields question_id and category")
    return {question["question_id"]: question["category"] for question in questions}


def _read_hub(dataset: str) -> Judgments:
    from datasets import load_dataset
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # a hub that is away ends in one line, not in one per retry
    print(f"reading {dataset} from the Hugging Face hub ...", flush=True)
    try:
        splits = load_dataset(dataset)
    except Exception as error:  # the hub client raises a dozen kinds, most of them for a network that is away
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise InputError(
            f"cannot read {dataset} from the hub ({reason}); see https://huggingface.co/datasets/{dataset}: if it is "
            "gated, accept its terms there and put a read token as HF_TOKEN in .env; or download its files and name "
            "their folder with --dataset"
        ) from error
    if "human" not in splits:
        raise InputError(f"{dataset} has no split 'human', only {', '.join(splits)}")
    gpt4 = splits["gpt4_pair"].to_pandas() if "gpt4_pair" in splits else None
    return Judgments(splits["human"].to_pandas(), gpt4, {}, f"{dataset} on the Hugging Face hub")


def _check(rows: pd.DataFrame, where: str) -> None:
    if missing := [column for column in COLUMNS if column not in rows]:
        raise InputError(f"{where}: no column {', '.join(missing)}; it needs {', '.join(COLUMNS)}")
    if rows.empty:
        raise InputError(f"{where}: no rows")
    if unknown := set(map(str, rows["winner"])) - set(WINNERS):
        raise InputError(f"{where}: unknown winner '{min(unknown)}'; it must be one of {', '.join(WINNERS)}")


def votes_between_tiers(rows: pd.DataFrame, superior: Sequence[str], inferior: Sequence[str]) -> pd.DataFrame:
    """One row per vote between a superior and an inferior model, whichever of them was shown first.

    Returns:
        Columns question_id, turn, judge, superior, inferior (the two models) and score: 1 where the inferior model
        won, 0.5 for a tie, 0 where it lost. Empty where there is no such vote.
    """
    a_inferior = rows["model_a"].isin(inferior) & rows["model_b"].isin(superior)
    between = a_inferior | (rows["model_a"].isin(superior) & rows["model_b"].isin(inferior))
    rows, a_inferior = rows[between], a_inferior[between]
    inferior_won = (rows["winner"] == "model_a") == a_inferior
    return pd.DataFrame(
        {
            "question_id": rows["question_id"],
            "turn": rows["turn"],
            "judge": rows["judge"],
            "superior": rows["model_b"].where(a_inferior, rows["model_a"]),
            "inferior": rows["model_a"].where(a_inferior, rows["model_b"]),
            "score": inferior_won.astype(float).mask(rows["winner"].str.startswith("tie"), 0.5),
        }
    ).reset_index(drop=True)


def gpt4_votes(judgments: Judgments, superior: Sequence[str], inferior: Sequence[str]) -> pd.DataFrame | None:
    """GPT-4's votes between the tiers; None where there are none."""
    if judgments.gpt4 is None:
        return None
    votes = votes_between_tiers(judgments.gpt4, superior, inferior)
    return None if votes.empty else votes


def check_tiers(rows: pd.DataFrame, superior: Sequence[str], inferior: Sequence[str]) -> None:
    """See that every model named is in the data, and in one tier only.

    Raises:
        InputError: one isn't; names the flag.
    """
    models = set(rows["model_a"]) | set(rows["model_b"])
    for flag, names in (("--superior_models", superior), ("--inferior_models", inferior)):
        if unknown := sorted(set(names) - models):
            raise InputError(f"{flag}: no votes on {', '.join(unknown)}; the data has {', '.join(sorted(models))}")
    if both := sorted(set(superior) & set(inferior)):
        raise InputError(f"{', '.join(both)} cannot be in both --superior_models and --inferior_models")


def question_texts(judgments: Judgments) -> pd.DataFrame:
    """What was asked: category and turns (the user's messages, a list) by question_id.

    Raises:
        InputError: a conversation has no message of the user.
    """
    rows = judgments.human.drop_duplicates("question_id").set_index("question_id").sort_index()
    turns = {}
    for number, conversation in rows["conversation_a"].items():
        try:
            messages = conversation if isinstance(conversation, str) else list(conversation)
            prompt = prompt_in({"conversation": messages})
        except (InputError, TypeError):
            prompt = None
        conversation = prompt if isinstance(prompt, list) else []
        turns[number] = [message["content"] for message in conversation if message["role"] == "user"]
        if not turns[number] or not turns[number][0].strip():
            raise InputError(f"{judgments.read_from}: no user's message in conversation_a of question {number}")
    categories = [judgments.categories.get(number) or _category(number) for number in rows.index]
    return pd.DataFrame({"category": categories, "turns": pd.Series(turns)}, index=rows.index)


def _category(question_id: int) -> str:
    return CATEGORIES[(question_id - 81) // 10] if 81 <= question_id <= 160 else "unknown"
