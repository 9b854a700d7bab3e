"""What routing finds in a request's body, in linear time, whatever the body is."""

import json
import time
from contextlib import suppress

import pytest

from inference.endpoint import body_parser
from inference.endpoint.apis import CHAT, MESSAGES, RESPONSES, ApiError
from inference.endpoint.bodies import MAX_INLINE_BODY_BYTES
from inference.endpoint.body_parser import parse, parse_object
from inference.sessions import MAX_SCORED_TURNS
from router_model import UserTurns

MAX_LENGTH = 64


def parsed(body, api=CHAT, measure=True):
    raw = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
    return parse(raw, api, MAX_LENGTH, measure)


def user(content) -> dict:
    return {"role": "user", "content": content}


@pytest.mark.parametrize(
    "raw",
    [b'{"model":"a"}',
     b' { "x" : [1, {"model": "b"}], "model"\n:\t"a" } \n', b'{"model": "a", "t": "\\"model\\": \\"b\\""}',
     b'{"m\\u006fdel": "a"}', '{"ü漢😀": "😀", "model": "a", "b": "ü"}'.encode(), b'\xef\xbb\xbf{"model":"a"}'],
)  # fmt: skip
def test_the_models_name_is_found_where_it_stands(raw):
    fields, start, end = parse_object(raw)
    assert fields["model"] == "a" and raw[start:end] == b'"a"'


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b'{"a"', b'{"a":', b'{"a":1', b'{"a":1,', b'{"a":1,}', b"{a:1}", b'{"a" 1}', b'{"a":1 "b":2}', b"{}x",
     b"{},", b"\xff\xfe", b'{"a":"\xff"}', b'{"a":tru}', b"[" * 200_000, b'{"a":' + b"[" * 200_000,
     '{"model":"a"}'.encode("utf-16"), b'{"a":' + b"9" * 5000 + b"}"],
)  # fmt: skip
def test_what_is_no_json_is_refused(raw):
    with pytest.raises(ApiError, match="not JSON") as caught:
        parse(raw, CHAT, MAX_LENGTH, False)
    assert (caught.value.status, caught.value.code) == (400, "invalid_json")


@pytest.mark.parametrize("raw", [b"[]", b"1", b'"a"', b"null", b' [{"model": "a"}]'])
def test_what_is_no_object_is_refused(raw):
    with pytest.raises(ApiError, match="not a JSON object"):
        parse(raw, CHAT, MAX_LENGTH, False)


@pytest.mark.parametrize(
    "raw",
    [b'{"model": "a", "messages": [], "messages": []}', b'{"model": "a", "mod\\u0065l": "b"}',
     b'{"model": "a", "messages": [{"role": "user", "content": "hi", "content": "Derive it."}]}'],
)  # fmt: skip
def test_a_key_that_stands_twice_is_refused_at_any_depth(raw):
    with pytest.raises(ApiError, match="twice") as caught:
        parse(raw, CHAT, MAX_LENGTH, False)
    assert caught.value.code == "duplicate_key"


def test_the_users_turns_are_found_in_every_api():
    assert parsed({"model": "m", "messages": [user("a"), user([{"type": "text", "text": "b"}])]}).turns == ["a", "b"]
    assert parsed({"model": "m", "input": "a"}, RESPONSES).turns == ["a"]
    items = [
        {"type": "message"} | user([{"type": "input_text", "text": "a"}]),
        {"type": "function_call_output", "output": "x"},
    ]
    assert parsed({"model": "m", "input": items, "instructions": "x"}, RESPONSES).turns == ["a"]
    result = user([{"type": "tool_result", "tool_use_id": "t", "content": "x"}])
    messages = [user("a<system-reminder>x</system-reminder>"), {"role": "assistant", "content": "x"}, result]
    assert parsed({"model": "m", "system": "x", "messages": messages}, MESSAGES).turns == ["a"]
    # the field of another API is not this one's conversation
    assert parsed({"model": "m", "input": "a"}).turns_fault and parsed({"model": "m", "input": "a"}).turns is None


@pytest.mark.parametrize(
    ("body", "api", "fault"),
    [
        ({}, CHAT, "`messages` is missing or not a list"),
        ({"messages": "hi"}, CHAT, "`messages` is missing or not a list"),
        ({"messages": [3]}, CHAT, "a list of messages"),
        ({"input": {}}, RESPONSES, "`input` is missing or not a text or a list"),
        ({"input": [3]}, RESPONSES, "a list of messages"),
        ({"messages": [{"content": "hi"}]}, MESSAGES, "a list of messages"),
    ],
)
def test_a_conversation_that_cannot_be_read_is_told(body, api, fault):
    assert fault in parsed({"model": "m"} | body, api).turns_fault


def test_without_words_of_the_users_there_is_nothing_to_score():
    for messages in (
        [],
        [{"role": "system", "content": "x"}],
        [user(" ")],
        [user("<system-reminder>x</system-reminder>")],
    ):
        request = parsed({"model": "m", "messages": messages})
        assert request.turns is None and request.turns_fault is None
    assert parsed({"model": "m", "prompt": {"id": "pmpt_1"}}, RESPONSES).turns_fault is None


def test_a_long_turn_keeps_the_characters_that_could_be_scored():
    text = "a" * 50_000 + "b" * 50_000
    request = parsed({"model": "m", "messages": [user(text)]})
    half = body_parser.CHARACTERS_PER_TOKEN * MAX_LENGTH
    assert request.turns == ["a" * half + " " + "b" * half] and request.characters == 100_000


@pytest.mark.parametrize("text", ["a", "b c", "word " * 30])
def test_of_very_many_turns_the_ends_are_kept_and_the_score_is_the_same(router, text):
    turns = UserTurns(f"{text} {i % 10}" for i in range(4000))
    kept = parsed({"model": "m", "messages": [user(turn) for turn in turns]}).turns
    assert len(kept) < 1200 and kept[:MAX_SCORED_TURNS] == turns[:MAX_SCORED_TURNS] and kept[-1] == turns[-1]
    assert router.encoder.max_length == MAX_LENGTH
    assert router.encoder.encode([kept])[0].ids == router.encoder.encode([turns])[0].ids


def test_the_stored_object_that_a_request_goes_on_with():
    for fields, stored_id, is_conversation in (
        ({"previous_response_id": "resp_1"}, "resp_1", False), ({"conversation": "conv_1"}, "conv_1", True),
        ({"conversation": {"id": "conv_1"}}, "conv_1", True), ({"previous_response_id": None}, None, False),
    ):  # fmt: skip
        request = parsed({"model": "m", "input": "a"} | fields, RESPONSES)
        assert (request.stored_id, request.is_conversation) == (stored_id, is_conversation)
    for wrong in ("../x", "a/b", "", 3, ["x"], "x" * 600):
        with pytest.raises(ApiError, match="`previous_response_id` is not the id"):
            parsed({"model": "m", "input": "a", "previous_response_id": wrong}, RESPONSES)


def test_what_the_input_holds_and_its_size():
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}
    sound = {"type": "input_audio", "input_audio": {"data": "A" * 100_000}}
    request = parsed({"model": "m", "messages": [user([picture, sound, {"type": "text", "text": "x" * 400}])]})
    assert request.inputs == ("audio", "image") and 2000 < request.tokens < 2200
    document = {"type": "document", "source": {"type": "base64", "data": "A" * 10_000}}
    result = {"type": "tool_result", "content": [{"type": "image", "source": {"data": "A"}}]}
    assert parsed({"model": "m", "messages": [user([document, result])]}, MESSAGES).inputs == ("file", "image")
    assert parsed({"model": "m", "input": "x", "tools": [{"type": "function"}]}, RESPONSES).inputs == ("tools",)
    system = {"role": "system", "content": "x" * 40_000}  # all messages count, not the user's alone
    assert parsed({"model": "m", "messages": [system, user("a")]}).tokens >= 10_000
    assert parsed({"model": "m", "messages": [user("漢" * 4000)]}).tokens == pytest.approx(3000, abs=20)
    assert parsed({"model": "m", "messages": [system, user([picture])]}, measure=False).tokens == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "raw",
    [b'{"model":"inferior","messages":[],"x":{"model":"%s"}}' % (b"a" * 8_000_000),
     b'{"model":"inferior","x":"%s"}' % (b"\\\\" * 4_000_000), b'{"model":"inferior","x":[%s{}]}' % (b"{}," * 500_000),
     b'{"model":"inferior","x":[%s1]}' % (b'{"model":""},' * 200_000), b'{"model":"inferior"%s}' % (b" " * 8_000_000),
     b'{"model":"inferior","messages":[{"role":"user","content":"%s"}]}' % (b"<context>\\n" * 500_000)],
    ids=["a long model", "escapes", "objects", "models", "white space", "tags"],
)  # fmt: skip
def test_no_body_takes_long(raw):
    started = time.process_time()
    assert parse(raw, CHAT, MAX_LENGTH, True).model == "inferior"
    assert time.process_time() - started < 4


def test_a_key_that_stands_twice_among_many_is_found_at_once():
    """A body of this size is parsed on the event loop, where nobody else has a turn meanwhile."""
    keys = [b'"%x":0' % i for i in range(5000, 8000)]
    once, twice = (b'{"model":"inferior",%s}' % b",".join(each) for each in (keys, [*keys, keys[-1]]))
    assert len(twice) <= MAX_INLINE_BODY_BYTES
    with pytest.raises(ApiError, match="has the key '1f3f' twice"):
        parse(twice, CHAT, MAX_LENGTH, True)
    assert seconds_of(twice) < 4 * seconds_of(once)  # looking each key up among the others took 15 times as long


def seconds_of(raw: bytes) -> float:
    """Of processor time, the least of five."""
    found = []
    for _ in range(5):
        started = time.process_time()
        with suppress(ApiError):
            parse(raw, CHAT, MAX_LENGTH, True)
        found.append(time.process_time() - started)
    return min(found)
