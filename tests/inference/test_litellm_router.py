"""The router inside LiteLLM's proxy, which runs in an environment of its own."""

import json
import os
import subprocess
from pathlib import Path

import anthropic
import httpx
import httpx2
import openai
import pytest
from conftest import EASY, ROOT
from model_apis import speaks_all
from openai_server import Answer, OpenAIServer, completion, error, stream_of

from benchmarks.machine import server
from router_model import Router

CONFIG = ROOT / "inference" / "litellm_config.yaml"
PYTHON = Path(os.environ.get("ROUTER_LITELLM_PYTHON") or ROOT / "litellm-venv" / "bin" / "python3")
EASY_PROMPT = "what is the apple with the bread"
HARD_PROMPT = "what is the zorp with the quix"
OUTPUT = {"capture_output": True, "text": True, "timeout": 300}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not PYTHON.exists(), reason="optional: make litellm, or ROUTER_LITELLM_PYTHON of an environment with LiteLLM"
    ),
]


def behave(prompt: str, nth: int, body: dict) -> Answer:
    """Both models: each says its name."""
    if "break" in prompt and body["model"] == "small":
        return error(500)
    if "refuse" in prompt and body["model"] == "small":
        return error(int(prompt.split()[-1]), message="not this one")
    text = f"I am {body['model']}"
    return stream_of(text) if body.get("stream") else completion(text)


@pytest.fixture(scope="module")
def upstream():
    with OpenAIServer(behave) as running:
        running.other_path = lambda path, payload: speaks_all(path, payload) if path == "POST /responses" else None
        yield running


def environment(upstream: OpenAIServer, checkpoint: Path) -> dict[str, str]:
    own = {"ROUTER_MODEL_SAVE_DIR": str(checkpoint), "NO_PROXY": "127.0.0.1"}
    for tier, model, key in (("INFERIOR", "small", "key-1"), ("SUPERIOR", "large", "key-2")):
        own |= {f"{tier}_MODEL": model, f"{tier}_API_KEY": key, f"{tier}_BASE_URL": upstream.url}
    own["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else LiteLLM waits for its list of prices from the network
    return dict(os.environ) | own


@pytest.fixture(scope="module")
def address(upstream, exported_checkpoint):
    """LiteLLM's own proxy with the configuration that the project ships."""
    command = [str(PYTHON.with_name("litellm")), "--config", str(CONFIG), "--host", "127.0.0.1", "--port", "{port}"]
    with server(command, "/health/liveliness", environment(upstream, exported_checkpoint)) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def client(address):
    http = httpx.Client(trust_env=False, timeout=60)
    with http, openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, http_client=http) as client:
        yield client


def ask(client, messages, model="router", **more):
    """The answer, and its headers about the decision."""
    messages = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    response = client.chat.completions.with_raw_response.create(model=model, messages=messages, **more)
    decision = {name: value for name, value in response.headers.items() if name.startswith("x-router-")}
    return response.parse(), decision, response.headers


@pytest.mark.parametrize(
    ("prompt", "side", "model", "key"),
    [(EASY_PROMPT, "inferior", "small", "key-1"), (HARD_PROMPT, "superior", "large", "key-2")],
)
def test_a_prompt_reaches_the_model_that_the_router_chooses(
    client, upstream, exported_checkpoint, prompt, side, model, key
):
    answer, decision, _ = ask(client, prompt)
    assert answer.choices[0].message.content == f"I am {model}"
    assert upstream.bodies[-1]["model"] == model and f"bearer {key}" in upstream.headers[-1].lower()
    score = Router.load(exported_checkpoint).score([prompt])[0]
    assert float(decision["x-router-score"]) == pytest.approx(score, abs=1e-5)
    assert (decision["x-router-model"], decision["x-router-threshold"], decision["x-router-truncated"]) == (
        side,
        "0.5",
        "false",
    )

    stream, decision, headers = ask(client, prompt, stream=True)
    words = [chunk.choices[0].delta.content for chunk in stream if chunk.choices and chunk.choices[0].delta.content]
    assert [word.strip() for word in words if word.strip()] == ["I", "am", model]
    assert headers["content-type"].startswith("text/event-stream") and decision["x-router-model"] == side


def test_the_name_of_the_model_carries_a_threshold(client, upstream):
    _, decision, _ = ask(client, EASY_PROMPT, "router-0.0001")
    assert (decision["x-router-model"], decision["x-router-threshold"]) == ("superior", "0.0001")
    _, decision, _ = ask(client, HARD_PROMPT, "router-1")
    assert decision["x-router-model"] == "inferior" and upstream.bodies[-1]["model"] == "small"
    with pytest.raises(openai.BadRequestError, match="router-7"):
        ask(client, EASY_PROMPT, "router-7")
    assert {"router", "inferior", "superior"} == {model.id for model in client.models.list()}


def test_other_models_pass_untouched(client, upstream):
    forged = {"extra_body": {"metadata": {"router_decision": {"model": "forged"}}}}
    for side, model in (("inferior", "small"), ("superior", "large")):
        answer, decision, _ = ask(client, HARD_PROMPT if side == "inferior" else EASY_PROMPT, side, **forged)
        assert answer.choices[0].message.content == f"I am {model}" and decision == {}


def test_only_what_the_user_says_decides(client):
    def user(content):
        return {"role": "user", "content": content}

    system = {"role": "system", "content": HARD_PROMPT}
    assert ask(client, [system, user(EASY_PROMPT)])[1]["x-router-model"] == "inferior"
    part = {"type": "text", "text": HARD_PROMPT}
    assert ask(client, [user([part])])[1]["x-router-model"] == "superior"
    dialogue = [user(HARD_PROMPT), {"role": "assistant", "content": "yes"}, user("please")]
    assert ask(client, dialogue)[1]["x-router-model"] == "superior"
    assert ask(client, " ".join(EASY * 30))[1]["x-router-truncated"] == "true"
    for nothing in ([system], [user(" ")]):
        assert ask(client, nothing)[1] == {"x-router-model": "superior"}
    for wrong in ([{"content": EASY_PROMPT}], [3]):
        with pytest.raises(openai.BadRequestError, match="a conversation is a list of messages"):
            ask(client, wrong)
    with pytest.raises(openai.BadRequestError, match="reads `messages` or `input`"):
        client.completions.create(model="router", prompt=EASY_PROMPT)


def test_the_request_arrives_whole_and_nothing_of_the_decision_with_it(client, upstream):
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
    ask(client, EASY_PROMPT, tools=[tool], temperature=0.3, seed=7, extra_body={"of_this_provider": {"a": 1}})
    body = upstream.bodies[-1]
    assert (body["tools"], body["temperature"], body["seed"]) == ([tool], 0.3, 7)
    assert body["of_this_provider"] == {"a": 1} and "router_decision" not in json.dumps(body)


def test_where_the_inferior_model_is_down_the_superior_answers(client):
    answer, decision, headers = ask(client, f"{EASY_PROMPT} break")
    assert answer.choices[0].message.content == "I am large"
    assert decision["x-router-model"] == "inferior" and int(headers["x-litellm-attempted-fallbacks"]) == 1


def test_a_fault_is_one_clear_line(upstream, exported_checkpoint):
    code = (
        "import os, importlib\n"
        "for variable, value in (('ROUTER_MODEL_SAVE_DIR', 'nowhere'), ('ROUTER_THRESHOLD', '2')):\n"
        "    before = os.environ.get(variable)\n"
        "    os.environ[variable] = value\n"
        "    try: importlib.import_module('inference.litellm_router')\n"
        "    except SystemExit as end: print(end)\n"
        "    os.environ.pop(variable) if before is None else os.environ.update({variable: before})\n"
    )
    variables = environment(upstream, exported_checkpoint)
    lines = subprocess.run([PYTHON, "-c", code], env=variables, cwd=ROOT, check=True, **OUTPUT).stdout.splitlines()
    assert lines[0].startswith("error: no model folder at nowhere; make one: ")
    assert lines[1:] == ["error: ROUTER_THRESHOLD 2 is not between 0 and 1"]


@pytest.mark.parametrize(
    ("prompt", "side", "model"), [(EASY_PROMPT, "inferior", "small"), (HARD_PROMPT, "superior", "large")]
)
def test_responses_and_messages_are_routed_too(client, address, upstream, prompt, side, model):
    raw = client.responses.with_raw_response.create(model="router", input=prompt)
    assert raw.headers["x-router-model"] == side
    assert f"I am {model}" in raw.text
    http = httpx2.Client(trust_env=False, timeout=60)
    with http, anthropic.Anthropic(base_url=address, api_key="none", max_retries=0, http_client=http) as claude:
        reminder = {"type": "text", "text": f"<system-reminder>{HARD_PROMPT}</system-reminder>"}
        message = {"role": "user", "content": [reminder, {"type": "text", "text": prompt}]}
        answer = claude.messages.with_raw_response.create(model="router", max_tokens=9, messages=[message])
        assert answer.headers["x-router-model"] == side and answer.parse().content[0].text == f"I am {model}"


def test_a_conversation_that_needed_the_superior_model_stays_there(client):
    def user(content):
        return {"role": "user", "content": content}

    dialogue = [user(HARD_PROMPT), {"role": "assistant", "content": "yes"}]
    for _ in range(4):
        dialogue += [user(" ".join(EASY * 9)), {"role": "assistant", "content": "yes"}]
        assert ask(client, dialogue[:-1])[1]["x-router-model"] == "superior"


def test_one_bad_request_does_not_take_a_model_out_for_others(client):
    for status in (400, 401, 404, 429):
        answer, _, headers = ask(client, f"{EASY_PROMPT} refuse {status}")
        assert answer.choices[0].message.content == "I am large"
        assert int(headers["x-litellm-attempted-fallbacks"]) == 1
        answer, decision, _ = ask(client, EASY_PROMPT)
        assert answer.choices[0].message.content == "I am small" and decision["x-router-model"] == "inferior"
