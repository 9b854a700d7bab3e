"""What is retried, what fails, what stops the run; refused parameters, limits, and what an answer used."""

import json
import time
from pathlib import Path

import pytest
from labelling_runs import PRICED, each_once, failures, label, rows, write_prompts
from openai_server import INFERIOR_ANSWER, SUPERIOR_ANSWER, Answer, completion, error

from create_dataset import openai_client
from create_dataset.openai_client import ChatClient, parse_reply, read_usage
from router_data import InputError

RETRIED = {
    "429 with Retry-After": lambda: error(429, "rate_limit_exceeded", retry_after="0.05"),
    "429 without": lambda: error(429, "rate_limit_exceeded"),
    "429 with a wait in its text": lambda: error(429, None, "Please try again in 20ms."),
    "500": lambda: error(500),
    "503": lambda: error(503, retry_after="0.01"),
    "cut in the body": lambda: Answer(completion().body, cut=40),
    "hang": lambda: Answer(completion().body, delay=30),
    "broken JSON": lambda: Answer(b'{"choices": [{"mess'),
    "JSON, but no completion": lambda: Answer({"choices": None}),
    "JSON of another kind": lambda: Answer([]),
    "an error inside a 200": lambda: Answer({"error": {"message": "overloaded", "code": 503}}),
    "a rate limit inside a 200": lambda: Answer({"error": "Rate limit exceeded"}),
    "an error in the choice": lambda: in_choice(error={"code": 502, "message": "Upstream error"}),
    "an error in the choice, without a word": lambda: completion("", finish_reason="error"),
}


def in_choice(**fields) -> Answer:
    """A completion whose only choice has these fields besides or instead."""
    answer = completion("")
    answer.body["choices"][0] |= fields
    return answer


@pytest.mark.parametrize("fault", RETRIED)
@pytest.mark.slow
def test_passing_faults_are_retried_until_all_is_labelled(serve, fault):
    prompts = write_prompts(6)
    server = serve(lambda p, nth, _: RETRIED[fault]() if nth <= 2 else completion())
    assert label("--timeout", "1" if fault == "hang" else "60") == 0
    assert each_once(prompts) and not failures()
    assert set(server.asked.values()) == {3}


def test_a_fault_that_stays_is_a_failure_and_is_asked_again_on_resume(serve, capsys):
    prompts = write_prompts(5)
    ill = True
    server = serve(lambda p, *_: error(503) if ill and p == prompts[2] else completion())
    assert label() == 0
    assert [f["reason"] for f in failures()] == ["HTTP 503: no, after 4 tries"] and server.asked[prompts[2]] == 4
    assert len(rows()) == 4 and "note: HTTP 503: no; trying up to 4 times" in capsys.readouterr().err
    ill = False
    assert label() == 0 and each_once(prompts)


def test_retry_after_holds_back_all_requests(serve):
    write_prompts(30)
    server = serve(lambda p, *_: error(429, retry_after="0.4") if sum(server.asked.values()) == 5 else completion())
    assert label("--max_in_flight", "1") == 0
    gaps = [b - a for a, b in zip(server.times, server.times[1:], strict=False)]
    assert gaps[4] >= 0.4 and sum(server.asked.values()) == 31


def test_waits_between_tries_grow(serve, monkeypatch):
    monkeypatch.setattr(openai_client, "FIRST_WAIT", 0.1)
    write_prompts(1)
    server = serve(lambda p, nth, _: error(500) if nth < 4 else completion())
    assert label() == 0
    gaps = [b - a for a, b in zip(server.times, server.times[1:], strict=False)]
    assert gaps[0] >= 0.05 and gaps[1] >= 0.1 and gaps[2] >= 0.2, "half of 0.1, 0.2 and 0.4 s at least"


@pytest.mark.parametrize(("kind", "limit"), [("requests", 600), ("tokens", 600 * 110)])
def test_rate_headers_slow_the_run_before_the_limit_is_hit(serve, kind, limit):
    headers = {
        f"x-ratelimit-limit-{kind}": limit,
        f"x-ratelimit-remaining-{kind}": 0,
        f"x-ratelimit-reset-{kind}": "1m0s",
    }
    write_prompts(4)
    server = serve(lambda *_: Answer(completion().body, headers=headers))
    assert label("--max_in_flight", "1") == 0
    gaps = [b - a for a, b in zip(server.times, server.times[1:], strict=False)]
    assert min(gaps) >= 0.1, "600 answers of 110 tokens a minute are one in 0.1 s"


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("--requests_per_minute", "60"), ("--tokens_per_minute", "22000")])
def test_requests_and_tokens_a_minute_are_held(serve, flags):
    write_prompts(16)
    serve()
    started = time.monotonic()
    assert label(*flags, "--max_in_flight", "100") == 0
    assert time.monotonic() - started >= 0.9, "a quarter of a minute's at once, then one a second"


FAILED = {
    "outside the labels": (completion('{"label": "ROUTE_TO_MARS"}'), "in no known form"),
    "empty": (completion(""), "empty answer"),
    "null": (completion(None), "empty answer"),
    "refusal": (completion(None, refusal="I can't help with that"), "refusal: I can't help"),
    "content filter stop": (completion("", finish_reason="content_filter"), "content filter"),
    "content filter 400": (error(400, "content_filter", "filtered"), "content filter"),
    "moderation of one prompt": (error(403, None, "Your input was flagged by moderation"), "content filter"),
    "moderation inside a 200": (Answer({"error": {"code": 403, "message": "flagged"}}), "content filter"),
    "white space till the end": (completion('{"label": \n\n\n\n', finish_reason="length"), "cut off"),
    "too long": (error(400, "context_length_exceeded", "maximum max_completion_tokens is"), "HTTP 400: maximum"),
    "too long, inside a 200": (Answer({"error": "maximum context length is 4096 tokens"}), "HTTP 400: maximum"),
    "no choices": (Answer({"choices": []}), "empty answer"),
    "no message": (in_choice(message=None), "empty answer"),
    "content is a number": (in_choice(message={"content": 17}), "empty answer"),
    "content is a thought": (in_choice(message={"content": [{"type": "thinking", "text": SUPERIOR_ANSWER}]}), "empty"),
    "thoughts alone": (in_choice(message={"content": None, "reasoning_content": SUPERIOR_ANSWER}), "empty answer"),
    "an error of the request in the choice": (in_choice(error={"code": 400, "message": "too long"}), "HTTP 400: too"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAILED)
def test_what_is_no_label_goes_to_the_failures(serve, fault, capsys):
    answer, reason = FAILED[fault]
    prompts = write_prompts(5)
    ill = True
    server = serve(lambda p, *_: answer if ill and p == prompts[3] else completion())
    assert label() == 0
    assert [f["prompt"] for f in failures()] == [prompts[3]] and reason in failures()[0]["reason"]
    assert server.asked[prompts[3]] == 1, "asking again costs money and changes nothing"
    assert each_once(prompts[:3] + prompts[4:])
    said = capsys.readouterr().out
    assert "4 labelled, 0 skipped (labelled before), 1 failed" in said
    assert "most failures (1 of 1): " in said and reason in said and "failures-out.jsonl" in said
    ill = False
    assert label() == 0 and each_once(prompts)


ECHOED = "Bearer sk-secret-of-the-test \x1b]0;owned\x07"


@pytest.mark.parametrize(
    "answer",
    [
        completion(ECHOED), completion(f"<think>{ECHOED}"), completion(None, refusal=ECHOED), Answer(ECHOED.encode()),
        Answer({"choices": [{"message": {}, "error": {"message": ECHOED}}]}), error(400, None, ECHOED),
    ],
)  # fmt: skip
def test_an_endpoint_that_echoes_puts_no_key_into_the_failures_and_no_escapes_on_the_terminal(serve, answer, capsys):
    prompts = write_prompts(3)
    serve(lambda prompt, *_: answer if prompt == prompts[1] else completion())
    label("--timeout", "5")
    said = "".join(capsys.readouterr())
    assert len(failures()) == 1
    kept = Path("failures-out.jsonl").read_text()
    for text in (kept, said):
        assert "sk-secret" not in text and "\x1b" not in text and "\\u001b" not in text


@pytest.mark.parametrize(
    "message",
    [
        {"content": [{"type": "text", "text": SUPERIOR_ANSWER}]},
        {"content": [{"type": "thinking", "thinking": "x"}, {"type": "text", "text": SUPERIOR_ANSWER}]},
        {"content": ['{"label": ', '"ROUTE_TO_SUPERIOR"}']},
        {"content": {"type": "text", "text": SUPERIOR_ANSWER}},
        {"content": SUPERIOR_ANSWER, "reasoning_content": "ROUTE_TO_INFERIOR", "tool_calls": None},
    ],
)
def test_the_forms_of_content(message):
    assert parse_reply({"choices": [{"message": message}]}).choices[0].text == SUPERIOR_ANSWER
    assert parse_reply({"choices": [{"delta": message}]}).choices[0].text == SUPERIOR_ANSWER


@pytest.mark.parametrize("logprobs", [None, [], 0.5, {"content": None}, {"content": ["x", None]}, {"tokens": ["a"]}])
def test_odd_log_probabilities_end_nothing(logprobs):
    body = {"choices": [{"message": {"content": "x"}, "logprobs": logprobs, "finish_reason": None}]}
    assert parse_reply(body).choices[0].logprobs == []


STOPPING = {
    "wrong key": (
        error(401, "invalid_api_key", "Incorrect API key provided: sk-secret-of-the-test"),
        "refuses the key",
    ),
    "not allowed": (error(403, None, "no access for sk-secret-of-the-test"), "may not use m"),
    "retired model": (error(404, "model_not_found"), "no model m"),
    "retired, said by a 400": (error(400, "model_deprecated"), "or it is retired"),
    "quota": (error(429, "insufficient_quota"), "quota of this key is used up"),
    "no credit": (error(402), "credit"),
    "no credit inside a 200": (Answer({"error": {"message": "Insufficient credits.", "code": 402}}), "add credit"),
    "wrong route inside a 200": (Answer({"error": "Unexpected endpoint or method."}), "check OPENAI_BASE_URL"),
    "a day's limit": (error(429, "rate_limit_exceeded", retry_after="86400"), "resume later"),
}


@pytest.mark.parametrize("fault", STOPPING)
def test_what_cannot_get_better_stops_the_run_at_once(serve, fault, capsys):
    answer, reason = STOPPING[fault]
    prompts = write_prompts(40)
    ill = True
    server = serve(lambda *_: answer if ill and len(server.bodies) > 10 else completion())
    assert label("--max_in_flight", "3") == 1
    told = capsys.readouterr()
    (line,) = (line for line in told.err.splitlines() if not line.startswith("labelling prompts: "))
    assert reason in line and "secret" not in told.err + told.out
    assert len(rows()) >= 10 and len(server.bodies) <= 13 and max(server.asked.values()) == 1, "nothing is retried"
    assert not failures(), "the prompts are not to blame"
    ill = False
    assert label() == 0 and each_once(prompts)


@pytest.mark.parametrize(
    ("answer", "base", "hint"),
    [
        (Answer(b"<!doctype html><html>Not here</html>"), "", "should it be {url}/v1?"),
        (Answer(b"<html>", 404), "", "should it be {url}/v1?"),
        (Answer(b"<html>"), "/v1", "check OPENAI_BASE_URL"),
        (error(405, None, "Method Not Allowed"), "/v1", "check OPENAI_BASE_URL"),
    ],
)
def test_a_wrong_address_is_named_at_once(serve, monkeypatch, capsys, answer, base, hint):
    write_prompts(3)
    server = serve(lambda *_: answer)
    root = server.url.removesuffix("/v1")
    monkeypatch.setenv("OPENAI_BASE_URL", root + base)
    assert label() == 1
    assert hint.format(url=root) in capsys.readouterr().err and len(server.bodies) == 1


# --- looking the model up --------------------------------------------------------------------------------------------


def test_a_wrong_key_at_the_start_costs_one_request(serve, capsys):
    write_prompts(40)
    server = serve()
    server.model = error(401, "invalid_api_key")
    assert label() == 1
    assert not server.bodies and len(server.headers) == 1 and "OPENAI_API_KEY" in capsys.readouterr().err


@pytest.mark.parametrize(
    "answer",
    [
        error(401, None, "Missing scope: api.model.read."),
        error(403, None, "insufficient permissions"),
        error(404, "model_not_found"),
        error(404),
        error(500),
        Answer(b"<html>"),
        Answer([]),
    ],
)
def test_a_key_that_may_not_look_models_up_can_label(serve, answer):
    prompts = write_prompts(3)
    server = serve()
    server.model = answer
    assert label() == 0 and each_once(prompts)


def test_a_look_up_that_hangs_does_not_hold_up_the_run(serve, monkeypatch):
    monkeypatch.setattr(openai_client, "LOOK_UP_SECONDS", 0.2)
    prompts = write_prompts(2)
    server = serve()
    server.model.delay = 30
    assert label() == 0 and each_once(prompts)


@pytest.mark.parametrize(("day", "goes_on"), [("2024-01-31", False), ("2999-01-31", True)])
def test_the_day_a_model_is_shut_down(serve, capsys, day, goes_on):
    write_prompts(3)
    server = serve()
    server.model.body["shutdown_date"] = day
    assert label() == (0 if goes_on else 1)
    told = capsys.readouterr()
    assert day in told.out + told.err and len(server.bodies) == (3 if goes_on else 0)


def test_an_endpoint_that_is_away_is_named(monkeypatch, capsys):
    write_prompts(3)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    assert label() == 1
    assert "cannot reach http://127.0.0.1:9/v1" in capsys.readouterr().err


# --- refused parameters ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["param", "message", "detail", "list", "text", "inside a 200"])
def test_a_refused_parameter_is_dropped_once_and_said_once(serve, capsys, how):
    prompts = write_prompts(60)
    refused = ("reasoning_effort", "temperature", "logprobs", "response_format", "max_completion_tokens")

    def refuse(name: str) -> Answer:
        message = f"Unsupported parameter: '{name}' is not supported with this model."
        if how == "detail":
            detail = [{"type": "extra_forbidden", "loc": ["body", name], "msg": "Extra inputs are not permitted"}]
            return Answer({"detail": detail}, 422)
        if how == "list":
            return Answer([{"error": {"code": 400, "message": message}}], 400)
        if how == "text":
            return Answer(message.encode(), 400)
        if how == "inside a 200":
            return Answer({"error": {"code": 400, "message": message}})
        named = {"param": name, "message": "no"} if how == "param" else {"message": message}
        return error(400, "unsupported_parameter", **named)

    def behave(prompt, nth, body):
        for name in refused:
            if name in body:
                return refuse(name)
        return completion("ROUTE_TO_INFERIOR")

    server = serve(behave)
    assert label() == 0 and each_once(prompts) and not failures()
    assert len(server.bodies) == 60 + len(refused), "each is refused once in the run, never once a row"
    said = capsys.readouterr().err
    assert all(said.count(f"refuses '{name}'") == 1 for name in refused)
    assert server.bodies[-1]["max_tokens"] == 256 and "top_logprobs" not in server.bodies[-1]


def test_the_reason_of_a_refusal_is_quoted(serve, capsys):
    write_prompts(1)
    serve(lambda p, nth, body: error(400, message="logprobs cost extra here") if "logprobs" in body else completion())
    assert label() == 0
    assert "m refuses 'logprobs' (logprobs cost extra here): left out" in capsys.readouterr().err


def test_what_names_no_parameter_of_ours_is_a_failure_that_quotes_the_body(serve):
    write_prompts(1)
    body = {"detail": [{"loc": ["body", "messages", 0], "msg": "Input should be a valid list"}]}
    serve(lambda *_: Answer(body, 422))
    assert label() == 1 and failures()[0]["reason"] == "HTTP 422: body.messages: Input should be a valid list"


def test_the_least_effort_that_a_thinking_model_takes_is_sent(serve, capsys):
    prompts = write_prompts(5)
    message = "'reasoning_effort' does not support '{}'. Supported values are: 'minimal', 'low' and 'high'."

    def behave(prompt, nth, body):
        effort = body.get("reasoning_effort")
        return completion() if effort == "minimal" else error(400, message=message.format(effort))

    server = serve(behave)
    assert label() == 0 and each_once(prompts) and len(server.bodies) == 6
    assert {body["reasoning_effort"] for body in server.bodies[1:]} == {"minimal"}
    assert "sending 'minimal'" in capsys.readouterr().err


def test_a_model_that_gives_fewer_log_probabilities_still_gives_some(serve):
    prompts = write_prompts(2)
    message = "Invalid 'top_logprobs': must be at most 5"
    server = serve(lambda p, n, body: error(400, message=message) if body["top_logprobs"] > 5 else completion())
    assert label() == 0 and each_once(prompts) and server.bodies[-1]["top_logprobs"] == 5


# --- what was used ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}, (100, 10)),
        ({"prompt_tokens": 100, "completion_tokens": 10}, (100, 10)),
        ({"input_tokens": 100, "output_tokens": 10}, (100, 10)),
        ({"prompt_tokens": "100", "completion_tokens": 10.0}, (100, 10)),
        # thinking in the total only, or beside the completion
        ({"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 350}, (100, 250)),
        ({"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 350,
          "completion_tokens_details": {"reasoning_tokens": 240}}, (100, 250)),
        ({"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110,
          "completion_tokens_details": {"reasoning_tokens": 240}}, (100, 250)),
        ({"prompt_tokens": 100, "completion_tokens": 250, "total_tokens": 350,
          "completion_tokens_details": {"reasoning_tokens": 240}}, (100, 250)),
        ({"prompt_tokens": 100, "completion_tokens": 10, "reasoning_tokens": 5}, (100, 15)),
        ({"prompt_tokens": 100, "total_tokens": 350}, (100, 250)),
        ({"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": None}, (100, 10)),
        # nothing that can be true
        (None, None),
        ({}, None),
        ("100", None),
        ({"prompt_tokens": None, "completion_tokens": None, "total_tokens": None}, None),
        ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, None),
        ({"prompt_tokens": 100, "completion_tokens": 0, "total_tokens": 100}, None),
        ({"total_tokens": 350}, None),
        ({"prompt_tokens": -1, "completion_tokens": 10}, None),
        ({"prompt_tokens": True, "completion_tokens": 10}, None),
        ({"prompt_tokens": float("nan"), "completion_tokens": 10}, None),
    ],
)  # fmt: skip
def test_the_usage_that_a_completion_reports(usage, tokens):
    found = read_usage(usage)
    assert (found and (found.input_tokens, found.output_tokens)) == tokens


def test_an_answer_without_text_may_have_used_no_output():
    assert read_usage({"prompt_tokens": 100, "completion_tokens": 0}, has_text=False).output_tokens == 0


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": 0, "completion_tokens": 0}, "absent"])
def test_without_a_usage_the_worst_case_counts_and_is_said(serve, capsys, usage):
    write_prompts(40)

    def behave(*_):
        answer = completion()
        answer.body.pop("usage")
        return answer if usage == "absent" else Answer(answer.body | {"usage": usage})

    serve(behave)
    assert label("--max_usd", "20", "--max_output_tokens", "50", *PRICED) == 0
    told = capsys.readouterr()
    assert "could pass --max_usd" in told.err and 0 < len(rows()) < 40
    assert "of it at most, for answers that never came or came without a usage" in told.out
    assert all(row["tokens_estimated"] and row["output_tokens"] == 50 for row in rows())
    bound = sum(row["input_tokens"] / 1000 + row["output_tokens"] / 100 for row in rows())
    assert 15 < bound <= 20 and f"${bound:.4f}" in told.out
    size = Path("out.jsonl").stat().st_size
    assert label("--max_usd", "20", "--max_output_tokens", "50", *PRICED) == 0
    assert Path("out.jsonl").stat().st_size == size, "the worst case of before counts after a resume"


def test_a_provider_that_thinks_beyond_the_limit_is_believed(serve, capsys):
    """The first answer costs ten times what was reserved; the later ones reserve as much."""
    write_prompts(40)

    def behave(*_):
        answer = completion()
        answer.body["usage"] = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 600}
        return answer

    serve(behave)
    assert label("--max_usd", "40", "--max_output_tokens", "50", "--max_in_flight", "8", *PRICED) == 0
    assert "could pass --max_usd" in capsys.readouterr().err
    spent = sum(row["input_tokens"] / 1000 + row["output_tokens"] / 100 for row in rows())
    assert 5 < spent <= 40


def test_what_failed_answers_used_counts_too(serve, capsys):
    write_prompts(10)
    serve(lambda *_: completion("hm"))
    assert label(*PRICED) == 1
    assert "1,000 input and 100 output tokens, $2.0000" in capsys.readouterr().out
    assert sum(failure["output_tokens"] for failure in failures()) == 100


@pytest.mark.parametrize(
    "flags",
    [("--timeout", "nan"), ("--timeout", "0"), ("--max_usd", "inf"), ("--max_usd", "-1"), ("--max_in_flight", "0"),
     ("--requests_per_minute", "0"), ("--tokens_per_minute", "nan")],
)  # fmt: skip
def test_bounds_that_bind_nothing_are_refused(flags):
    with pytest.raises(InputError, match=flags[0]):
        label(*flags)


def test_the_client_shows_its_address():
    assert ChatClient().address == "https://api.openai.com/v1"


def test_the_body_has_what_the_model_takes():
    client = ChatClient()
    client.say = lambda line: None
    client.mark_unsupported("m", "n", 1, "")
    body = client.supported_parameters({"model": "m", "n": 1, "logprobs": True, "max_completion_tokens": 9})
    assert body == {"model": "m", "logprobs": True, "max_completion_tokens": 9}
    assert json.dumps(body) and INFERIOR_ANSWER
