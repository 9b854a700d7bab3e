"""Where prompts come from: hub data sets and local files, filters, and a draw by seed.

One pass over the data, in little memory however long the data set is: what may be drawn waits in a temporary SQLite
file. Of a million prompts the draw takes some 75 MB.
"""

import argparse
import hashlib
import sqlite3
from array import array
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from prompt_files import Record, first_user_turn, is_local, prompt_in, read_records
from router_data import (
    QUESTIONS_FILE,
    InputError,
    LabelledQuestion,
    NearDuplicateIndex,
    Progress,
    dedup_key,
    normalise_prompt,
    read_rows,
)

DATASET = "lmsys/lmsys-chat-1m"
ID_COLUMNS = ("conversation_id", "question_id", "id", "source_id")
HUB_SPLIT = "train"
HUB_TRIES = 3  # by default 20 with up to a minute between them, and that for each of several layers
INDEX_CACHE_KIB = 32_000  # holds the index of a million ranks; with less, every insert reads the disk


class Prompt(NamedTuple):
    """A prompt to label and where it came from."""

    text: str
    source: str
    source_id: str

    def fields(self) -> dict[str, str]:
        """The fields of a row that say which prompt it is of."""
        return {"prompt": self.text, "source": self.source, "source_id": self.source_id}


def add_prompt_flags(parser: argparse.ArgumentParser, limit: int) -> None:
    """The flags from which `draw` takes the prompts; `limit` is the default of --limit."""
    # fmt: off
    add = parser.add_argument_group("prompts").add_argument
    add("--dataset", nargs="+", default=[DATASET], metavar="NAME",
        help=f"hub id, or local files, folders or globs: JSONL, JSON, CSV, parquet, ... (default: {DATASET})")
    add("--prompt_column", metavar="NAME", help="column of the prompts (default: the usual names)")
    add("--limit", type=int, default=limit, help="prompts to draw at random; 0 is all (default: %(default)s)")
    add("--seed", type=int, default=0, help="seed of the draw (default: %(default)s)")
    add("--languages", nargs="+", default=["English"], metavar="NAME",
        help="languages to keep where the data names them, or 'all' (default: English, which bert-base-uncased reads)")
    add("--max_characters", type=int, default=8000, help="longer prompts are dropped (default: %(default)s)")
    add("--drop_near_duplicates", action="store_true", help="also drop prompts that are nearly alike (MinHash)")
    add("--questions_file", type=Path, default=QUESTIONS_FILE,
        help="stage 1's questions, which are never labelled as training rows (default: %(default)s)")
    # fmt: on


def check_prompt_flags(args: argparse.Namespace) -> None:
    """Refuse values of `add_prompt_flags` that can't work.

    Raises:
        InputError: names the flag.
    """
    if args.limit < 0:
        raise InputError("--limit must not be negative; 0 is all")
    if args.max_characters < 1:
        raise InputError("--max_characters must be at least 1")


# --- reading ---------------------------------------------------------------------------------------------------------


def read_data_sets(names: Iterable[str]) -> Iterator[Record]:
    """The rows of hub data sets (streamed) and of local files, one at a time.

    Raises:
        InputError: no such file, an unknown kind of file, a malformed line (named), or a hub that refuses or is away.
    """
    for name in names:
        yield from read_records([name]) if is_local(name) else _read_hub(name)


def _read_hub(name: str) -> Iterator[Record]:
    from datasets import config, load_dataset
    from datasets.exceptions import DatasetNotFoundError

    config.STREAMING_READ_MAX_RETRIES = config.STREAMING_OPEN_MAX_RETRIES = HUB_TRIES
    try:
        for number, fields in enumerate(load_dataset(name, split=HUB_SPLIT, streaming=True), 1):
            yield Record(fields, name, number)
    except DatasetNotFoundError as error:
        raise InputError(
            f"cannot read {name}: there is no such data set or file, or it is gated; if gated, accept its terms at "
            f"https://huggingface.co/datasets/{name} and put a read token as HF_TOKEN in .env"
        ) from error
    except Exception as error:  # the hub client raises a dozen kinds, most of them for a network that is away
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise InputError(f"cannot read {name} from the hub ({reason}); --dataset also takes a local file") from error


# --- filtering -------------------------------------------------------------------------------------------------------


@dataclass
class Filters:
    """Which prompts are kept; `dropped` counts the others by reason."""

    prompt_column: str | None = None
    languages: frozenset[str] = frozenset()  # casefolded; empty keeps all
    max_characters: int = 8000
    excluded_keys: frozenset[str] = frozenset()  # `normalise_prompt` of the benchmark's questions
    dropped: Counter[str] = field(default_factory=Counter)
    rows: int = 0

    @classmethod
    def from_flags(cls, args: argparse.Namespace) -> "Filters":
        """The filters that `add_prompt_flags` sets; a program without --prompt_column looks at the usual names."""
        languages = frozenset(name.casefold() for name in args.languages)
        return cls(
            prompt_column=getattr(args, "prompt_column", None),
            languages=frozenset() if "all" in languages else languages,
            max_characters=args.max_characters,
            excluded_keys=question_keys(args.questions_file),
        )

    def prompts(self, records: Iterable[Record]) -> Iterator[Prompt]:
        """The prompts that pass, repeats included.

        Raises:
            InputError: the first row has no column that could hold a prompt; later ones are dropped.
        """
        for record in records:
            self.rows += 1
            try:
                text = first_user_turn(prompt_in(record.fields, self.prompt_column))
            except InputError as error:
                if self.rows == 1:
                    raise InputError(f"{record.source}, row {record.number}: {error}") from error
                text = ""
            if reason := self.reason_to_drop(record.fields, text):
                self.dropped[reason] += 1
                continue
            source_id = next((record.fields[c] for c in ID_COLUMNS if record.fields.get(c)), record.number)
            yield Prompt(text, record.source, str(source_id).encode("utf-8", "replace").decode())

    def reason_to_drop(self, fields: dict, text: str) -> str | None:
        """Why a row is dropped; None where it is kept."""
        key = normalise_prompt(text)
        if not key:
            return "blank or no prompt"
        if is_flagged(fields.get("openai_moderation")):
            return "flagged by moderation"
        if fields.get("redacted") in (True, "True", "true"):
            return "redacted"
        language = fields.get("language")
        if self.languages and isinstance(language, str) and language.casefold() not in self.languages:
            return "other language"
        if len(text) > self.max_characters:
            return f"longer than {self.max_characters} characters"
        return "MT-Bench question" if key in self.excluded_keys else None


def is_flagged(moderation: object) -> bool:
    """Whether moderation flagged any message of the conversation."""
    results = moderation if isinstance(moderation, list) else [moderation]
    return any(isinstance(result, dict) and result.get("flagged") for result in results)


def question_keys(path: Path) -> frozenset[str]:
    """`normalise_prompt` of all turns of the MT-Bench questions; none where stage 1 has not run."""
    if not path.exists():
        print(f"note: no {path}, so MT-Bench questions among the prompts are not dropped")
        return frozenset()
    rows = read_rows(path, LabelledQuestion)
    return frozenset(normalise_prompt(turn) for row in rows for turn in (row.prompt, *row.turns))


# --- drawing ---------------------------------------------------------------------------------------------------------


class DrawnPrompts:
    """A sample without replacement and without repeats, in random order, kept in a temporary file.

    A prompt's rank is a hash of the seed and its text (case and white space folded), and the `limit` lowest ranks are
    drawn: one pass suffices, the order of the rows doesn't matter, any first part of the sample is itself a sample,
    and a larger limit with the same seed begins with the smaller one's prompts. Repeats have the same rank.

    Attributes:
        repeats: prompts that were there already, up to case and white space.
        near_duplicates: prompts left out for one that is nearly alike.
    """

    def __init__(self, prompts: Iterable[Prompt], limit: int, seed: int, drop_near_duplicates: bool = False) -> None:
        """`limit` 0 draws all."""
        self._database = _temporary_database()
        self.near_duplicates = 0
        count = 0

        def rows() -> Iterator[tuple]:
            nonlocal count
            for prompt in prompts:
                count += 1
                yield rank_of(prompt.text, seed), *prompt

        self._database.execute("CREATE TABLE prompts (rank INTEGER UNIQUE, text TEXT, source TEXT, source_id TEXT)")
        self._database.executemany("INSERT OR IGNORE INTO prompts VALUES (?, ?, ?, ?)", rows())
        self.repeats = count - self._database.execute("SELECT COUNT(*) FROM prompts").fetchone()[0]
        at_most = -1 if drop_near_duplicates or not limit else limit
        ranks = self._database.execute("SELECT rank FROM prompts ORDER BY rank LIMIT ?", (at_most,))
        self._ranks = array("q", (rank for (rank,) in ranks))
        if drop_near_duplicates:
            self._drop_near_duplicates(limit or len(self._ranks))

    def __len__(self) -> int:
        return len(self._ranks)

    def __iter__(self) -> Iterator[Prompt]:
        for rank in self._ranks:
            yield self._prompt(rank)

    def leave_out(self, done: Container[str]) -> None:
        """Forget the prompts whose `dedup_key` is in `done`."""
        self._ranks = array("q", (rank for rank in self._ranks if dedup_key(self._prompt(rank).text) not in done))

    def _prompt(self, rank: int) -> Prompt:
        row = self._database.execute("SELECT text, source, source_id FROM prompts WHERE rank = ?", (rank,))
        return Prompt(*row.fetchone())

    def _drop_near_duplicates(self, limit: int) -> None:
        """Walk in the order of the ranks and skip what is close to a prompt drawn already, until `limit` are drawn."""
        drawn, kept = NearDuplicateIndex(), array("q")
        for rank in self._ranks:
            text = self._prompt(rank).text
            if text in drawn:
                self.near_duplicates += 1
                continue
            drawn.add(text)
            kept.append(rank)
            if len(kept) == limit:
                break
        self._ranks = kept


def rank_of(prompt: str, seed: int) -> int:
    """The place of a prompt in the random order of a seed: a signed 64-bit integer, lower ones are drawn first."""
    key = hashlib.blake2b(normalise_prompt(prompt).encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8, key=str(seed).encode()).digest()) - 2**63


def _temporary_database() -> sqlite3.Connection:
    """An empty database in a temporary file without a name (SQLITE_TMPDIR, else /var/tmp): it goes with the process."""
    database = sqlite3.connect("")
    for setting in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{INDEX_CACHE_KIB}"):
        database.execute(f"PRAGMA {setting}")
    return database


def draw(args: argparse.Namespace) -> DrawnPrompts:
    """Read the data sets, filter them, draw the sample, and say what was dropped and why.

    Args:
        args: with the flags of `add_prompt_flags`.

    Raises:
        InputError: nothing can be read, or every row was dropped.
    """
    filters = Filters.from_flags(args)
    name = ", ".join(args.dataset)
    try:
        prompts = filters.prompts(with_progress(read_data_sets(args.dataset)))
        drawn = DrawnPrompts(prompts, args.limit, args.seed, args.drop_near_duplicates)
    except OSError as error:
        raise InputError(f"cannot read {name}: {error.strerror or error}") from error
    except sqlite3.Error as error:
        raise InputError(f"cannot keep the prompts in a temporary file ({error}); free some space") from error
    dropped = filters.dropped + Counter({"repeated": drawn.repeats})
    print(f"{name}: {filters.rows:,} rows, {filters.rows - dropped.total():,} pass the filters")
    for reason, count in dropped.most_common():
        print(f"  dropped {count:>9,}  {reason}")
    if drawn.near_duplicates:
        print(f"  dropped {drawn.near_duplicates:>9,}  nearly alike")
    if not drawn:
        reason = (
            f"all {filters.rows:,} rows were dropped, most as: {dropped.most_common(1)[0][0]}"
            if dropped
            else "it has no rows"
        )
        raise InputError(f"no prompts in {name}: {reason}")
    return drawn


def with_progress(records: Iterable[Record]) -> Iterator[Record]:
    """The records, while stderr says how far it is."""
    progress = Progress("reading rows")
    for record in records:
        yield record
        progress.add()
    progress.close()
