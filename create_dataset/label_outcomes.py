"""Stage 2, with outcomes: let both models answer, let a judge compare, and label by what really happened.

Reads prompts as label_prompts.py does. Each goes to the weak and to the strong model; a judge grades the two answers
twice, with their places exchanged, since judges favour a place. Writes, one row at a time,
    final-datasets/router_dataset_outcomes-<weak>-<strong>-<timestamp>.jsonl
Its rows can train stage 3 (they have a `label`) and judge a router (`weak_score`, `strong_score`, 0 to 1). The label
is ROUTE_TO_SUPERIOR where the weak answer clearly fell short: graded worse in both orders, and by at least the margin
on average. Three models and four answers a prompt cost far more than a label: look at --dry_run first.

Example:
    python3 create_dataset/label_outcomes.py --limit 200 --dry_run
    python3 create_dataset/label_outcomes.py --limit 200 --weak_model gpt-5-nano --strong_model gpt-6-sol --max_usd 5
"""

import argparse
import asyncio
import json
import os
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from create_dataset.label_prompts import DATA, DATASET, draw
from create_dataset.openai_client import Choice, Endpoint, NoAnswer, Run, StopRun
from create_dataset.output_file import OutputFile, now, timestamp
from create_dataset.pricing import Budget, Price, find_price, prices_date, token_counter
from create_dataset.prompt_sources import DrawnPrompts, Prompt
from router_data import INFERIOR, SUPERIOR, InputError, short_sha256, run_script

ROLES = ("weak", "strong", "judge")
JUDGE_PROMPT = Path(__file__).with_name("judge_prompt.txt")
LOWEST, HIGHEST = 1, 10  # of the judge's grades
JUDGEMENT_TOKENS = 20
SCORE = {"type": "integer", "minimum": LOWEST, "maximum": HIGHEST}
JUDGEMENT_FORMAT = {
    "type": "json_schema",
    "json_schema": {
        "name": "judgement",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"score_a": SCORE, "score_b": SCORE},
            "required": ["score_a", "score_b"],
            "additionalProperties": False,
        },
    },
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument_group("the models").add_argument
    add("--weak_model", default="gpt-5-nano", help="the inferior model (default: %(default)s)")
    add("--strong_model", default="gpt-6-sol", help="the superior model (default: %(default)s)")
    add("--judge_model", help="the model that grades both answers (default: the strong model)")
    add("--margin", type=float, default=0.2, help="how much worse, on a scale of 0 to 1, the weak answer must be "
        "graded to have clearly fallen short (default: %(default)s, about two grades of ten)")  # fmt: skip
    add("--max_answer_tokens", type=int, default=1024, help="longest answer of either model (default: %(default)s)")
    add = parser.add_argument_group("the prompts").add_argument
    add("--dataset", nargs="+", default=[DATASET], metavar="NAME", help="hub id, or local .jsonl, .csv or .parquet "
        f"files or globs (default: {DATASET})")  # fmt: skip
    add("--prompt_column", help="column of the prompts (default: the usual names)")
    add("--limit", type=int, default=200, help="prompts to draw at random; 0 is all (default: %(default)s)")
    add("--seed", type=int, default=0, help="seed of the draw (default: %(default)s)")
    add("--languages", nargs="+", default=["English"], metavar="NAME", help="languages to keep where the data names "
        "them, or 'all' (default: English)")  # fmt: skip
    add("--max_characters", type=int, default=8000, help="longer prompts are dropped (default: %(default)s)")
    add("--drop_near_duplicates", action="store_true", help="also drop prompts that are nearly alike (MinHash)")
    add("--questions_file", type=Path, default=DATA / "mt_bench_questions_labelled.jsonl",
        help="stage 1's questions, which are left out (default: ./%(default)s)")  # fmt: skip
    add = parser.add_argument_group("pace and money").add_argument
    add("--max_in_flight", type=int, default=16, help="prompts worked on at the same time (default: %(default)s)")
    add("--requests_per_minute", type=float, help="sent in any minute, at most (default: no limit of ours)")
    add("--tokens_per_minute", type=float, help="sent in any minute, at most (default: no limit of ours)")
    add("--timeout", type=float, default=120, help="seconds to wait for an answer (default: %(default)s)")
    add("--dry_run", action="store_true", help="show rows and the price of each part; ask nothing")
    add("--max_usd", type=float, help="stop before this run has cost more, US dollars (default: no bound)")
    add = parser.add_argument_group("where to").add_argument
    add("--output_dir", type=Path, default=DATA, help="folder of the new file (default: ./%(default)s)")
    add("--output_file", type=Path, help="write to this file instead; where it exists, the run is resumed")
    args = parser.parse_args(argv)
    args.judge_model = args.judge_model or args.strong_model
    return args


def answer_request(model: str, prompt: str, max_tokens: int) -> dict:
    """The prompt as its user sent it."""
    return {"model": model, "messages": [{"role": "user", "content": prompt}], "max_completion_tokens": max_tokens}


def judge_request(model: str, judge_prompt: str, prompt: str, answer_a: str, answer_b: str) -> dict:
    """Ask for two grades; request and answers are data, encoded as JSON."""
    case = {"request": prompt, "answer_a": answer_a, "answer_b": answer_b}
    return {
        "model": model,
        "messages": [
            {"role": "system", "content": judge_prompt},
            {"role": "user", "content": json.dumps(case, ensure_ascii=False)},
        ],
        "response_format": JUDGEMENT_FORMAT,
        "temperature": 0,
        "max_completion_tokens": 256,
    }


def answer_text(choice: Choice) -> str:
    """A model's answer; a refusal or an empty answer is one too, for the judge to grade.

    Raises:
        NoAnswer: a filter stopped it: that says nothing about the model.
    """
    if choice.finish_reason == "content_filter":
        raise NoAnswer("stopped by the content filter")
    return choice.refusal or choice.text


def parse_scores(choice: Choice) -> tuple[float, float]:
    """The two grades of a judgement, as 0 to 1.

    Raises:
        NoAnswer: they are not there, or not grades.
    """
    text = choice.text.strip().removeprefix("```json").removeprefix("```").removesuffix("```")
    try:
        grades = json.loads(text)
        scores = [grades["score_a"], grades["score_b"]]
        valid = all(type(s) in (int, float) and LOWEST <= s <= HIGHEST for s in scores)
    except (ValueError, KeyError, TypeError):
        valid = False
    if not valid:
        raise NoAnswer(f"no judgement: {choice.text.strip()[:200]!r}")
    return tuple((score - LOWEST) / (HIGHEST - LOWEST) for score in scores)


def decide_outcome(first: tuple[float, float], second: tuple[float, float], margin: float) -> dict:
    """The outcome from (weak, strong) scores of both orders: their means, and the label.

    SUPERIOR exactly when the weak answer was graded worse in both orders and by `margin` or more on average.
    """
    weak, strong = ((a + b) / 2 for a, b in zip(first, second, strict=True))
    fell_short = first[0] < first[1] and second[0] < second[1] and strong - weak >= margin - 1e-9
    return {
        "label": SUPERIOR if fell_short else INFERIOR,
        "superior_probability": None,
        "weak_score": round(weak, 4),
        "strong_score": round(strong, 4),
    }


def estimate(drawn: DrawnPrompts, judge_prompt: str, prices: dict[str, Price | None], args) -> str:
    """Rows and the cost of each part, the longest answers assumed; one line a part."""
    count, how = token_counter(args.judge_model)
    prompts = sum(count(prompt.text) for prompt in drawn)
    answers = args.max_answer_tokens * len(drawn)
    judged = 2 * (prompts + 2 * answers + count(judge_prompt) * len(drawn))
    grades = 2 * JUDGEMENT_TOKENS * len(drawn)
    parts = {"weak": (prompts, answers), "strong": (prompts, answers), "judge": (judged, grades)}
    lines = [f"{len(drawn):,} prompts; if every answer is the longest (tokens {how}; prices of {prices_date()}):"]
    for role, (tokens_in, tokens_out) in parts.items():
        money = f"${prices[role].cost(tokens_in, tokens_out):,.4f}" if prices[role] else "price unknown"
        lines.append(f"  {role:<6} {models(args)[role]}: {tokens_in:,} input, {tokens_out:,} output tokens, {money}")
    return "\n".join(lines)


def models(args: argparse.Namespace) -> dict[str, str]:
    """The model of each role."""
    return {role: getattr(args, f"{role}_model") for role in ROLES}


async def find_outcomes(
    prompts: DrawnPrompts, judge_prompt: str, budgets: dict[str, Budget], output: OutputFile, args
) -> tuple[int, int, Run]:
    """Answer and judge the prompts, each written as soon as it is judged; returns labelled, failed, and the end."""
    from tqdm import tqdm

    bar = tqdm(total=len(prompts), desc="outcomes", unit=" prompts", disable=None)
    endpoint = Endpoint(args.requests_per_minute, args.tokens_per_minute, args.timeout, say=bar.write)
    run = Run(endpoint, args.max_in_flight)
    counts = {"labelled": 0, "failed": 0}

    async def answer(role: str, prompt: str) -> str:
        request = answer_request(models(args)[role], prompt, args.max_answer_tokens)
        reply = await endpoint.ask(request, budgets[role])
        if not reply.choices:
            raise NoAnswer(f"no answer of the {role} model")
        return answer_text(reply.choices[0])

    async def judge(prompt: str, answer_a: str, answer_b: str) -> tuple[float, float]:
        request = judge_request(args.judge_model, judge_prompt, prompt, answer_a, answer_b)
        reply = await endpoint.ask(request, budgets["judge"])
        return parse_scores(reply.choices[0] if reply.choices else Choice(""))

    async def find_outcome(prompt: Prompt) -> None:
        row = {"prompt": prompt.text, "source": prompt.source, "source_id": prompt.source_id}
        try:
            weak, strong = await answer("weak", prompt.text), await answer("strong", prompt.text)
            first = await judge(prompt.text, weak, strong)
            second = (await judge(prompt.text, strong, weak))[::-1]
        except NoAnswer as error:
            if endpoint.stopping:
                return  # the next run asks again
            output.append_failure(row | {"reason": str(error), "failed_at": now()})
            counts["failed"] += 1
            run.count(failed=True, reason=str(error))
        else:
            used = {"weak_model": args.weak_model, "strong_model": args.strong_model, "judge_model": args.judge_model}
            answers = {"weak_answer": weak, "strong_answer": strong}
            outcome = decide_outcome(first, second, args.margin)
            output.append(row | outcome | {"labelled_at": now()} | used | answers)
            counts["labelled"] += 1
            run.count(failed=False)
        bar.update()
        bar.set_postfix_str(f"${sum(b.spent_usd for b in budgets.values()):.4f}, {counts['failed']} failed")

    try:
        for model in dict.fromkeys(models(args).values()):
            await endpoint.check_model(model)
        await run.work_through(prompts, find_outcome)
    except StopRun as error:
        run.stop(str(error))
    finally:
        bar.close()
    return counts["labelled"], counts["failed"], run


def main(argv: list[str] | None = None) -> int:
    from dotenv import load_dotenv

    # 1. Settings: the models and their prices.
    args = parse_args(argv)
    load_dotenv(Path(".env"))
    prices = {role: find_price(model) for role, model in models(args).items()}
    unknown = [models(args)[role] for role, price in prices.items() if price is None]
    if args.max_usd is not None and unknown:
        raise InputError(f"--max_usd needs prices: add {unknown[0]} to create_dataset/prices.json")
    if not args.dry_run and not os.environ.get("OPENAI_API_KEY"):
        Endpoint()  # says what is missing before anything slow
    judge_prompt = JUDGE_PROMPT.read_text(encoding="utf-8").strip()

    # 2. The prompts, and what they will cost.
    drawn = draw(args)
    names = [model.replace("/", "-") for model in (args.weak_model, args.strong_model)]
    path = args.output_file or args.output_dir / f"router_dataset_outcomes-{'-'.join(names)}-{timestamp()}.jsonl"
    if args.dry_run:
        print(estimate(drawn, judge_prompt, prices, args))
        return 0

    # 3. Answers and judgements.
    mark = f"outcome_{args.weak_model}_{args.strong_model}_{args.judge_model}"
    with OutputFile(path, mark, short_sha256(judge_prompt)) as output:
        total = len(drawn)
        drawn.leave_out(output.done)
        print(f"{total - len(drawn):,} of {total:,} prompts have an outcome already in {path}")
        print(estimate(drawn, judge_prompt, prices, args))
        words = sys.argv[1:] if argv is None else argv
        more = [] if args.output_file else ["--output_file", str(path)]
        print("to resume: " + shlex.join(["python3", "create_dataset/label_outcomes.py", *words, *more]))
        budgets = Budget.sharing(prices, args.max_usd)
        labelled, failed, run = asyncio.run(find_outcomes(drawn, judge_prompt, budgets, output, args))

    # 4. What came of it, and what each part cost.
    if run.reason:
        print(f"stopped: {run.reason}", file=sys.stderr)
    for role, budget in budgets.items():
        money = f", ${budget.spent_usd:.4f}" if budget.price else ""
        used = f"{budget.input_tokens:,} input and {budget.output_tokens:,} output tokens{money}"
        print(f"  {role:<6} {models(args)[role]}: {used}")
    counts = f"{labelled:,} labelled, {total - len(drawn):,} skipped (labelled before), {failed:,} failed"
    print(f"{counts}, {len(drawn) - labelled - failed:,} left; {path}")
    return run.exit_code


if __name__ == "__main__":
    run_script(main)
