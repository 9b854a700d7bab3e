"""Stage 2: ask a language model for every prompt whether the inferior model is enough.

Reads prompts (the first user turns of lmsys/lmsys-chat-1m, or any JSONL, CSV or parquet file or hub data set with a
prompt column) and the labelling prompt that stage 1 wrote. Writes, one row at a time,
    final-datasets/router_dataset_labelled-openai_<model>-<timestamp>.jsonl
and, where an answer could not be had, failures-<the same name>. A run that was stopped in any way is resumed by the
command it prints at the start; prompts labelled already are not asked again, failed ones are.

Example:
    python3 create_dataset/label_prompts.py --limit 1000 --dry_run
    python3 create_dataset/label_prompts.py --agreement
    python3 create_dataset/label_prompts.py --limit 1000 --max_usd 2
"""

import argparse
import asyncio
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from create_dataset.agreement import agreement_report, question_records, unseen_questions
from create_dataset.label_request import ask_label, decide
from create_dataset.openai_batch import BatchJob
from create_dataset.openai_client import Endpoint, NoAnswer, Run, StopRun, model_name
from create_dataset.output_file import OutputFile, now, dedup_key, timestamp
from create_dataset.pricing import BATCH_DISCOUNT, Budget, Price, find_price, prices_date, token_counter
from create_dataset.prompt_sources import DrawnPrompts, Filters, Prompt, read_records
from router_data import InputError, LabelledQuestion, short_sha256, normalise_prompt, read_rows, run_script

DATASET = "lmsys/lmsys-chat-1m"
DATA = Path("./final-datasets")
ANSWER_TOKENS = 15  # of {"label": "ROUTE_TO_SUPERIOR"}
SECONDS_PER_ANSWER = 1.0  # for the estimate of the time; hosted models take about that long


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument_group("what to label").add_argument
    add("--dataset", nargs="+", default=[DATASET], metavar="NAME", help="hub id, or local .jsonl, .csv or .parquet "
        f"files or globs (default: {DATASET})")  # fmt: skip
    add("--prompt_column", help="column of the prompts (default: the usual names)")
    add("--limit", type=int, default=10_000, help="prompts to draw at random; 0 is all (default: %(default)s)")
    add("--seed", type=int, default=0, help="seed of the draw (default: %(default)s)")
    add("--languages", nargs="+", default=["English"], metavar="NAME", help="languages to keep where the data names "
        "them, or 'all' (default: English, which bert-base-uncased reads)")  # fmt: skip
    add("--max_characters", type=int, default=8000, help="longer prompts are dropped (default: %(default)s)")
    add("--drop_near_duplicates", action="store_true", help="also drop prompts that are nearly alike (MinHash)")
    add("--questions_file", type=Path, default=DATA / "mt_bench_questions_labelled.jsonl",
        help="stage 1's questions, which are never labelled as training rows (default: ./%(default)s)")  # fmt: skip
    add = parser.add_argument_group("how to label").add_argument
    add("--labelling_prompt", type=Path, default=DATA / "labelling_prompt.txt",
        help="text file, sent as the system message (default: ./%(default)s)")  # fmt: skip
    add("--model", help="the labelling model (default: OPENAI_MODEL from the environment or .env, else gpt-6-luna)")
    add("--votes", type=int, default=1, help="answers per prompt; their share is superior_probability "
        "(default: 1, at temperature 0, with log probabilities where the model gives them)")  # fmt: skip
    add("--max_output_tokens", type=int, default=256, help="longest answer, in tokens (default: %(default)s)")
    add = parser.add_argument_group("pace and money").add_argument
    add("--max_in_flight", type=int, default=32, help="requests at the same time (default: %(default)s)")
    add("--requests_per_minute", type=float, help="sent in any minute, at most (default: no limit of ours)")
    add("--tokens_per_minute", type=float, help="sent in any minute, at most (default: no limit of ours)")
    add("--timeout", type=float, default=60, help="seconds to wait for an answer (default: %(default)s)")
    add("--dry_run", action="store_true", help="show rows, tokens, price and time; ask nothing")
    add("--max_usd", type=float, help="stop before the output file has cost more, US dollars (default: no bound)")
    add("--price_per_million_input", type=float, help="US dollars (default: from create_dataset/prices.json)")
    add("--price_per_million_output", type=float, help="US dollars (default: from create_dataset/prices.json)")
    add = parser.add_argument_group("other ways to run").add_argument
    add("--agreement", action="store_true", help="label the MT-Bench questions that the labelling prompt does not "
        "show, and report how far the model agrees with people")  # fmt: skip
    add("--batch", choices=["submit", "status", "collect"], help="use OpenAI's Batch API: half the price, answers "
        "within a day; the later steps need --output_file, as the first one prints")  # fmt: skip
    add = parser.add_argument_group("where to").add_argument
    add("--output_dir", type=Path, default=DATA, help="folder of the new file (default: ./%(default)s)")
    add("--output_file", type=Path, help="write to this file instead; where it exists, the run is resumed")
    args = parser.parse_args(argv)
    for name in ("max_in_flight", "votes", "max_output_tokens", "timeout", "max_characters"):
        if getattr(args, name) <= 0:
            parser.error(f"--{name} must be positive")
    if args.limit < 0:
        parser.error("--limit must not be negative")
    if args.batch in ("status", "collect") and not args.output_file:
        parser.error(f"--batch {args.batch} needs --output_file, as --batch submit printed it")
    if args.batch and args.agreement:
        parser.error("--agreement answers at once; it takes no --batch")
    return args


def read_labelling_prompt(path: Path) -> str:
    """The labelling prompt's text.

    Raises:
        InputError: there is none.
    """
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"no labelling prompt at {path}; make it with: python3 dataset_analysis/analyse_human_judgments.py"
        ) from error
    if not text:
        raise InputError(f"{path} is empty; make it with: python3 dataset_analysis/analyse_human_judgments.py")
    return text


def question_keys(path: Path) -> frozenset[str]:
    """The keys of all turns of the MT-Bench questions; none where stage 1 has not run."""
    if not path.exists():
        print(f"note: no {path}, so MT-Bench questions among the prompts are not dropped")
        return frozenset()
    return frozenset(normalise_prompt(turn) for row in read_rows(path, LabelledQuestion) for turn in (row.prompt, *row.turns))


def draw(args: argparse.Namespace) -> DrawnPrompts:
    """Read the data set, filter it, draw the sample, and say what was dropped and why."""
    languages = frozenset(name.casefold() for name in args.languages)
    filters = Filters(
        prompt_column=args.prompt_column,
        languages=frozenset() if "all" in languages else languages,
        max_characters=args.max_characters,
        excluded_keys=question_keys(args.questions_file),
    )
    from tqdm import tqdm

    records = tqdm(read_records(args.dataset), desc="reading", unit=" rows", leave=False, disable=None)
    folder = (args.output_file or args.output_dir / "x").parent
    try:
        drawn = DrawnPrompts(filters.prompts(records), args.limit, args.seed, folder, args.drop_near_duplicates)
    except OSError as error:
        raise InputError(f"cannot read the data set or write to {folder}: {error.strerror}") from error
    passed = filters.rows - filters.dropped.total()
    print(f"{', '.join(args.dataset)}: {filters.rows:,} rows, {passed:,} pass the filters")
    for reason, count in sorted(filters.dropped.items(), key=lambda item: -item[1]):
        print(f"  dropped {count:>9,}  {reason}")
    if drawn.near_duplicates:
        print(f"  dropped {drawn.near_duplicates:>9,}  nearly alike")
    return drawn


def draw_questions(args: argparse.Namespace) -> DrawnPrompts:
    """The MT-Bench questions that the labelling prompt doesn't show."""
    records = question_records(unseen_questions(args.questions_file))
    folder = (args.output_file or args.output_dir / "x").parent
    return DrawnPrompts(Filters().prompts(records), args.limit, args.seed, folder)


def estimate(prompts: DrawnPrompts, labelling_prompt: str, model: str, price: Price | None, args) -> str:
    """What labelling these prompts takes: rows, tokens, money and time, on one line."""
    count, how = token_counter(model)
    per_request = count(labelling_prompt) + ANSWER_TOKENS * 2  # the prompt, its frame and the answer's schema
    input_tokens = per_request * len(prompts) + sum(count(prompt.text) for prompt in prompts)
    output_tokens = ANSWER_TOKENS * args.votes * len(prompts)
    if args.batch and price:
        price = price * BATCH_DISCOUNT
    minutes = max(
        len(prompts) * SECONDS_PER_ANSWER / args.max_in_flight / 60,
        len(prompts) / (args.requests_per_minute or float("inf")),
        (input_tokens + output_tokens) / (args.tokens_per_minute or float("inf")),
    )
    money = f"about ${price.cost(input_tokens, output_tokens):,.4f}" if price else "price unknown"
    dated = f" at {price.input:g} and {price.output:g} $/M (prices of {prices_date()})" if price else ""
    return (
        f"{len(prompts):,} rows to label with {model}: {input_tokens:,} input and {output_tokens:,} output tokens "
        f"({how}), {money}{dated}, about {minutes:.1f} minutes at {SECONDS_PER_ANSWER:g} s an answer"
    )


def resuming_command(argv: list[str], output_file: Path) -> str:
    """The command that continues this run."""
    command = ["python3", "create_dataset/label_prompts.py", *argv]
    named = any(word.split("=")[0] == "--output_file" for word in argv)
    return shlex.join(command if named else [*command, "--output_file", str(output_file)])


async def label_all(
    prompts: Sequence[Prompt] | DrawnPrompts,
    labelling_prompt: str,
    model: str,
    budget: Budget,
    output: OutputFile,
    args,
    endpoint=None,
) -> tuple[int, int, Run]:
    """Label the prompts, each written as soon as its answer is there; returns labelled, failed and how it ended."""
    from tqdm import tqdm

    bar = tqdm(total=len(prompts), desc="labelling", unit=" prompts", disable=None)
    endpoint = endpoint or Endpoint(args.requests_per_minute, args.tokens_per_minute, args.timeout, say=bar.write)
    run = Run(endpoint, args.max_in_flight)
    labelled = failed = 0

    async def label(prompt: Prompt) -> None:
        nonlocal labelled, failed
        row = {"prompt": prompt.text, "source": prompt.source, "source_id": prompt.source_id}
        choices, tokens = [], {}
        try:
            choices, *used = await ask_label(
                endpoint, budget, model, labelling_prompt, prompt.text, args.max_output_tokens, args.votes
            )
            tokens = dict(zip(("input_tokens", "output_tokens"), used, strict=True))
            answer = decide(choices)
        except NoAnswer as error:
            if endpoint.stopping and not choices:
                return  # a retry that a stop cut short is not a failure: the next run asks again
            reply = choices[0].text[:500] if choices else None
            output.append_failure(row | {"reason": str(error), "answer": reply, "failed_at": now()} | tokens)
            failed += 1
            run.count(failed=True, reason=str(error))
        else:
            label = {"label": answer.label, "superior_probability": answer.superior_probability}
            votes = {"votes": answer.votes} if args.votes > 1 else {}
            output.append(row | label | {"labelled_at": now()} | votes | tokens)
            labelled += 1
            run.count(failed=False)
        bar.update()
        bar.set_postfix_str(f"${budget.spent_usd:.4f}, {failed} failed" if budget.price else f"{failed} failed")

    try:
        await endpoint.check_model(model)
        await run.work_through(prompts, label)
    except StopRun as error:
        run.stop(str(error))
    finally:
        bar.close()
    return labelled, failed, run


def submit_batches(
    drawn: DrawnPrompts, labelling_prompt: str, model: str, price: Price | None, output: OutputFile, args
) -> int:
    """Hand the prompts to the Batch API; the first is asked directly, which shows what the model refuses."""
    endpoint = Endpoint(timeout=args.timeout)
    job = BatchJob(output, endpoint, model, labelling_prompt)
    drawn.leave_out(job.waiting_keys())
    spent = price.cost(output.input_tokens, output.output_tokens) if price else 0.0
    budget = Budget(price, args.max_usd, output.input_tokens, output.output_tokens)
    if drawn and not job.shards:
        first = [next(iter(drawn))]
        *_, run = asyncio.run(label_all(first, labelling_prompt, model, budget, output, args, endpoint))
        if run.reason:
            raise InputError(run.reason)
        drawn.leave_out({dedup_key(first[0].text)})
        spent = budget.spent_usd
    left = None if args.max_usd is None else args.max_usd - spent
    half = price * BATCH_DISCOUNT if price else None
    try:
        count = job.add_shards(drawn, args.max_output_tokens, args.votes, half, left)
    except OSError as error:
        raise InputError(f"cannot write to {job.folder}: {error.strerror}") from error
    job.submit()
    print(f"{count:,} prompts handed over; see how far they are, then fetch the labels:")
    shared = f"--labelling_prompt {args.labelling_prompt} --model {model} --output_file {output.path}"
    for step in ("status", "collect"):
        print(f"  python3 create_dataset/label_prompts.py --batch {step} {shared}")
    return 0


def finish_batches(path: Path, model: str, labelling_prompt: str, step: str) -> int:
    """Show how far the batches are, or write the labels of those that have ended."""
    if not path.with_suffix(".batch").exists():
        raise InputError(f"no batches were submitted for {path}; start with --batch submit")
    with OutputFile(path, f"openai_{model}", short_sha256(labelling_prompt)) as output:
        job = BatchJob(output, Endpoint(), model, labelling_prompt)
        if step == "status":
            print("something is ready: use --batch collect" if job.report() else "nothing new is ready")
            return 0
        labelled, failed = job.collect()
        job.submit()
        waiting = sum(shard["count"] for shard in job.shards if not shard["collected"])
    print(f"{labelled:,} labelled, {failed:,} failed, {waiting:,} still with the Batch API; {path}")
    return 0


def main(argv: list[str] | None = None) -> int:
    from dotenv import load_dotenv

    # 1. Settings: the labelling prompt, the model and its price.
    args = parse_args(argv)
    load_dotenv(Path(".env"))
    labelling_prompt = read_labelling_prompt(args.labelling_prompt)
    model = model_name(args.model)
    price = find_price(model, args.price_per_million_input, args.price_per_million_output)
    if args.max_usd is not None and price is None:
        raise InputError(f"--max_usd needs the price of {model}: give --price_per_million_input and _output")
    if not args.dry_run and not os.environ.get("OPENAI_API_KEY"):
        Endpoint()  # says what is missing before anything slow

    kind = "agreement" if args.agreement else "router_dataset_labelled"
    name = f"{kind}-openai_{model.replace('/', '-')}-{timestamp()}.jsonl"
    path = args.output_file or args.output_dir / name
    if args.batch in ("status", "collect"):
        return finish_batches(path, model, labelling_prompt, args.batch)

    # 2. The prompts: read, filter, draw.
    drawn = draw_questions(args) if args.agreement else draw(args)

    # 3. What it will cost.
    if args.dry_run:
        print(estimate(drawn, labelling_prompt, model, price, args))
        return 0

    with OutputFile(path, f"openai_{model}", short_sha256(labelling_prompt)) as output:
        all_drawn = len(drawn)
        drawn.leave_out(output.done)
        if output.foreign_rows:
            print(f"note: {output.foreign_rows:,} rows of {path} are of another model or labelling prompt")
        print(f"{all_drawn - len(drawn):,} of {all_drawn:,} prompts are labelled already in {path}")
        print(estimate(drawn, labelling_prompt, model, price, args))
        print(f"to resume: {resuming_command(sys.argv[1:] if argv is None else argv, path)}")

        # 4. Label them.
        if args.batch:
            return submit_batches(drawn, labelling_prompt, model, price, output, args)
        budget = Budget(price, args.max_usd, output.input_tokens, output.output_tokens)
        before = budget.input_tokens, budget.output_tokens, budget.spent_usd
        labelled, failed, run = asyncio.run(label_all(drawn, labelling_prompt, model, budget, output, args))

    # 5. What came of it.
    if run.reason:
        print(f"stopped: {run.reason}", file=sys.stderr)
    used = f"{budget.input_tokens - before[0]:,} input and {budget.output_tokens - before[1]:,} output tokens"
    money = f", ${budget.spent_usd - before[2]:.4f}" if price else ""
    lost = f" (${budget.unsure_usd:.4f} of it for answers that never arrived, at most)" if budget.unsure_usd else ""
    skipped, left = all_drawn - len(drawn), len(drawn) - labelled - failed
    counts = f"{labelled:,} labelled, {skipped:,} skipped (labelled before), {failed:,} failed, {left:,} left"
    print(f"{counts}; {used}{money}{lost}; {path}")
    if args.agreement:
        print(agreement_report(read_rows(path), unseen_questions(args.questions_file)))
    return run.exit_code


if __name__ == "__main__":
    run_script(main)
