"""Prices, and a budget that is never passed."""

import asyncio
import json
import re
from pathlib import Path

import pytest
from labelling_runs import PRICED, each_once, label, rows, write_prompts
from openai_server import Answer, completion

from create_dataset import pricing
from create_dataset.pricing import Budget, BudgetReached, Price, Usage
from router_data import InputError


def test_the_bound_is_never_passed_even_if_every_answer_is_the_longest(serve, capsys):
    prompts = write_prompts(200)

    def longest(prompt, nth, body):
        answer = completion()
        text = json.dumps(body, ensure_ascii=False)
        answer.body["usage"] = {"prompt_tokens": len(text.encode()), "completion_tokens": 50}
        return answer

    server = serve(longest, delay=0.01)
    assert label("--max_usd", "30", "--max_output_tokens", "50", *PRICED) == 0
    told = capsys.readouterr()
    spent = sum(row["input_tokens"] / 1000 + row["output_tokens"] / 100 for row in rows())
    worst = max(row["input_tokens"] / 1000 + 0.5 for row in rows()) + pricing.MESSAGE_TOKENS / 1000
    assert 30 - worst < spent <= 30, "as near as the worst case of one more request allows"
    assert len(rows()) == len(server.bodies) and "could pass --max_usd" in told.err and f"${spent:.4f}" in told.out
    assert label("--max_usd", "30", "--max_output_tokens", "50", *PRICED) == 0
    assert len(server.bodies) == len(rows()), "the bound counts what the file has cost before"
    assert label("--max_output_tokens", "50", *PRICED) == 0 and each_once(prompts)


def test_answers_that_were_lost_may_have_been_charged(serve, capsys):
    write_prompts(40)
    serve(lambda p, nth, _: Answer(completion().body, cut=30) if nth == 1 else completion())
    assert label("--max_usd", "20", "--max_in_flight", "1", "--max_output_tokens", "10", *PRICED) == 0
    said = capsys.readouterr().out
    lost, total = (float(re.search(p, said)[1]) for p in (r"\(\$([\d.]+) of it at most", r", \$([\d.]+) \("))
    assert 0 < len(rows()) < 40 and lost > 10 and total <= 20
    assert sum(row["input_tokens"] / 1000 + row["output_tokens"] / 100 for row in rows()) <= total


def test_what_the_endpoint_reports_is_what_the_summary_says(serve, capsys):
    write_prompts(10)
    serve()
    assert label(*PRICED) == 0
    assert "1,000 input and 100 output tokens, $2.0000; out.jsonl" in capsys.readouterr().out


def test_the_flags_are_known_by_their_earlier_names(serve, capsys):
    write_prompts(1)
    serve()
    assert label("--price_per_million_input", "1000", "--price_per_million_output", "10000") == 0
    assert "$0.2000" in capsys.readouterr().out


def test_a_server_of_ones_own_costs_nothing_and_any_bound_holds(serve, capsys):
    prompts = write_prompts(5)
    serve()
    assert label("--max_usd", "0.01", "--price_input", "0", "--price_output", "0") == 0
    assert each_once(prompts) and "$0.0000" in capsys.readouterr().out


def test_prices_come_from_the_file_or_the_flags():
    assert pricing.find_price("gpt-4o-mini-2024-07-18") == pricing.find_price("openai/gpt-4o-mini") == Price(0.15, 0.6)
    assert pricing.find_price("llama") is None and pricing.find_price("llama", 1, 2) == Price(1, 2)
    assert pricing.find_price("llama", 0, 0) == Price(0, 0)
    assert pricing.find_price("gpt-4o-mini", price_input=9).input == 9
    with pytest.raises(InputError, match="go together"):
        pricing.find_price("llama", 1)
    for wrong in (-1, float("nan"), float("inf")):
        with pytest.raises(InputError, match="must not be negative"):
            pricing.find_price("llama", 1, wrong)
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", pricing.prices_date())


def test_a_bound_without_a_price_is_refused():
    write_prompts(2)
    with pytest.raises(InputError, match="--price_input"):
        label("--max_usd", "3")


def test_dry_run_asks_nothing_and_shows_rows_tokens_and_money(serve, capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    write_prompts(1000)
    server = serve()
    assert label("--dry_run", "--price_input", "1000", "--price_output", "0") == 0
    *_, said, following = capsys.readouterr().out.splitlines()
    tokens = int(re.search(r"([\d,]+) input", said)[1].replace(",", ""))
    assert "1,000 rows" in said and f"about ${tokens / 1000:,.4f}" in said and tokens > 10_000
    assert "less than a minute at 1 s an answer" in said
    assert "estimated at 4 characters a token" in said, "the model is unknown to tiktoken, and the line must say so"
    assert following.startswith("next: python3 create_dataset/label_prompts.py") and "--dry_run" not in following
    assert not server.headers and not Path("out.jsonl").exists()


def test_budgets_that_share_a_bound_wait_for_one_another():
    async def spend() -> list[str]:
        events = []
        budgets = Budget.sharing({"a": Price(1e6, 0), "b": Price(1e6, 0)}, max_usd=10)

        async def use(name: str, bound: float, used: float) -> None:
            try:
                async with budgets[name].reserve(Usage(bound)) as reservation:
                    events.append(f"{name} begins")
                    await asyncio.sleep(0.01)
                    reservation.used = Usage(used)
            except BudgetReached:
                events.append(f"{name} refused")

        await asyncio.gather(use("a", 8, 1), use("b", 6, 6))
        await use("a", 4, 4)
        return events

    assert asyncio.run(spend()) == ["a begins", "b begins", "a refused"]


def test_a_reservation_that_ends_unforeseen_counts_whole():
    async def fail(budget: Budget) -> None:
        async with budget.reserve(Usage(5, estimated=True)):
            raise RuntimeError

    budget = Budget(Price(1e6, 0))
    with pytest.raises(RuntimeError):
        asyncio.run(fail(budget))
    assert budget.spent_usd == budget.uncertain_usd == 5 and budget.reserved_usd == 0
