"""Rows of prompts with the router's answer: what batch scoring, Ray's workers and the page's file tab share."""

from collections.abc import Sequence
from dataclasses import asdict

from prompt_files import Record, Report, prompt_in
from router_data import InputError
from router_model import Decision, Router

# What a scored row has beside its own columns; a column of its own by one of these names is written over
ANSWER_FIELDS = (
    "router_score", "router_label", "threshold", "router", "truncated", "framed", "unfamiliar",
    "tokens_scored", "characters_received",
)  # fmt: skip
SCORE_DIGITS = 6


def score_rows(
    router: Router, records: Sequence[Record], threshold: float, column: str | None, bad_row: Report
) -> list[dict]:
    """The rows with what the router says of each, in their order.

    Args:
        router: the loaded checkpoint.
        records: a prompt each; without one, router_score and router_label are None.
        threshold: SUPERIOR from this router score on.
        column: where the prompt is; None takes the first usual name.
        bad_row: is told of a row whose prompt can't be read.
    """
    prompts = read_prompts(records, column, bad_row)
    decisions = iter(router.decide([prompt for prompt in prompts if prompt], threshold))
    return [
        with_answer(record.fields, next(decisions) if prompt else None, threshold, router)
        for record, prompt in zip(records, prompts, strict=True)
    ]


def read_prompts(records: Sequence[Record], column: str | None, bad_row: Report) -> list[str | list[dict] | None]:
    """The prompt of each row; None where it is blank, and where it can't be read, of which `bad_row` is told."""
    prompts: list[str | list[dict] | None] = []
    for record in records:
        try:
            prompts.append(prompt_in(record.fields, column))
        except InputError as error:
            prompts.append(None)
            bad_row(f"{record.source}, row {record.number}: {error}")
    return prompts


def with_answer(fields: dict, decision: Decision | None, threshold: float, router: Router) -> dict:
    """A row with the fields of contract 1's `RouterAnswer`, and what they rest on."""
    answer = asdict(decision) if decision else dict.fromkeys(ANSWER_FIELDS)
    if decision:
        answer["router_score"] = round(decision.router_score, SCORE_DIGITS)
    name = router.model_save_dir.resolve().name if router.model_save_dir else None
    return fields | {key: answer.get(key) for key in ANSWER_FIELDS} | {"threshold": threshold, "router": name}
