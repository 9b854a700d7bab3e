"""What counts as a user's request: harness blocks, tools' results and marked passages are left out of the score."""

import json
import time

import pytest
from conftest import EASY, HARD

from request_text import is_application_turn, messages_in, request_text
from router_data import InputError
from router_model import Router, scorable_turns, user_turns

REQUEST = "Rename the variable n to count."
HARNESSES = {
    "Claude Code": f"<system-reminder>\nProve it rigorously.\n</system-reminder>\n{REQUEST}",
    "Claude Code, behind": f"{REQUEST}<system-reminder>The TODO list is empty.</system-reminder>",
    "Claude Code, a command": "<command-message>init runs</command-message>\n<command-name>/init</command-name>\n"
    f"<command-args>{REQUEST}</command-args>",
    "Codex CLI": f"<environment_context>\n<cwd>/x</cwd>\n</environment_context>\n\n{REQUEST}",
    "Cline": f"<task>\n{REQUEST}\n</task>\n\n# task_progress\nKeep a list.\n\n<environment_details>\nMode: ARCHITECT\n"
    "</environment_details>",
    "Cursor": f"<user_info>\nOS\n</user_info>\n<rules>\nBe terse.\n</rules>\n<user_query>\n{REQUEST}\n</user_query>",
    "Copilot": f"<context>\nMonday\n</context>\n<editorContext>\na.py\n</editorContext>\n<userRequest>\n{REQUEST}"
    "\n</userRequest>",
    "attributes": f'<system-reminder kind="todo">\nx\n</system-reminder>\n{REQUEST}',
    "nested": f"<tool_result>a<tool_result>b</tool_result>c</tool_result>\n{REQUEST}",
    "in capitals": f"<ENVIRONMENT_DETAILS>x</ENVIRONMENT_DETAILS>\n{REQUEST}",
}
PASSAGES = {
    "tags": f"<context>\nGaloa theory is hard.\n</context>\n\n{REQUEST}",
    "documents": f'{REQUEST}\n<documents>\n<document index="1">\nx\n</document>\n</documents>',
    "several": f"<source id=1>a</source>\n<source id=2>b</source>\n{REQUEST}",
    "headings": f"Context:\nGalois theory is hard.\nIt is.\n\nQuestion: {REQUEST}",
    "Markdown headings": f"## Search results:\n- a\n- b\n\n## Question:\n{REQUEST}",
}
UNTOUCHED = [
    "What does <context>a</context> do in Camel?",
    "Why is <system-reminder> never closed here?",
    "if a < b and c > d: print('<b>')",
    "<task>Sort a list.</task>",
    "<html>\n<body>\nWhat is wrong here?\n</body>\n</html>",
    "The context: a poem. What is its question: who am I?",
    "Question: what is a context?",
    "<context>\nA passage and nothing else.\n</context>",
    "",
]


@pytest.mark.parametrize("text", [*HARNESSES.values(), *PASSAGES.values()], ids=[*HARNESSES, *PASSAGES])
def test_only_the_users_words_count(text):
    assert request_text(text) == REQUEST


@pytest.mark.parametrize("text", UNTOUCHED)
def test_what_a_user_writes_about_tags_stays(text):
    assert request_text(text) == text


def test_a_text_of_harness_blocks_alone_is_nobodys_request():
    assert request_text("<system-reminder>Prove it.</system-reminder>\n") == ""


@pytest.mark.parametrize(
    "text",
    [
        "[result of pytest] ok",
        "[tool result] 3 files",
        "[read_file for 'a.py'] Result:\nx = 1",
        "Observation: 42",
        "OBSERVATION:\nfile not found",
        "EXECUTION RESULT of [execute_bash]:\nok",
        "Tool output: {}",
        "Result of tool search: nothing",
    ],
)
def test_a_tools_result_is_no_turn_of_the_users_but_the_first_turn_is(text):
    assert is_application_turn(text, is_first=False) and not is_application_turn(text, is_first=True)


def test_what_an_application_writes_alone_is_no_turn_wherever_it_stands():
    for is_first in (True, False):
        assert is_application_turn("# AGENTS.md instructions for /home/x\n\n<INSTRUCTIONS>\n", is_first)
        assert not is_application_turn(REQUEST, is_first)


def test_the_turns_of_an_agents_loop_are_what_the_user_typed():
    user, assistant = ({"role": role} for role in ("user", "assistant"))
    loop = [user | {"content": f"<system-reminder>x</system-reminder>{REQUEST}"}]
    for result in ("[result of pytest] E NameError", "<tool_result>ok</tool_result>"):
        loop += [assistant | {"content": "<run>pytest</run>"}, user | {"content": result}]
    tool_result = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "zorp"}]}
    loop += [assistant | {"content": []}, user | {"content": [tool_result]}]
    assert user_turns(loop) == [REQUEST]
    assert user_turns([*loop, user | {"content": [tool_result, {"type": "text", "text": "go on"}]}]) == [
        REQUEST,
        "go on",
    ]
    assert scorable_turns([user | {"content": "<system-reminder>x</system-reminder>"}]) is None
    assert scorable_turns([assistant | {"content": "hi"}]) is None and scorable_turns([]) is None


def test_a_wrapped_request_is_scored_as_the_bare_one(trained_checkpoint):
    router = Router.load(trained_checkpoint)
    bare = f"what is the {EASY[0]}"
    wrapped = f"<environment_details>\n{' '.join(HARD)}\n</environment_details>\n{bare}"
    frame = f"<context>\n{' '.join(HARD)}\n</context>\n{bare}"
    message = [{"role": "user", "content": wrapped}]
    assert len({*router.score([bare, wrapped, frame, message]).tolist()}) == 1
    assert router.encoder.with_offsets(wrapped)[0] == bare
    assert router.score([user_turns(message)]) == router.score([bare])


def test_the_conversation_is_found_in_the_body_of_every_api():
    messages = [{"role": "user", "content": "hi"}]
    assert messages_in({"messages": messages}) == messages
    assert messages_in({"input": "hi"}) == messages
    items = [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}]
    others = [{"type": "reasoning"}, {"type": "function_call_output", "output": "zorp"}]
    assert messages_in({"input": [*items, *others]}) == items
    assert user_turns(messages_in({"input": [*others, *items]})) == ["hi"]
    assert messages_in({}) is None and messages_in({"messages": None, "input": "hi"}) is None
    with pytest.raises(InputError):
        user_turns(messages_in({"input": [3]}))


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    ["<context>" * 50_000, "<aa " * 200_000, "<context>\n" * 50_000 + "</context>\n" * 50_000, " " * 2_000_000,
     "\n" * 2_000_000, "context:\n" * 200_000, "[result " * 200_000, "# " * 800_000, "</task>" * 200_000],
    ids=lambda text: text[:9],
)  # fmt: skip
def test_no_text_takes_long(text):
    started = time.process_time()
    request_text(text), is_application_turn(text, is_first=False)
    assert time.process_time() - started < 2


WRAPPED = {
    "a conversation": "User: What is a fjord?\nAssistant: A drowned valley.\nUser: {}\nAssistant:",
    "questions and answers": "Q: Who wrote Emma?\nA: Jane Austen.\n\nQ: {}\nA:",
    "a chat template": "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\n{} [/INST]",
    "ChatML": "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
    "an instruction": "Below is an instruction.\n\n### Instruction:\n{}\n\n### Response:\n",
    "a greeting": "Hi there,\n\n{}",
    "thanks": "{}\n\nThanks a lot!\nAnn",
}


@pytest.mark.parametrize("frame", WRAPPED.values(), ids=WRAPPED)
def test_the_request_is_found_in_what_is_wrapped_around_it(frame):
    assert request_text(frame.format(REQUEST)) == REQUEST


def test_the_request_is_found_in_a_json_object():
    body = {"user": {"id": 7, "plan": "free"}, "payload": {"locale": "en", "question": REQUEST, "tags": ["text"]}}
    assert request_text(json.dumps(body)) == REQUEST
    assert request_text(f"```json\n{json.dumps({'messages': [{'role': 'user', 'content': REQUEST}]})}\n```") == REQUEST


OWN_REQUESTS = (
    "Which is a noble gas?\nA: neon\nB: iron\nC: zinc",
    "Q: What is 2 + 2?",
    "User: hello\nUser: are you there",
    "Summarise:\n\nUser: it broke\nAssistant: which part?",
    '{"a": 1, "b": [2, 3]}',
    "{not json}",
    "Hi",
    "thanks, that's all",
)


@pytest.mark.parametrize("text", OWN_REQUESTS)
def test_what_only_looks_wrapped_stays_whole(text):
    assert request_text(text) == text
