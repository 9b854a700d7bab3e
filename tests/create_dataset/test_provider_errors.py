"""What errors mean, in the shapes in which providers send them (docs/providers.md)."""

import json

import pytest

from create_dataset.provider_errors import error_inside, read_error, seconds_of, substitute

BODY = {"model": "m", "logprobs": True, "top_logprobs": 10, "temperature": 0, "n": 5, "reasoning_effort": "none",
        "response_format": {"type": "json_schema"}, "max_completion_tokens": 256}  # fmt: skip

# What a refusal of `logprobs` looks like, by who sends it
REFUSALS = {
    "OpenAI": (400, {"error": {"message": "Unsupported", "param": "logprobs", "code": "unsupported_parameter"}}),
    "a message": (400, {"error": {"message": "'logprobs' is not supported with this model.", "param": None}}),
    "FastAPI": (422, {"detail": [{"type": "extra_forbidden", "loc": ["body", "logprobs"], "msg": "not permitted"}]}),
    "FastAPI's text": (422, {"detail": "logprobs: extra inputs are not permitted"}),
    "Mistral": (422, {"object": "error", "message": {"detail": [{"loc": ["body", "logprobs"], "msg": "no"}]}}),
    "Gemini": (400, [{"error": {"code": 400, "message": 'Unknown name "logprobs"', "status": "INVALID_ARGUMENT"}}]),
    "text": (400, "logprobs is not supported"),
    "an error that is a text": (400, {"error": "logprobs is not supported"}),
    "OpenRouter": (400, {"error": {"message": "Provider returned error", "code": 400,
                                   "metadata": {"raw": '{"error":{"message":"Unknown parameter: \'logprobs\'."}}'}}}),
    "a list of errors": (400, {"errors": [{"field": "logprobs", "message": "unknown field"}]}),
    "a path": (400, {"error": {"message": "Invalid schema", "param": "logprobs.value[0]"}}),
    "msg": (400, {"code": 20015, "msg": "The parameter `logprobs` is invalid", "data": None}),
}  # fmt: skip


@pytest.mark.parametrize("shape", REFUSALS)
def test_a_refused_parameter_is_found_in_every_shape(shape):
    status, body = REFUSALS[shape]
    error = read_error(status, body if isinstance(body, str) else json.dumps(body))
    assert error.refused_parameter(BODY) == "logprobs"
    assert error.message and "\n" not in error.message


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, {"error": {"message": "maximum context length; lower max_completion_tokens",
                         "code": "context_length_exceeded"}}),
        (400, {"error": {"message": "The prompt isn't valid:\nn"}}),
        (422, {"detail": [{"loc": ["body", "messages", 0, "content"], "msg": "field required",
                           "input": {"logprobs": True, "temperature": 0}}]}),
        (404, {"error": {"message": "logprobs"}}),
        (400, ""),
    ],
)  # fmt: skip
def test_what_refuses_no_parameter(status, body):
    assert read_error(status, json.dumps(body)).refused_parameter(BODY) is None


def test_which_statuses_may_pass():
    passing = {status for status in range(400, 600) if read_error(status, "").is_passing}
    assert passing == {408, 409, 425, 429, *range(500, 600)}


def test_the_name_of_one_letter_is_found_where_it_is_quoted_or_introduced():
    for message in ("unknown field: n", "Unsupported parameter 'n'", "`n` must be 1", "parameter n is not supported"):
        assert read_error(400, json.dumps({"error": {"message": message}})).refused_parameter(BODY) == "n"


@pytest.mark.parametrize(
    ("parameter", "value", "message", "instead"),
    [
        ("reasoning_effort", "none", "does not support 'none'. Supported: 'minimal', 'low' and 'high'.", "minimal"),
        ("reasoning_effort", "none", "Input should be 'low', 'medium' or 'high'", "low"),
        ("reasoning_effort", "none", "reasoning_effort must be one of low, medium, high", "low"),
        ("reasoning_effort", "low", "Supported values are: 'medium' and 'high'", "medium"),
        ("reasoning_effort", "none", "reasoning_effort is not supported", None),
        ("reasoning_effort", "high", "Supported values are: 'none', 'low', 'high'", None),
        ("top_logprobs", 10, "top_logprobs must be between 0 and 5", 5),
        ("top_logprobs", 10, "Input should be less than or equal to 8 (HTTP 422)", 8),
        ("top_logprobs", 10, "top_logprobs is not supported", None),
        ("response_format", {"type": "json_schema"}, "must be 'text' or 'json_object'", {"type": "json_object"}),
        ("response_format", {"type": "json_object"}, "json_object is not supported", None),
        ("temperature", 0, "Only the default (1) value is supported", None),
    ],
)  # fmt: skip
def test_a_refused_value_is_replaced_by_the_least_that_the_message_names(parameter, value, message, instead):
    assert substitute(parameter, value, message) == instead


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"error": {"message": "Insufficient credits.", "code": 402}}, 402),
        ({"error": {"message": "x", "code": "429"}}, 429),
        ({"error": {"message": "x", "status": "RESOURCE_EXHAUSTED"}}, 429),
        ({"error": {"message": "x", "code": "insufficient_quota"}}, 402),
        ({"error": {"message": "x", "code": "model_not_found"}}, 404),
        ({"error": "Unexpected endpoint or method. (POST /chat/completions)"}, 404),
        ({"error": "Rate limit exceeded, slow down"}, 429),
        ({"error": "Invalid API key"}, 401),
        ({"error": "This model's maximum context length is 4096 tokens"}, 400),
        ({"error": "Unknown parameter: logprobs"}, 400),
        ({"error": "the model crashed"}, 502),
        ({"detail": "Not Found: route not found"}, 404),
        ([{"error": {"code": 503, "message": "overloaded"}}], 503),
        ({"base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}}, 402),
        ({"object": "error", "message": "overloaded", "code": 503}, 503),
    ],
)
def test_an_error_inside_a_200_means_what_that_status_would(body, status):
    assert error_inside(body).status == status


@pytest.mark.parametrize(
    "body", [{"choices": [{"message": {"content": "x"}}], "error": None}, {"choices": None}, [], {}, None, "text", 7]
)
def test_what_is_no_error(body):
    assert error_inside(body) is None


@pytest.mark.parametrize(
    ("status", "body", "is_filter"),
    [
        (400, {"error": {"code": "content_filter", "message": "filtered"}}, True),
        (400, {"error": {"message": "The response was filtered due to Azure's content management policy"}}, True),
        (403, {"error": {"code": 403, "message": "Input was flagged", "metadata": {"reasons": ["violence"]}}}, True),
        (400, {"code": "DataInspectionFailed", "message": "Data inspection failed"}, True),
        (400, {"error": {"message": "temperature is not supported"}}, False),
    ],
)
def test_content_filters_are_known(status, body, is_filter):
    assert read_error(status, json.dumps(body)).is_filter == is_filter


@pytest.mark.parametrize(
    ("body", "seconds"),
    [
        ({"error": {"message": "Please try again in 1m20s."}}, 80),
        ({"error": {"message": "Please try again in 350ms."}}, 0.35),
        ([{"error": {"code": 429, "message": "quota", "details": [{"@type": "RetryInfo", "retryDelay": "34s"}]}}], 34),
        ({"error": {"message": "slow down"}}, None),
    ],
)
def test_the_wait_that_a_body_asks_for(body, seconds):
    assert read_error(429, json.dumps(body)).wait == (seconds and pytest.approx(seconds))


@pytest.mark.parametrize(("text", "seconds"), [("1s", 1), ("6m0s", 360), ("120ms", 0.12), ("1h2m", 3720), ("7", 7)])
def test_durations(text, seconds):
    assert seconds_of(text) == pytest.approx(seconds)
    assert seconds_of("soon") is None and seconds_of(None) is None


def test_a_page_of_html_is_told_by_its_words(monkeypatch):
    error = read_error(502, "<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>")
    assert str(error) == "HTTP 502: 502 Bad Gateway nginx"


def test_an_error_nested_without_end_is_told_as_text():
    error = read_error(400, '{"error": ' + "[" * 100_000)
    assert error.status == 400 and str(error).startswith("HTTP 400: {")


def test_the_key_is_in_no_message(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    body = {"error": {"message": "Incorrect API key provided: sk-very-secret"}}
    assert "very" not in str(read_error(401, json.dumps(body)))
