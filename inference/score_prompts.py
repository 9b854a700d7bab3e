"""Score a file of prompts: which model each goes to, and what the router saves.

Reads:  a checkpoint, and prompts: JSONL, CSV or parquet (a column `prompt`, or `messages` for conversations), or the
        standard input, where a line that is not a JSON object is a prompt itself.
Writes: JSONL, every row as it came and in the same order, plus routed_to ("superior" or "inferior"), router_score,
        threshold, router, truncated, tokens_scored, characters_received and long_prompt_policy.

Memory stays bounded however long the file is. A run that was stopped goes on where it was when it is started again.

    python3 inference/score_prompts.py --input prompts.jsonl --output scored.jsonl
    echo "What is the capital of France?" | python3 inference/score_prompts.py
"""

import argparse
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from create_dataset.prompt_sources import CONVERSATION_COLUMNS, PROMPT_COLUMNS, read_records
from router_data import SUPERIOR, InputError, encode_row, run_script
from router_model import Prompt, Router, newest_checkpoint, user_turns

STANDARD = "-"
WINDOW_ROWS = 512  # scored and written together; a stopped run loses at most these
WINDOW_CHARACTERS = 16_000_000


def score_rows(
    router: Router, rows: Sequence[dict], threshold: float | None = None, column: str | None = None, first: int = 1
) -> list[dict]:
    """The rows with what the router says of each.

    Args:
        router: the loaded checkpoint.
        rows: a prompt each; a blank one is not scored, its routed_to and router_score are None.
        threshold: superior from this probability on; None takes the checkpoint's.
        column: where the prompt is; None takes the first known name.
        first: the number of the first row, for messages.

    Raises:
        InputError: a row has no prompt; the row is named.
    """
    prompts = []
    for number, row in enumerate(rows, first):
        try:
            prompts.append(prompt_of(row, column))
        except InputError as error:
            raise InputError(f"row {number}: {error}") from error
    decisions = iter(router.decide([prompt for prompt in prompts if prompt], threshold))
    threshold = router.settings.threshold if threshold is None else threshold
    scored = []
    for row, prompt in zip(rows, prompts, strict=True):
        decision = next(decisions) if prompt else None
        scored.append(
            row
            | {
                "routed_to": decision and ("superior" if decision.router_label == SUPERIOR else "inferior"),
                "router_score": decision and round(decision.router_score, 6),
                "threshold": threshold,
                "router": router.model_save_dir.resolve().name,
                "truncated": bool(decision and decision.truncated),
                "tokens_scored": decision.tokens_scored if decision else 0,
                "characters_received": decision.characters_received if decision else 0,
                "long_prompt_policy": router.settings.long_prompt_policy,
            }
        )
    return scored


def prompt_of(row: dict, column: str | None = None) -> Prompt | None:
    """The text or the conversation of a row; None where it is blank."""
    names = [column] if column else [*PROMPT_COLUMNS, *CONVERSATION_COLUMNS]
    name = next((name for name in names if name in row), None)
    if name is None:
        raise InputError(
            f"no {column or 'prompt'}, but {', '.join(row)}; name the prompt's column with --prompt_column"
        )
    prompt = row[name]
    if isinstance(prompt, list):
        return prompt if any(turn.strip() for turn in user_turns(prompt)) else None
    if prompt is None or isinstance(prompt, str):
        return prompt if prompt and prompt.strip() else None
    raise InputError(f"{name} is neither a text nor a list of messages: {str(prompt)[:80]}")


def read_input(source: str) -> Iterator[dict]:
    """The rows of a file, or of the standard input."""
    if source == STANDARD:
        yield from lines_of_standard_input()
    else:
        yield from (plain(record.fields) for record in read_records([source]))


def plain(value: object) -> object:
    """The value as JSON can hold it: what has no JSON form becomes text, and numbers that are none become null."""
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float) else str(value)


def lines_of_standard_input() -> Iterator[dict]:
    if sys.stdin.isatty():
        print("one prompt a line; Ctrl+D ends it", file=sys.stderr)
    for line in sys.stdin.buffer:
        text = line.decode("utf-8", "replace").strip()
        if text.startswith("{"):
            try:
                row = json.loads(text)
            except json.JSONDecodeError:
                row = {"prompt": text}
            yield plain(row)
        elif text:
            yield {"prompt": text}


def windows(rows: Iterable[dict]) -> Iterator[list[dict]]:
    """Rows in groups of bounded size."""
    window, characters = [], 0
    for row in rows:
        window.append(row)
        characters += sum(len(value) for value in row.values() if isinstance(value, str))
        if len(window) == WINDOW_ROWS or characters >= WINDOW_CHARACTERS:
            yield window
            window, characters = [], 0
    if window:
        yield window


class Output:
    """The scored rows so far and those to come; use it in a `with` block.

    Attributes:
        path: the file, or "-".
        counts: rows by routed_to, and "truncated".
        rows: how many are written.
    """

    def __init__(self, path: str):
        self.path = path
        self.counts: Counter = Counter()
        self.rows = 0

    def __enter__(self) -> "Output":
        if self.path == STANDARD:
            self._file = sys.stdout.buffer
        else:
            Path(self.path).parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a+b")
        return self

    def __exit__(self, *error) -> None:
        if self.path != STANDARD:
            self._file.close()

    def done(self) -> Iterator[dict]:
        """The rows that an earlier run wrote; a line it could not finish is cut off."""
        if self.path == STANDARD:
            return
        self._file.seek(0)
        end = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                self._file.truncate(end)
                break
            end += len(line)
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict) or "router_score" not in row:
                raise InputError(f"{self.path} holds something else than scored prompts; name another --output")
            self._count(row)
            yield row

    def write(self, rows: list[dict]) -> None:
        for row in rows:
            self._count(row)
        self._file.write(b"".join(map(encode_row, rows)))
        self._file.flush()

    def _count(self, row: dict) -> None:
        self.rows += 1
        self.counts[row["routed_to"]] += 1
        self.counts["truncated"] += row["truncated"]


def skip_done(rows: Iterator[dict], output: Output, router: Router, threshold: float) -> None:
    """Pass over the input rows that are scored already; they must be these rows, by this router and threshold."""
    same = {"router": router.model_save_dir.resolve().name, "threshold": threshold}
    for number, scored in enumerate(output.done(), 1):
        row = next(rows, None)
        expected = None if row is None else json.loads(encode_row(row)) | same
        if expected is None or any(scored.get(name) != value for name, value in expected.items()):
            raise InputError(
                f"{output.path}, line {number}, is of another input, router or threshold; "
                "name another --output, or delete the file to score anew"
            )


def rows_in(source: str) -> int | None:
    """How many rows a file has where that is quick to say; for the progress bar."""
    path = Path(source)
    if path.suffix == ".jsonl" and path.is_file():
        with open(path, "rb") as file:
            return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))
    if path.suffix == ".parquet" and path.is_file():
        import pyarrow.parquet

        return pyarrow.parquet.read_metadata(path).num_rows
    return None


def summary(counts: Counter, seconds: float, scored: int, prices: tuple[float, float] | None) -> str:
    """The last lines: shares, money, speed."""
    routed = counts["superior"] + counts["inferior"]
    share = counts["superior"] / max(routed, 1)
    lines = [
        f"{routed:,} prompts: {counts['superior']:,} ({share:.1%}) to the superior model, {counts['inferior']:,} "
        f"({1 - share if routed else 0:.1%}) to the inferior; {counts['truncated']:,} too long to score whole, "
        f"{counts[None]:,} blank"
    ]
    if prices:
        superior, inferior = prices
        alone = routed / 1000 * superior
        cost = (counts["superior"] * superior + counts["inferior"] * inferior) / 1000
        saved = (alone - cost) / alone if alone else 0
        lines.append(f"costs {cost:,.2f} instead of {alone:,.2f} with the superior model alone: {saved:.1%} saved")
    lines.append(f"scored {scored:,} in {seconds:.1f} s ({scored / max(seconds, 1e-9):,.0f} a second)")
    return "\n".join(lines)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", default=STANDARD, metavar="FILE", help="prompts (default: -, the standard input)")
    parser.add_argument("--output", default=STANDARD, metavar="FILE", help="JSONL (default: -, the standard output)")
    add_router_flags(parser)
    parser.add_argument(
        "--price_superior", type=float, metavar="MONEY", help="what 1,000 prompts cost with the superior model alone"
    )
    parser.add_argument(
        "--price_inferior", type=float, metavar="MONEY", help="what 1,000 prompts cost with the inferior model alone"
    )
    args = parser.parse_args(argv)
    if (args.price_superior is None) != (args.price_inferior is None):
        parser.error("--price_superior and --price_inferior go together")
    return args


def add_router_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that say which router scores what."""
    parser.add_argument(
        "--model_save_dir", metavar="DIR", help="the checkpoint's folder (default: the newest in ./models)"
    )
    parser.add_argument(
        "--hf_model_name",
        metavar="NAME",
        help="where the tokenizer comes from if the folder has none (hub id or folder)",
    )
    parser.add_argument(
        "--threshold", type=float, metavar="P", help="superior from this probability on (default: the checkpoint's)"
    )
    parser.add_argument(
        "--prompt_column",
        metavar="NAME",
        help=f"default: the first of {', '.join(PROMPT_COLUMNS)}, messages that is there",
    )
    parser.add_argument(
        "--backend", choices=("onnx", "torch"), help="default: onnx on a CPU, torch on a GPU or without an ONNX file"
    )


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    from tqdm import tqdm

    # 1. The router, and the rows that are not scored yet
    router = Router.load(args.model_save_dir or newest_checkpoint(), args.hf_model_name, args.backend)
    threshold = router.settings.threshold if args.threshold is None else args.threshold
    rows = read_input(args.input)
    with Output(args.output) as output:
        skip_done(rows, output, router, threshold)
        done = output.rows
        if done:
            print(f"{done:,} rows of {args.output} are there already; going on with the next", file=sys.stderr)

        # 2. Window by window: score, write
        started = time.perf_counter()
        with tqdm(total=rows_in(args.input), initial=done, unit=" prompts", disable=args.input == STANDARD) as bar:
            for window in windows(rows):
                output.write(score_rows(router, window, threshold, args.prompt_column, output.rows + 1))
                bar.update(len(window))
        seconds = time.perf_counter() - started

    # 3. What that means
    prices = None if args.price_superior is None else (args.price_superior, args.price_inferior)
    print(summary(output.counts, seconds, output.rows - done, prices), file=sys.stderr)


if __name__ == "__main__":
    run_script(main)
