"""What is kept of a request: log lines, metrics, rows of the decision log."""

import json
import logging
import re
from contextlib import suppress

import openai
import pytest
from openai_server import error
from routing_endpoint import (
    EASY_PROMPT,
    HARD_PROMPT,
    OWN_KEY,
    broken,
    endpoint,
    user,
    wait_until,
)

from inference.endpoint.records import MAX_LOGGED_CHARACTERS, shortened, usage_in
from router_data import INFERIOR, SUPERIOR


def test_health_and_metrics_tell_how_it_is(routed, upstream, router):
    routed.ask()
    routed.ask(HARD_PROMPT, stream=True).parse().close()
    routed.post(b"{")
    upstream.behave = lambda *_: error(400)
    with suppress(openai.BadRequestError):
        routed.ask(model="superior")
    wait_until(lambda: routed.metrics().get("router_in_flight{}") == 0)
    assert routed.get("/health").json() == {
        "status": "ok", "in_flight": 0, "threshold": 0.5, "checkpoint": router.model_save_dir.name,
        "backend": router.backend,
    }  # fmt: skip
    metrics = routed.metrics()
    assert metrics["router_decisions_total{small,router,inferior}"] == 1
    assert metrics["router_decisions_total{large,superior,superior}"] == 1
    assert metrics["router_score_count{}"] == metrics["router_decision_seconds_count{}"] == 2
    assert metrics["router_upstream_first_byte_seconds_count{superior}"] == 2
    assert metrics["router_errors_total{invalid_json}"] == metrics["router_errors_total{upstream_400}"] == 1
    assert metrics["router_responses_total{400}"] == 2


def test_the_log_has_a_line_a_request_and_nothing_that_anyone_wrote(router, upstream, caplog, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.DEBUG)
    with endpoint(router, upstream, api_key=OWN_KEY) as running:
        right = {"authorization": f"Bearer {OWN_KEY}".encode()}
        raw = json.dumps({"model": "router", "messages": [user(f"{EASY_PROMPT} confidential")]})
        running.post(raw, **right)
        running.post(raw.replace("router", "confidential"), **right)
        running.post(raw.replace("what", "\\x"), **right)
        upstream.behave = broken("small", by=error(500, message="confidential"))
        running.post(raw, **right)
    lines = [record.getMessage() for record in caplog.records if record.name == "router"]
    assert len(lines) == 4
    assert re.fullmatch(
        r"api=chat model=router route=inferior status=200 answered_by=inferior upstream_model=small score=0\.\d{4} "
        r"threshold=0\.5 truncated=false decision_ms=[\d.]+ first_byte_ms=\d+ total_ms=\d+",
        lines[0],
    )
    assert "error=model_not_found" in lines[1] and "error=invalid_json" in lines[2]
    assert 'failures="inferior: status 500"' in lines[3]
    for secret in ("confidential", "apple", "secret"):
        assert secret not in "\n".join(r.getMessage() for r in caplog.records if r.name != "asyncio")
    assert list(tmp_path.iterdir()) == []  # no decision log


def test_a_decision_log_without_prompts(router, upstream, tmp_path):
    log = tmp_path / "logs" / "decisions.jsonl"
    with endpoint(router, upstream, decision_log=log) as running:
        running.ask()
        running.ask(HARD_PROMPT, stream=True).parse().close()
        running.ask(model="inferior")
        upstream.behave = broken("small", by=error(503))
        running.ask(f"{EASY_PROMPT} please", "router-0.6")
        running.post(b"{")  # no decision
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(row["model"], row["router_label"], row["answered_by"]) for row in rows] == [
        ("router", INFERIOR, "inferior"),
        ("router", SUPERIOR, "superior"),
        ("inferior", INFERIOR, "inferior"),
        ("router", INFERIOR, "superior"),
    ]
    easy, hard, chosen, fallen = rows
    scores = router.score([EASY_PROMPT, HARD_PROMPT])
    assert [easy["router_score"], hard["router_score"]] == pytest.approx(list(scores), abs=1e-6)
    assert easy["usage"] == {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    assert (fallen["threshold"], fallen["fallback"]) == (0.6, "inferior: status 503")
    assert chosen["router_score"] is None and easy["router"] == router.model_save_dir.name
    assert "prompt" not in easy and "apple" not in log.read_text() and "secret" not in log.read_text()
    assert log.stat().st_mode & 0o077 == 0


def test_usage_that_is_nested_without_end_hides_nothing_else():
    deep = b'{"usage": {"a": ' + b"[" * 100_000
    assert usage_in(deep, b"") is None
    assert usage_in(deep, b'{"usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}}') is not None


def test_of_a_long_prompt_the_log_keeps_both_ends():
    kept = shortened("a" * 10**6 + "z" * 10**6)
    assert kept[0] == "a" and kept[-1] == "z" and len(kept) <= MAX_LOGGED_CHARACTERS + 10
    assert shortened("short") == "short"
