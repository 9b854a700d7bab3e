"""Stage 2, with outcomes: let both models answer, let a judge compare, and label by what really happened.

Reads   prompts, as label_prompts.py does. Each goes to the weak and to the strong model; a judge grades the two answers
        twice, with their places exchanged, since judges favour a place. With --answers the two answers stand in the
        endpoint's decision log already (shadow mode), and only the judge is asked.
Writes  final-datasets/router_dataset_outcomes-<weak>-<strong>-<timestamp>.jsonl, one row at a time
        Its rows can train stage 3 (they have a `label`) and judge a router (`weak_score`, `strong_score`, 0 to 1). The
        label is ROUTE_TO_SUPERIOR where the weak answer clearly fell short: graded worse in both orders, and by two
        grades of ten on average. Three models and four answers a prompt cost far more than a label: look at --dry_run.

Example:
    python3 create_dataset/label_outcomes.py --limit 200 --dry_run
    python3 create_dataset/label_outcomes.py --limit 200 --weak_model gpt-5-nano --strong_model gpt-6-sol --max_usd 5
    python3 create_dataset/label_outcomes.py --dataset decisions.jsonl --choose 200 --max_usd 5
    python3 create_dataset/label_outcomes.py --answers decisions.jsonl --judge_model gpt-6-sol --max_usd 1
"""

import argparse
import asyncio
import secrets
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from create_dataset.choose_prompts import PromptList, choose
from create_dataset.label_request import FILTERED, answer_format, encode_data, json_objects, text_after_thinking
from create_dataset.openai_client import (
    AnswerMissing,
    ChatClient,
    Choice,
    add_request_flags,
    check_request_flags,
)
from create_dataset.output_file import OutputFile, add_output_flags, resuming_command
from create_dataset.pricing import Budget, Price, Usage, find_price, prices_date, token_counter
from create_dataset.prompt_sources import DrawnPrompts, Prompt, add_prompt_flags, check_prompt_flags, draw, rank_of
from create_dataset.worker_pool import WorkerPool
from prompt_files import read_records
from router_data import (
    INFERIOR,
    SUPERIOR,
    InputError,
    Progress,
    ShadowedDecision,
    check_row,
    dedup_key,
    has_both_answers,
    program_parser,
    run_script,
    short_sha256,
    timestamp,
)

PROGRAM = "python3 create_dataset/label_outcomes.py"
ROLES = ("weak", "strong", "judge")
TIER_OF_ROLE = {"weak": "inferior", "strong": "superior"}
JUDGE_PROMPT = Path(__file__).with_name("judge_prompt.txt")
MIN_GRADE, MAX_GRADE = 1, 10
MARGIN = 0.2  # how much worse, on a scale of 0 to 1, an answer that clearly fell short is graded
JUDGEMENT_TOKENS = 40
GRADES = ("score_a", "score_b")  # the judge's prompt calls them so; see draw_grade_names


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags, checked."""
    parser = program_parser(__doc__)
    # fmt: off
    add = parser.add_argument_group("models").add_argument
    add("--weak_model", default="gpt-5-nano", help="the inferior model (default: %(default)s)")
    add("--strong_model", default="gpt-6-sol", help="the superior model (default: %(default)s)")
    add("--judge_model", help="the model that grades both answers (default: the strong model)")
    add("--max_answer_tokens", type=int, default=1024,
        help="longest answer of either model, in tokens (default: %(default)s)")
    add = parser.add_argument_group("other ways to run").add_argument
    add("--answers", nargs="+", default=[], metavar="FILE",
        help="decision logs with both models' answers: they are graded, and neither model is asked (default: none)")
    add("--choose", type=int, metavar="N",
        help="instead of --limit: N prompts, spread evenly over the router_score of the rows (default: a random draw)")
    # fmt: on
    add_prompt_flags(parser, limit=200)
    add_request_flags(parser, max_in_flight=16, timeout=120)
    add_output_flags(parser)
    args = parser.parse_args(argv)
    check_prompt_flags(args)
    check_request_flags(args)
    if args.choose is not None and args.choose < 1:
        raise InputError("--choose must be at least 1")
    if args.answers and args.choose:
        raise InputError("--choose picks prompts to ask about; with --answers nothing is asked: use --limit")
    if args.max_answer_tokens < 1:
        raise InputError("--max_answer_tokens must be at least 1")
    return args


Answers = Mapping[str, ShadowedDecision]  # by the prompt's text


def models_by_role(args: argparse.Namespace, answers: Answers) -> dict[str, str]:
    """The model of each role; of several in a log the commonest."""
    models = {"weak": args.weak_model, "strong": args.strong_model}
    if answers:
        for role, tier in TIER_OF_ROLE.items():
            names = Counter(decision.model_of(tier) for decision in answers.values())
            models[role] = names.most_common(1)[0][0]
    return models | {"judge": args.judge_model or models["strong"]}


def read_answers(files: Sequence[str]) -> dict[str, ShadowedDecision]:
    """The decisions of logs in which both models' answers stand, by prompt; the first of a repeated one.

    Raises:
        InputError: no such file, a row that is not valid, or no row with both answers.
    """
    found: dict[str, ShadowedDecision] = {}
    keys: set[str] = set()
    rows = 0
    for record in read_records(files):
        rows += 1
        if not has_both_answers(record.fields) or "prompt" not in record.fields:
            continue
        decision = check_row(record.fields, ShadowedDecision, f"{record.source}, row {record.number}")
        has_text = decision.prompt.strip() and (decision.inferior_answer or decision.superior_answer)
        if has_text and (key := dedup_key(decision.prompt)) not in keys:
            keys.add(key)
            found[decision.prompt] = decision
    if not found:
        raise InputError(
            f"none of the {rows:,} rows of {' '.join(map(str, files))} has the answers of both models; the endpoint "
            "writes them with --shadow_share 0.02 --log_prompts"
        )
    return found


def prompts_to_judge(args: argparse.Namespace, answers: Answers) -> DrawnPrompts | PromptList:
    """The prompts of the answers that are there, at most --limit of them; else those that are drawn or chosen."""
    if not answers:
        return choose(args) if args.choose else draw(args)
    drawn = sorted(answers, key=lambda text: rank_of(text, args.seed))[: args.limit or None]
    return PromptList(Prompt(text, "decision log", str(getattr(answers[text], "time", ""))) for text in drawn)


def prices_by_role(models: dict[str, str], max_usd: float | None) -> dict[str, Price | None]:
    """The price of each model that is asked, by role.

    Raises:
        InputError: there is a bound, and a price that nobody knows.
    """
    prices = {role: find_price(model) for role, model in models.items()}
    unknown = [models[role] for role, price in prices.items() if price is None]
    if max_usd is not None and unknown:
        raise InputError(f"--max_usd needs prices: add {unknown[0]} to create_dataset/prices.json")
    return prices


# --- one prompt ------------------------------------------------------------------------------------------------------


GradeNames = tuple[str, str]


def draw_grade_names() -> GradeNames:
    """What the judge calls its two grades: names that no answer can know.

    A judge may copy the object that an answer ends in; under other names that is no judgement. One draw a run is
    enough, since the answers are written without it, and providers compile each new schema for seconds.
    """
    key = secrets.token_hex(4)
    return f"grade_{key}_a", f"grade_{key}_b"  # neither holds one of GRADES, which are replaced one after the other


def judge_request(
    model: str, judge_prompt: str, names: GradeNames, prompt: str, answer_a: str, answer_b: str
) -> dict[str, Any]:
    """Ask for two grades under these names; request and answers are data, encoded as JSON."""
    for plain, name in zip(GRADES, names, strict=True):
        judge_prompt = judge_prompt.replace(plain, name)
    case = {"request": prompt, "answer_a": answer_a, "answer_b": answer_b}
    return {
        "model": model,
        "messages": [
            {"role": "system", "content": judge_prompt},
            {"role": "user", "content": encode_data(case)},
        ],
        "response_format": answer_format("judgement", dict.fromkeys(names, {"type": "integer"})),
        "temperature": 0,
        "max_completion_tokens": 256,
    }


def answer_text(choice: Choice) -> str:
    """A model's answer; a refusal or an empty answer is one too, for the judge to grade.

    Raises:
        AnswerMissing: a filter stopped it: that says nothing about the model.
    """
    if choice.finish_reason in FILTERED:
        raise AnswerMissing("stopped by the content filter")
    return choice.refusal or text_after_thinking(choice.text)[1]


def parse_scores(choice: Choice, names: GradeNames) -> tuple[float, float]:
    """The two grades of a judgement, as 0 to 1.

    Raises:
        AnswerMissing: they are not there, or not grades.
    """

    def read(fields: dict) -> tuple[float, float] | None:
        return _scores_of([fields.get(name) for name in names])

    found = [scores for _, scores in json_objects(text_after_thinking(choice.text)[1], read)]
    if len(set(found)) != 1:
        raise AnswerMissing(f"no judgement: {choice.text.strip()[:200]!r}")
    return found[0]


def _scores_of(grades: list[Any]) -> tuple[float, float] | None:
    scores = [(grade - MIN_GRADE) / (MAX_GRADE - MIN_GRADE) for grade in grades if type(grade) in (int, float)]
    return (scores[0], scores[1]) if len(scores) == 2 and all(0 <= score <= 1 for score in scores) else None


def decide_outcome(first: tuple[float, float], second: tuple[float, float]) -> dict[str, Any]:
    """The outcome from (weak, strong) scores of both orders: their means, and the label.

    SUPERIOR exactly when the weak answer was graded worse in both orders and by MARGIN or more on average.

    Raises:
        AnswerMissing: each order clearly prefers another answer: one of the two judgements was led astray.
    """
    gains = [strong - weak for weak, strong in (first, second)]
    if min(gains) <= -MARGIN + 1e-9 and max(gains) >= MARGIN - 1e-9:
        raise AnswerMissing("the judge clearly prefers another answer in each order")
    weak, strong = ((a + b) / 2 for a, b in zip(first, second, strict=True))
    fell_short = first[0] < first[1] and second[0] < second[1] and strong - weak >= MARGIN - 1e-9
    return {
        "label": SUPERIOR if fell_short else INFERIOR,
        "superior_probability": None,
        "weak_score": round(weak, 4),
        "strong_score": round(strong, 4),
    }


class OutcomeFinder:
    """Has a prompt answered by both models and the answers judged.

    Attributes:
        models: the model of each role.
        budgets: the budget of each role that is asked.
        answers: those that are there already.
    """

    def __init__(
        self,
        client: ChatClient,
        models: dict[str, str],
        budgets: dict[str, Budget],
        args: argparse.Namespace,
        answers: Answers,
    ):
        self.client, self.models, self.budgets, self.answers = client, models, budgets, answers
        self.max_answer_tokens = args.max_answer_tokens
        self.judge_prompt, self.grade_names = read_judge_prompt(), draw_grade_names()

    async def find(self, prompt: Prompt, usage: dict[str, Usage]) -> dict[str, Any]:
        """The fields of an outcome; what it used is added to `usage`, by role.

        Raises:
            StopRun, BudgetReached, AnswerMissing, CutShort: as `ChatClient.ask`.
        """
        names = {f"{role}_model": model for role, model in self.models.items()}
        if decision := self.answers.get(prompt.text):
            weak, strong = decision.inferior_answer, decision.superior_answer
            names |= {f"{role}_model": decision.model_of(tier) for role, tier in TIER_OF_ROLE.items()}
        else:
            weak = await self._answer("weak", prompt.text, usage)
            strong = await self._answer("strong", prompt.text, usage)
        first = await self._judge(prompt.text, weak, strong, usage)
        second = (await self._judge(prompt.text, strong, weak, usage))[::-1]
        return decide_outcome(first, second) | names | {"weak_answer": weak, "strong_answer": strong}

    async def _answer(self, role: str, prompt: str, usage: dict[str, Usage]) -> str:
        messages = [{"role": "user", "content": prompt}]  # as its user sent it
        request = {"model": self.models[role], "messages": messages, "max_completion_tokens": self.max_answer_tokens}
        reply = await self.client.ask(request, self.budgets[role], usage[role])
        if not reply.choices:
            raise AnswerMissing(f"no answer of the {role} model")
        return answer_text(reply.choices[0])

    async def _judge(self, prompt: str, answer_a: str, answer_b: str, usage: dict[str, Usage]) -> tuple[float, float]:
        model = self.models["judge"]
        request = judge_request(model, self.judge_prompt, self.grade_names, prompt, answer_a, answer_b)
        reply = await self.client.ask(request, self.budgets["judge"], usage["judge"])
        return parse_scores(reply.choices[0] if reply.choices else Choice(""), self.grade_names)


def read_judge_prompt() -> str:
    """The text that tells the judge how to grade."""
    return JUDGE_PROMPT.read_text(encoding="utf-8").strip()


# --- all prompts -----------------------------------------------------------------------------------------------------


def estimate(
    drawn: DrawnPrompts | PromptList,
    models: dict[str, str],
    prices: dict[str, Price | None],
    max_answer_tokens: int,
    answers: Answers,
) -> str:
    """Rows and the cost of each part, the longest answers assumed where they are not known; one line a part."""
    count, how = token_counter(models["judge"])
    prompts = sum(count(prompt.text) for prompt in drawn)
    longest = max_answer_tokens * len(drawn)
    known = [answers[prompt.text] for prompt in drawn if prompt.text in answers]
    answered = sum(count(decision.inferior_answer) + count(decision.superior_answer) for decision in known)
    judged = 2 * (prompts + (answered if answers else 2 * longest) + count(read_judge_prompt()) * len(drawn))
    parts = {
        "weak": Usage(prompts, longest),
        "strong": Usage(prompts, longest),
        "judge": Usage(judged, 2 * JUDGEMENT_TOKENS * len(drawn)),
    }
    assumed = "answers as they are in the log" if answers else "if every answer is the longest"
    lines = [f"{len(drawn):,} prompts; {assumed} (tokens {how}; prices of {prices_date()}):"]
    for role, price in prices.items():
        money = f"${price.cost(parts[role]):,.4f}" if price else "price unknown"
        lines.append(f"  {role:<6} {models[role]}: {parts[role]}, {money}")
    return "\n".join(lines)


class UsageByRole(dict[str, Usage]):
    """What the requests of one prompt used, by role."""

    def __init__(self) -> None:
        super().__init__({role: Usage() for role in ROLES})

    def fields(self) -> dict[str, Any]:
        """The field of a row that says so; none where nothing was used."""
        used = {role: tokens.fields() for role, tokens in self.items() if tokens.fields()}
        return {"usage": used} if used else {}


async def find_outcomes(
    drawn: DrawnPrompts | PromptList, finder: OutcomeFinder, output: OutputFile, max_in_flight: int
) -> WorkerPool:
    """Answer and judge the prompts, each written as soon as it is judged; returns the pool, which counted them."""
    pool = WorkerPool(finder.client, output, max_in_flight)

    def cost() -> str:
        return f", ${sum(budget.spent_usd for budget in finder.budgets.values()):.4f}"

    models = dict.fromkeys(finder.models[role] for role in finder.budgets)
    await pool.run(drawn, finder.find, UsageByRole, models, Progress("judging prompts", len(drawn)), cost)
    return pool


def main(argv: Sequence[str] | None = None) -> int:
    """Answer and judge prompts, and write their outcomes."""
    # 1. Which models, and what they cost.
    args = parse_args(argv)
    words = sys.argv[1:] if argv is None else argv
    answers = read_answers(args.answers) if args.answers else {}
    models = models_by_role(args, answers)
    asked = {role: models[role] for role in ROLES if role == "judge" or not answers}
    prices = prices_by_role(asked, args.max_usd)
    client = None if args.dry_run else ChatClient.from_flags(args)

    # 2. The prompts.
    drawn = prompts_to_judge(args, answers)
    if not client:
        print(estimate(drawn, models, prices, args.max_answer_tokens, answers))
        print(f"next: {PROGRAM} {shlex.join(word for word in words if word != '--dry_run')}".rstrip())
        return 0

    # 3. What is left to do, and what it will cost at most.
    names = "-".join(models[role].replace("/", "-") for role in ("weak", "strong"))
    path = args.output_file or args.output_dir / f"router_dataset_outcomes-{names}-{timestamp()}.jsonl"
    with OutputFile(path, f"outcome_{'_'.join(models.values())}", short_sha256(read_judge_prompt())) as output:
        total = len(drawn)
        drawn.leave_out(output.done)
        print(f"{total - len(drawn):,} of {total:,} prompts have an outcome already in {path}")
        print(estimate(drawn, models, prices, args.max_answer_tokens, answers))
        print(f"to resume: {resuming_command(PROGRAM, words, args, path)}")
        print(f"endpoint: {client.address}", flush=True)

        # 4. Answers and judgements.
        budgets = Budget.sharing(prices, args.max_usd)
        for role, budget in budgets.items():
            budget.used = output.usage_by_role[role]
        before = {role: replace(budget.used) for role, budget in budgets.items()}
        finder = OutcomeFinder(client, models, budgets, args, answers)
        pool = asyncio.run(find_outcomes(drawn, finder, output, args.max_in_flight))

    # 5. What came of it, and what each part cost.
    if pool.reason:
        print(f"stopped: {pool.reason}", file=sys.stderr)
    for role, budget in budgets.items():
        print(f"  {role:<6} {models[role]}: {budget.describe(before[role])}")
    print(f"{pool.describe(total, total - len(drawn))}; {path}")
    if pool.failed:
        print(pool.describe_failures())
    if output.done:
        print(f"next: python3 finetuning_model/evaluate_router.py --outcomes {shlex.quote(str(path))}")
    return pool.exit_code


if __name__ == "__main__":
    run_script(main)
