"""Stage 2: ask a language model for every prompt whether the inferior model is enough.

Reads   prompts: the first user turns of lmsys/lmsys-chat-1m, or of any file or hub data set
        the labelling prompt that stage 1 wrote: final-datasets/labelling_prompt.txt
Writes  final-datasets/router_dataset_labelled-openai_<model>-<timestamp>.jsonl, one row at a time, and, where an answer
        could not be had, failures-<the same name>
        A run that was stopped in any way is resumed by the command it prints at the start: prompts labelled already
        are not asked again, failed ones are.

The labelling prompt of stage 1 asks how likely either model's answer is good. A row has both numbers, and as soft label
what their difference is worth. Models that answer with a plain label, and prompts that ask for one, work too.

Example:
    python3 create_dataset/label_prompts.py --limit 1000 --dry_run
    python3 create_dataset/label_prompts.py --agreement
    python3 create_dataset/label_prompts.py --limit 1000 --max_usd 2
"""

import argparse
import asyncio
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from create_dataset.agreement import agreement_report, question_records, unseen_questions
from create_dataset.api_settings import model_name
from create_dataset.label_request import LabelRequest
from create_dataset.openai_batch import BatchJob, state_folder
from create_dataset.openai_client import ChatClient, add_request_flags, check_request_flags
from create_dataset.output_file import OutputFile, add_output_flags, resuming_command
from create_dataset.pricing import (
    BATCH_DISCOUNT,
    Budget,
    Price,
    Usage,
    add_price_flags,
    find_price,
    prices_date,
    token_counter,
)
from create_dataset.prompt_sources import (
    DrawnPrompts,
    Filters,
    Prompt,
    add_prompt_flags,
    check_prompt_flags,
    draw,
)
from create_dataset.worker_pool import WorkerPool
from router_data import (
    LABELLING_PROMPT_FILE,
    InputError,
    Progress,
    dedup_key,
    program_parser,
    read_rows,
    run_script,
    short_sha256,
    timestamp,
)

PROGRAM = "python3 create_dataset/label_prompts.py"
ANSWER_TOKENS = 25  # of {"inferior_quality": 0.55, "superior_quality": 0.85}
SECONDS_PER_ANSWER = 1.0  # for the estimate of the time; hosted models take about that long


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags, checked."""
    parser = program_parser(__doc__)
    add_prompt_flags(parser, limit=10_000)
    # fmt: off
    add = parser.add_argument_group("labels").add_argument
    add("--labelling_prompt", type=Path, default=LABELLING_PROMPT_FILE, metavar="FILE",
        help="text file, sent as the system message (default: %(default)s)")
    add("--model", help="the labelling model (default: OPENAI_MODEL from the environment or .env, else gpt-6-luna)")
    add("--votes", type=int, default=1,
        help="answers per prompt; their mean counts, of labels the share (default: 1, at temperature 0, with log "
        "probabilities where the model gives them)")
    add("--max_output_tokens", type=int, default=256,
        help="longest answer with its thinking, in tokens (default: %(default)s)")
    add = parser.add_argument_group("other ways to run").add_argument
    add("--agreement", action="store_true",
        help="label the MT-Bench questions that the labelling prompt does not show, and report how far the model "
        "agrees with people")
    add("--batch", choices=["submit", "status", "collect"],
        help="use OpenAI's Batch API: half the price, answers within a day; the later steps need --output_file, as the "
        "first one prints")
    # fmt: on
    add_request_flags(parser, max_in_flight=32, timeout=60)
    add_price_flags(parser)
    add_output_flags(parser)
    args = parser.parse_args(argv)
    check(args)
    return args


def check(args: argparse.Namespace) -> None:
    """Refuse what can't work, before anything slow or paid.

    Raises:
        InputError: names the flag and the remedy.
    """
    check_prompt_flags(args)
    check_request_flags(args)
    for name in ("votes", "max_output_tokens"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name} must be at least 1")
    if args.batch in ("status", "collect") and not args.output_file:
        raise InputError(f"--batch {args.batch} needs --output_file, as --batch submit printed it")
    if args.batch and args.agreement:
        raise InputError("--agreement answers at once; it takes no --batch")


def read_labelling_prompt(path: Path) -> str:
    """The labelling prompt's text, without a byte order mark and white space around it.

    Raises:
        InputError: there is none, or it is not UTF-8.
    """
    remedy = "make it with: python3 dataset_analysis/analyse_human_judgments.py"
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: some editors save another encoding; save it as UTF-8") from error
    except OSError as error:
        raise InputError(f"no labelling prompt at {path}; {remedy}") from error
    if not text:
        raise InputError(f"{path} is empty; {remedy}")
    return text


def label_request(args: argparse.Namespace) -> LabelRequest:
    """What is asked for each prompt, and of which model."""
    labelling_prompt = read_labelling_prompt(args.labelling_prompt)
    return LabelRequest(model_name(args.model), labelling_prompt, args.max_output_tokens, args.votes)


def price_of(model: str, args: argparse.Namespace) -> Price | None:
    """What the model costs.

    Raises:
        InputError: --max_usd needs a price that nobody knows.
    """
    price = find_price(model, args.price_input, args.price_output)
    if args.max_usd is not None and price is None:
        raise InputError(
            f"--max_usd needs the price of {model}: give --price_input and --price_output (0 for a server of your own)"
        )
    return price


def output_path(request: LabelRequest, args: argparse.Namespace) -> Path:
    """--output_file, else a new name in --output_dir."""
    kind = "agreement" if args.agreement else "router_dataset_labelled"
    name = f"{kind}-openai_{request.model.replace('/', '-')}-{timestamp()}.jsonl"
    return args.output_file or args.output_dir / name


def open_output(path: Path, request: LabelRequest) -> OutputFile:
    """The file that the labels of this request go to."""
    return OutputFile(path, f"openai_{request.model}", short_sha256(request.labelling_prompt))


def draw_questions(args: argparse.Namespace) -> DrawnPrompts:
    """The MT-Bench questions that the labelling prompt doesn't show."""
    return DrawnPrompts(
        Filters().prompts(question_records(unseen_questions(args.questions_file))), args.limit, args.seed
    )


# --- before money is spent -------------------------------------------------------------------------------------------


def estimate(prompts: DrawnPrompts, request: LabelRequest, price: Price | None, args: argparse.Namespace) -> str:
    """What labelling these prompts takes: rows, tokens, money and time, on one line."""
    count, how = token_counter(request.model)
    per_request = count(request.labelling_prompt) + ANSWER_TOKENS * 2  # the prompt, its frame and the answer's schema
    tokens = Usage(
        per_request * len(prompts) + sum(count(prompt.text) for prompt in prompts),
        ANSWER_TOKENS * request.votes * len(prompts),
    )
    price = price * BATCH_DISCOUNT if args.batch and price else price
    minutes = max(
        len(prompts) * SECONDS_PER_ANSWER / args.max_in_flight / 60,
        len(prompts) / (args.requests_per_minute or float("inf")),
        (tokens.input_tokens + tokens.output_tokens) / (args.tokens_per_minute or float("inf")),
    )
    money = f"about ${price.cost(tokens):,.4f}" if price else "price unknown"
    time = f"about {minutes:.1f} minutes" if minutes >= 1 else "less than a minute"
    dated = f" at {price.input:g} and {price.output:g} $/M (prices of {prices_date()})" if price else ""
    return (
        f"{len(prompts):,} rows to label with {request.model}: {tokens} ({how}), {money}{dated}, {time} at "
        f"{SECONDS_PER_ANSWER:g} s an answer"
    )


# --- the three ways --------------------------------------------------------------------------------------------------


async def label_all(
    prompts: Iterable[Prompt],
    total: int,
    request: LabelRequest,
    client: ChatClient,
    budget: Budget,
    output: OutputFile,
    max_in_flight: int,
) -> WorkerPool:
    """Label the prompts, each written as soon as its answer is there; returns the pool, which counted them."""
    pool = WorkerPool(client, output, max_in_flight)

    async def label(prompt: Prompt, usage: Usage) -> dict:
        return (await request.label(client, budget, prompt.text, usage)).fields()

    def cost() -> str:
        return f", ${budget.spent_usd:.4f}" if budget.price else ""

    await pool.run(prompts, label, Usage, [request.model], Progress("labelling prompts", total), cost)
    return pool


def submit_batches(
    drawn: DrawnPrompts,
    request: LabelRequest,
    client: ChatClient,
    budget: Budget,
    output: OutputFile,
    args: argparse.Namespace,
) -> int:
    """Hand the prompts to the Batch API; the first is asked directly, which shows what the model refuses."""
    with BatchJob(output, client, request) as job:
        drawn.leave_out(job.waiting_keys())
        if drawn and not job.shards:
            first = next(iter(drawn))
            pool = asyncio.run(label_all([first], 1, request, client, budget, output, args.max_in_flight))
            if pool.reason or pool.failed:
                raise InputError(pool.reason or pool.describe_failures())
            drawn.leave_out({dedup_key(first.text)})
        left = None if args.max_usd is None else args.max_usd - budget.spent_usd
        count = job.add_shards(drawn, budget.price * BATCH_DISCOUNT if budget.price else None, left)
        job.submit()
    collect = batch_command("collect", request, output.path, args)
    print(f"{count:,} prompts handed over; fetch the labels with: {collect}")
    print(f"next: {batch_command('status', request, output.path, args)}")
    return 0


def batch_command(step: str, request: LabelRequest, path: Path, args: argparse.Namespace) -> str:
    """The command of a later step of the batches that write to this file."""
    words = ["--labelling_prompt", str(args.labelling_prompt), "--model", request.model, "--output_file", str(path)]
    return f"{PROGRAM} --batch {step} {shlex.join(words)}"


def finish_batches(path: Path, request: LabelRequest, client: ChatClient, args: argparse.Namespace) -> int:
    """Show how far the batches are, or write the labels of those that have ended."""
    if not state_folder(path).exists():
        raise InputError(f"no batches were submitted for {path}; start with --batch submit")
    again = batch_command("collect", request, path, args)
    with open_output(path, request) as output, BatchJob(output, client, request) as job:
        if args.batch == "status":
            print("something is ready to collect" if job.report() else "nothing new is ready")
            print(f"next: {again}")
            return 0
        job.collect()
        job.submit()
        waiting = job.count_waiting()
    print(f"{job.labelled:,} labelled, {job.failed:,} failed, {waiting:,} still with the Batch API; {path}")
    if job.failed:
        print(f"the failures and their reasons: {output.failures_path}")
    print(f"next: {again}" if waiting else next_command(path))
    return int(job.failed > 0 and not job.labelled and not waiting)


# --- the end ---------------------------------------------------------------------------------------------------------


def next_command(path: Path) -> str:
    """What to run on the labels."""
    return f"next: python3 finetuning_model/finetune_bert.py --train_files {shlex.quote(str(path))}"


def summary(pool: WorkerPool, total: int, skipped: int, budget: Budget, before: Usage, output: OutputFile) -> str:
    """How many prompts were labelled, what failed and why, and what it cost; in lines to print."""
    lines = [f"{pool.describe(total, skipped)}; {budget.describe(before)}; {output.path}"]
    if pool.failed:
        lines.append(pool.describe_failures())
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Label prompts, or the questions of MT-Bench (--agreement), at once or through the Batch API (--batch)."""
    # 1. What is asked, of whom, and what it costs.
    args = parse_args(argv)
    words = sys.argv[1:] if argv is None else argv
    request = label_request(args)
    price = price_of(request.model, args)
    path = output_path(request, args)
    client = None if args.dry_run else ChatClient.from_flags(args)
    if client and args.batch in ("status", "collect"):
        return finish_batches(path, request, client, args)

    # 2. The prompts.
    drawn = draw_questions(args) if args.agreement else draw(args)
    if not client:
        print(estimate(drawn, request, price, args))
        print(f"next: {PROGRAM} {shlex.join(word for word in words if word != '--dry_run')}".rstrip())
        return 0

    # 3. What is left to do, and what it will cost.
    with open_output(path, request) as output:
        total = len(drawn)
        drawn.leave_out(output.done)
        if output.rows_of_other_runs:
            print(f"note: {output.rows_of_other_runs:,} rows of {path} are of another model or labelling prompt")
        print(f"{total - len(drawn):,} of {total:,} prompts are labelled already in {path}")
        print(estimate(drawn, request, price, args))
        print(f"to resume: {resuming_command(PROGRAM, words, args, path)}")
        print(f"endpoint: {client.address}", flush=True)

        # 4. The labels.
        budget = Budget(price, args.max_usd, used=output.usage)
        if args.batch:
            return submit_batches(drawn, request, client, budget, output, args)
        before = replace(budget.used)
        pool = asyncio.run(label_all(drawn, len(drawn), request, client, budget, output, args.max_in_flight))

    # 5. What came of it.
    if pool.reason:
        print(f"stopped: {pool.reason}", file=sys.stderr)
    print(summary(pool, total, total - len(drawn), budget, before, output))
    if args.agreement and output.done:
        print(agreement_report(read_rows(path), unseen_questions(args.questions_file)))
        print(f"next: {PROGRAM} --limit 1000 --dry_run")
    elif output.done:
        print(next_command(path))
    return pool.exit_code


if __name__ == "__main__":
    run_script(main)
