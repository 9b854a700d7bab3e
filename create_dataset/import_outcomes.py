"""Stage 2, without a key: outcomes that others have published, as rows that train stage 3 and judge a router.

Reads   a data set of the hub, streamed, or a local copy of one. Its columns say what it is:
        mixtral_score                       Mixtral graded 1 to 5 against GPT-4: routellm/gpt4_dataset
        a column per model with a `score`   CARROT-LLM-Routing/SPROUT
        model_id, label                     a row per prompt and model: RZ412/EmbedLLM
        model_a, model_b and the winner     people's or a judge's preference: lmarena-ai/arena-human-preference-140k and
                                            -100k, lmsys/lmsys-arena-human-preference-55k, routellm/gpt4_judge_battles
Writes  final-datasets/router_dataset_outcomes-<data set>-<timestamp>.jsonl: weak_score and strong_score, 0 to 1, of the
        first rows that pass. A preference gives 1 to the answer preferred and 0 to the other, a tie 0.5 to both (0
        where both were bad). The whole file is written at the end; an interrupted run leaves nothing.

Example:
    python3 create_dataset/import_outcomes.py --dataset routellm/gpt4_dataset --limit 20000
    python3 create_dataset/import_outcomes.py --dataset lmarena-ai/arena-human-preference-140k --limit 20000 \\
        --inferior_models 'gpt-4o-mini*' --superior_models 'gpt-4o-20*' 'claude-*opus*'
"""

import argparse
import json
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from create_dataset.output_file import add_output_flags
from create_dataset.prompt_sources import ID_COLUMNS, Filters, check_prompt_flags, read_data_sets, with_progress
from prompt_files import Record, first_user_turn, is_local, prompt_in, read_records
from router_data import (
    QUESTIONS_FILE,
    InputError,
    NearDuplicateIndex,
    Outcome,
    check_row,
    dedup_key,
    printable,
    program_parser,
    run_script,
    timestamp,
    write_rows,
)

MIXTRAL, GPT4 = "mixtral-8x7b-instruct-v0.1", "gpt-4-1106-preview"  # the pair of routellm/gpt4_dataset
WINNER_COLUMNS = ("winner_model_a", "winner_model_b", "winner_tie")
PROMPT_COLUMNS = ("prompt", "query", "conversation_a")  # in the data sets above; else the usual names
GROUP_COLUMNS = ("category", "dataset", "source", "subject")
MAX_NAMED = 12  # models or columns that a message names

# What the cards said in November 2026, for when the hub's answer has none
LICENCES = {
    "routellm/gpt4_dataset": "apache-2.0",
    "routellm/gpt4_judge_battles": "apache-2.0",
    "lmsys/lmsys-arena-human-preference-55k": "apache-2.0",
}
NEVER = {
    "withmartian/routerbench": "it comes as pickles, which run code when they are loaded, and states no licence",
    "RouteWorks/RouterArena": "its terms allow evaluation only, so nothing may be trained on it",
}


class RowDropped(Exception):
    """A row gives no outcome; the message is the reason, to be counted."""


@dataclass
class Tiers:
    """The models of the two tiers, as the flags name them: names or globs."""

    inferior: list[str]
    superior: list[str]
    seen: Counter[str] = field(default_factory=Counter)  # the data set's models

    def tier_of(self, model: str) -> str | None:
        """`weak`, `strong`, or None for a model of neither tier."""
        self.seen[model] += 1
        if any(fnmatch(model, pattern) for pattern in self.inferior):
            return "weak"
        return "strong" if any(fnmatch(model, pattern) for pattern in self.superior) else None

    def pair_among(self, models: Iterable[str]) -> dict[str, str]:
        """The one model of each tier, under `weak` and `strong`.

        Raises:
            InputError: a tier names none or several of these models; the message lists them.
        """
        names = list(models)
        pair = {}
        for tier, flag, patterns in (
            ("weak", "--inferior_models", self.inferior),
            ("strong", "--superior_models", self.superior),
        ):
            found = [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]
            if len(found) != 1:
                which = f"names {', '.join(found[:MAX_NAMED])}" if found else "names no model of this data set"
                raise InputError(f"{flag} must name one model, but {which}; it has: {listed(names)}")
            pair[tier] = found[0]
        return pair


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags, checked."""
    parser = program_parser(__doc__)
    # fmt: off
    add = parser.add_argument_group("outcomes").add_argument
    add("--dataset", required=True, metavar="NAME", help="hub id, or a local file or folder of the same columns")
    add("--inferior_models", nargs="+", default=[], metavar="NAME",
        help="the inferior tier, names or globs; needed where a data set has several models")
    add("--superior_models", nargs="+", default=[], metavar="NAME", help="the superior tier, likewise")
    add("--limit", type=int, default=20_000, help="outcomes to write at most; 0 is all (default: %(default)s)")
    add("--languages", nargs="+", default=["English", "en"], metavar="NAME",
        help="languages to keep where the data names them, or 'all' (default: English, which bert-base-uncased reads)")
    add("--max_characters", type=int, default=8000, help="longer prompts are dropped (default: %(default)s)")
    add("--judged_on", nargs="+", default=[], metavar="FILE",
        help="files of the prompts you judge on, which nothing imported may come near (default: none)")
    add("--questions_file", type=Path, default=QUESTIONS_FILE,
        help="stage 1's questions, which are never training rows (default: %(default)s)")
    # fmt: on
    add_output_flags(parser, where_it_exists="the import is refused")
    args = parser.parse_args(argv)
    check_prompt_flags(args)
    if args.dataset in NEVER:
        raise InputError(f"{args.dataset} is not imported: {NEVER[args.dataset]}")
    if args.output_file and args.output_file.exists():
        raise InputError(f"{args.output_file} is there already; an import writes a whole new file, so name another")
    return args


# --- the forms -------------------------------------------------------------------------------------------------------


class GradedAgainstGpt4:
    """`routellm/gpt4_dataset`: Mixtral's answer graded 1 to 5 with GPT-4's as the reference."""

    def outcome(self, fields: dict, tiers: Tiers) -> dict[str, Any]:
        """The outcome of a row."""
        grade = as_number(fields["mixtral_score"])
        if grade is None or not 1 <= grade <= 5:
            raise RowDropped("no grade of 1 to 5")
        return scores(MIXTRAL, (grade - 1) / 4, GPT4, 1.0)


class ScorePerModel:
    """`CARROT-LLM-Routing/SPROUT`: a column per model with its score."""

    def __init__(self) -> None:
        self._pair: dict[str, str] = {}

    def outcome(self, fields: dict, tiers: Tiers) -> dict[str, Any]:
        """The outcome of a row."""
        self._pair = self._pair or tiers.pair_among(models_with_scores(fields))
        found = {tier: score_in(fields.get(model)) for tier, model in self._pair.items()}
        return scores(self._pair["weak"], found["weak"], self._pair["strong"], found["strong"])


class RowPerModel:
    """`RZ412/EmbedLLM`: a row per prompt and model; an outcome as soon as both models of a prompt are there."""

    def __init__(self) -> None:
        self._halves: dict[str, dict[str, tuple[str, Any]]] = {}

    def outcome(self, fields: dict, tiers: Tiers) -> dict[str, Any]:
        """The outcome that a row completes."""
        model = str(fields["model_id"])
        tier = tiers.tier_of(model)
        if tier is None:
            raise RowDropped("a model of neither tier")
        key = str(fields.get("prompt_id") or dedup_key(prompt_of(fields)))
        halves = self._halves.setdefault(key, {})
        halves.setdefault(tier, (model, fields["label"]))
        if len(halves) < 2:
            raise RowDropped("waits for the other model")
        del self._halves[key]
        return scores(*halves["weak"], *halves["strong"])


class Preferences:
    """Which of two models' answers was preferred: the arena's and RouteLLM's battles."""

    def outcome(self, fields: dict, tiers: Tiers) -> dict[str, Any]:
        """The outcome of a battle between the tiers."""
        models = {side: str(fields[f"model_{side}"]) for side in "ab"}
        sides = {tiers.tier_of(model): side for side, model in models.items()}
        if not {"weak", "strong"} <= sides.keys():
            raise RowDropped("not between the two tiers")
        result = winner_of(fields)
        score = {"a": {"a": 1.0, "b": 0.0}, "b": {"a": 0.0, "b": 1.0}}.get(result, dict.fromkeys("ab", 0.5))
        if result == "both bad":
            score = dict.fromkeys("ab", 0.0)
        weak, strong = sides["weak"], sides["strong"]
        return scores(models[weak], score[weak], models[strong], score[strong])


Form = GradedAgainstGpt4 | ScorePerModel | RowPerModel | Preferences


def form_of(fields: dict, source: str) -> Form:
    """The form of a data set, by the columns of its first row.

    Raises:
        InputError: none that is known; names the columns that are there.
    """
    if "mixtral_score" in fields:
        return GradedAgainstGpt4()
    if {"model_a", "model_b"} <= fields.keys():
        if "winner" not in fields and not fields.keys() >= set(WINNER_COLUMNS[:2]):
            raise InputError(
                f"{source} has model_a and model_b, but neither `winner` nor {' and '.join(WINNER_COLUMNS[:2])}; "
                f"its columns: {listed(fields)}"
            )
        return Preferences()
    if "model_id" in fields:
        if "label" not in fields:
            raise InputError(f"{source} has model_id, but no `label`; its columns: {listed(fields)}")
        return RowPerModel()
    if models_with_scores(fields):
        return ScorePerModel()
    raise InputError(
        f"{source} has no outcomes that can be read: neither mixtral_score, nor model_a with model_b, nor model_id, "
        f"nor columns with a score; its columns: {listed(fields)}"
    )


def scores(weak_model: str, weak: Any, strong_model: str, strong: Any) -> dict[str, Any]:
    """The fields of an outcome.

    Raises:
        RowDropped: a score is no number of 0 to 1.
    """
    weak, strong = as_number(weak), as_number(strong)
    if weak is None or strong is None or not (0 <= weak <= 1 and 0 <= strong <= 1):
        raise RowDropped("no scores of 0 to 1")
    return {"weak_model": weak_model, "strong_model": strong_model, "weak_score": weak, "strong_score": strong}


def as_number(value: Any) -> float | None:
    """A number that may be written as a text or as a truth value; None for anything else."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def models_with_scores(fields: dict) -> list[str]:
    """The columns that hold a model's score in a structure; it may be JSON in a text."""
    return [name for name, value in fields.items() if score_in(value) is not None]


def score_in(value: Any) -> Any:
    """The score in a structure; None where there is none."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value.get("score") if isinstance(value, dict) else None


def winner_of(fields: dict) -> str:
    """Who won a battle: `a`, `b`, `tie` or `both bad`.

    Raises:
        RowDropped: the row doesn't say.
    """
    if "winner" in fields:
        text = str(fields["winner"]).lower().replace("_", " ").removeprefix("model ")
        result = "both bad" if "bad" in text else text
    else:
        won = [name for name in WINNER_COLUMNS if as_number(fields.get(name)) == 1]
        result = won[0].removeprefix("winner_").removeprefix("model_") if len(won) == 1 else ""
    if result not in ("a", "b", "tie", "both bad"):
        raise RowDropped("no winner")
    return result


def prompt_of(fields: dict) -> str:
    """What the user asked, alone in its conversation.

    Raises:
        RowDropped: there were several turns: scores of the whole say little about the first.
        InputError: no column holds a prompt; names the columns.
    """
    column = next((name for name in PROMPT_COLUMNS if fields.get(name)), None)
    value = fields[column] if column else None
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    if isinstance(value, list) and value and all(turn is None or isinstance(turn, str) for turn in value):
        turns = [turn or "" for turn in value]
    else:
        prompt = prompt_in(fields, column)
        messages = prompt if isinstance(prompt, list) else []
        turns = [message["content"] for message in messages if message["role"] == "user"]
        turns = turns or [first_user_turn(prompt)]
    if len(turns) > 1:
        raise RowDropped("several turns")
    return first_user_turn(turns[0])


# --- the import ------------------------------------------------------------------------------------------------------


def licence_of(name: str) -> str:
    """The licence of a data set in words, from its card on the hub where that can be had."""
    if is_local(name):
        return "that of where the file came from"
    from huggingface_hub import HfApi

    try:
        card = HfApi().dataset_info(name).card_data
    except Exception:  # the hub client raises a dozen kinds; reading the data says what is wrong
        card = None
    if licence := card and card.get("license"):
        return f"{', '.join(licence) if isinstance(licence, list) else licence} (by its card)"
    if name in LICENCES:
        return f"{LICENCES[name]} (by its card of November 2026; the hub doesn't say now)"
    return f"not stated: read https://huggingface.co/datasets/{name} before you use it"


@dataclass
class Import:
    """Turns the rows of a data set into outcomes; `dropped` counts those that give none, by reason."""

    filters: Filters
    tiers: Tiers
    judged: NearDuplicateIndex
    limit: int
    rows: int = 0
    written: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def outcomes(self, records: Iterable[Record]) -> Iterator[Outcome]:
        """The outcomes, at most `limit` (0: all).

        Raises:
            InputError: the first row has no known form, or no prompt; later rows are dropped.
        """
        form: Form | None = None
        seen: set[str] = set()
        for record in records:
            self.rows += 1
            form = form or form_of(record.fields, record.source)
            try:
                outcome = self._outcome(form, record, seen)
            except RowDropped as reason:
                self.dropped[str(reason)] += 1
                continue
            self.written += 1
            yield outcome
            if self.written == self.limit:
                return

    def _outcome(self, form: Form, record: Record, seen: set[str]) -> Outcome:
        fields = record.fields
        try:
            prompt = prompt_of(fields)
        except InputError as error:
            if self.rows == 1:
                raise InputError(f"{record.source}, row {record.number}: {error}") from error
            raise RowDropped("blank or no prompt") from error
        if reason := self.filters.reason_to_drop(fields, prompt):
            raise RowDropped(reason)
        outcome = form.outcome(fields, self.tiers)
        if (key := dedup_key(prompt)) in seen:
            raise RowDropped("repeated")
        if prompt in self.judged:
            raise RowDropped("nearly alike to a prompt of --judged_on")
        seen.add(key)
        group = next((fields[name] for name in GROUP_COLUMNS if isinstance(fields.get(name), str)), None)
        source_id = next((fields[name] for name in ("prompt_id", *ID_COLUMNS) if fields.get(name)), record.number)
        about = {"prompt": prompt, "group": group, "source": record.source, "source_id": str(source_id)}
        return check_row(about | outcome, Outcome, f"{record.source}, row {record.number}")

    def describe(self) -> str:
        """What was read, written and dropped, by reason."""
        lines = [f"{self.rows:,} rows read, {self.written:,} outcomes"]
        return "\n".join(lines + [f"  dropped {count:>9,}  {reason}" for reason, count in self.dropped.most_common()])


def listed(names: Iterable[str]) -> str:
    """The first names of many."""
    names = list(names)
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more if names else "none"


def judged_prompts(files: Sequence[str]) -> NearDuplicateIndex:
    """The prompts that are judged on.

    Raises:
        InputError: a file can't be read, or a row has no column that could hold a prompt.
    """
    return NearDuplicateIndex(first_user_turn(prompt_in(record.fields)) for record in read_records(files))


def main(argv: Sequence[str] | None = None) -> Path:
    """Read a data set, turn its rows into outcomes, and write them; returns the file."""
    # 1. What is read, and under which licence.
    args = parse_args(argv)
    print(f"{args.dataset}: licence {printable(licence_of(args.dataset))}", flush=True)
    tiers = Tiers(args.inferior_models, args.superior_models)
    job = Import(Filters.from_flags(args), tiers, judged_prompts(args.judged_on), args.limit)

    # 2. The outcomes, written as a whole file.
    name = args.dataset.strip("/").replace("/", "-").replace("*", "")
    path = args.output_file or args.output_dir / f"router_dataset_outcomes-{name}-{timestamp()}.jsonl"
    outcomes = list(job.outcomes(with_progress(read_data_sets([args.dataset]))))
    print(job.describe())
    if not outcomes:
        seen = [f"{model} ({count:,})" for model, count in job.tiers.seen.most_common()]
        models = f"; name two tiers of its models: {listed(seen)}" if seen else ""
        raise InputError(f"no outcomes in the {job.rows:,} rows of {args.dataset}{models}")
    write_rows(path, (outcome.model_dump(exclude_none=True) for outcome in outcomes))

    # 3. What came of it.
    better = sum(outcome.strong_score > outcome.weak_score for outcome in outcomes)
    print(f"written to {path}: the superior model's answer is better in {better / len(outcomes):.0%}")
    print(f"next: python3 finetuning_model/finetune_bert.py --train_files {shlex.quote(str(path))}")
    return path


if __name__ == "__main__":
    run_script(main)
