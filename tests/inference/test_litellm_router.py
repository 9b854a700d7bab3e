"""The router inside LiteLLM's proxy, which runs in an environment of its own; and the benchmark of the endpoint."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import openai
import pytest
from conftest import EASY, HARD, ROOT
from openai_server import Answer, OpenAIServer, completion, error, stream_of

from benchmarks import endpoint as benchmark_endpoint
from finetuning_model.export_onnx import export_onnx
from router_data import InputError
from router_model import Router

PYTHON = Path(os.environ.get("ROUTER_LITELLM_PYTHON") or ROOT / "litellm-venv" / "bin" / "python3")
EASY_PROMPT = "what is the apple with the bread"
HARD_PROMPT = "what is the zorp with the quix"
OUTPUT = {"capture_output": True, "text": True, "timeout": 300}

needs_litellm = pytest.mark.skipif(
    not PYTHON.exists(), reason="optional: make litellm, or ROUTER_LITELLM_PYTHON of an environment with LiteLLM"
)


@pytest.fixture(scope="module")
def checkpoint(trained_checkpoint, tmp_path_factory):
    """With an ONNX file: LiteLLM's environment has no torch."""
    folder = shutil.copytree(trained_checkpoint, tmp_path_factory.mktemp("litellm") / trained_checkpoint.name)
    prompts = [f"what is the {word} with a {EASY[i % 6]}" for i, word in enumerate([*EASY, *HARD] * 4)]
    export_onnx(folder, prompts, [any(word in prompt for word in HARD) for prompt in prompts], say=lambda line: None)
    return folder


def behave(prompt: str, nth: int, body: dict) -> Answer:
    """Both models: each says its name."""
    if "break" in prompt and body["model"] == "small":
        return error(500)
    text = f"I am {body['model']}"
    return stream_of(text) if body.get("stream") else completion(text)


@pytest.fixture(scope="module")
def upstream():
    with OpenAIServer(behave) as server:
        yield server


def environment(upstream, checkpoint) -> dict:
    sides = {"INFERIOR": ("small", "key-1"), "SUPERIOR": ("large", "key-2")}
    variables = {f"{side}_MODEL": model for side, (model, _) in sides.items()}
    variables |= {f"{side}_API_KEY": key for side, (_, key) in sides.items()}
    variables |= {f"{side}_BASE_URL": upstream.url for side in sides}
    return benchmark_endpoint.environment_for(upstream.port, checkpoint) | variables


@pytest.fixture(scope="module")
def client(upstream, checkpoint):
    """OpenAI's client of LiteLLM's own proxy with the configuration that the project ships."""
    command = benchmark_endpoint.litellm_command(str(PYTHON), benchmark_endpoint.LITELLM_CONFIG)
    with benchmark_endpoint.server(command, "/health/liveliness", environment(upstream, checkpoint)) as port:
        yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=60)


def ask(client, messages, model="router", **more):
    """The answer, and its headers about the decision."""
    messages = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    response = client.chat.completions.with_raw_response.create(model=model, messages=messages, **more)
    told = {name: value for name, value in response.headers.items() if name.startswith("x-router-")}
    return response.parse(), told, response.headers


@needs_litellm
@pytest.mark.parametrize(
    ("prompt", "side", "model", "key"),
    [(EASY_PROMPT, "inferior", "small", "key-1"), (HARD_PROMPT, "superior", "large", "key-2")],
)
def test_a_prompt_reaches_the_model_that_the_router_chooses(client, upstream, checkpoint, prompt, side, model, key):
    answer, told, _ = ask(client, prompt)
    assert answer.choices[0].message.content == f"I am {model}"
    assert upstream.bodies[-1]["model"] == model and f"bearer {key}" in upstream.headers[-1].lower()
    score = Router.load(checkpoint).score([prompt])[0]
    assert float(told["x-router-probability"]) == pytest.approx(score, abs=1e-5)
    assert (told["x-router-model"], told["x-router-threshold"], told["x-router-truncated"]) == (side, "0.5", "false")

    stream, told, headers = ask(client, prompt, stream=True)
    words = [chunk.choices[0].delta.content for chunk in stream if chunk.choices and chunk.choices[0].delta.content]
    assert [word.strip() for word in words if word.strip()] == ["I", "am", model]
    assert headers["content-type"].startswith("text/event-stream") and told["x-router-model"] == side


@needs_litellm
def test_the_name_of_the_model_carries_a_threshold(client, upstream):
    _, told, _ = ask(client, EASY_PROMPT, "router-0.0001")
    assert (told["x-router-model"], told["x-router-threshold"]) == ("superior", "0.0001")
    _, told, _ = ask(client, HARD_PROMPT, "router-1")
    assert told["x-router-model"] == "inferior" and upstream.bodies[-1]["model"] == "small"
    with pytest.raises(openai.BadRequestError, match="router-7"):
        ask(client, EASY_PROMPT, "router-7")
    assert {"router", "inferior", "superior"} == {model.id for model in client.models.list()}


@needs_litellm
def test_other_models_pass_untouched(client, upstream):
    forged = {"extra_body": {"metadata": {"router_decision": {"model": "forged"}}}}
    for side, model in (("inferior", "small"), ("superior", "large")):
        answer, told, _ = ask(client, HARD_PROMPT if side == "inferior" else EASY_PROMPT, side, **forged)
        assert answer.choices[0].message.content == f"I am {model}" and told == {}


@needs_litellm
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
    with pytest.raises(openai.BadRequestError, match="reads `messages`"):
        client.completions.create(model="router", prompt=EASY_PROMPT)


@needs_litellm
def test_the_request_arrives_whole_and_nothing_of_the_decision_with_it(client, upstream):
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
    ask(client, EASY_PROMPT, tools=[tool], temperature=0.3, seed=7, extra_body={"of_this_provider": {"a": 1}})
    body = upstream.bodies[-1]
    assert (body["tools"], body["temperature"], body["seed"]) == ([tool], 0.3, 7)
    assert body["of_this_provider"] == {"a": 1} and "router_decision" not in json.dumps(body)


@needs_litellm
def test_where_the_inferior_model_is_down_the_superior_answers(client):
    answer, told, headers = ask(client, f"{EASY_PROMPT} break")
    assert answer.choices[0].message.content == "I am large"
    assert told["x-router-model"] == "inferior" and int(headers["x-litellm-attempted-fallbacks"]) == 1


@needs_litellm
def test_a_fault_is_one_clear_line(upstream, checkpoint):
    code = (
        "import os, importlib\n"
        "for variable, value in (('ROUTER_MODEL_SAVE_DIR', 'nowhere'), ('ROUTER_THRESHOLD', '2')):\n"
        "    before, os.environ[variable] = os.environ[variable], value\n"
        "    try: importlib.import_module('inference.litellm_router')\n"
        "    except SystemExit as end: print(end)\n"
        "    os.environ[variable] = before\n"
    )
    told = environment(upstream, checkpoint)
    said = subprocess.run([PYTHON, "-c", code], env=told, cwd=ROOT, check=True, **OUTPUT).stdout.splitlines()
    assert said[0].startswith("error: no model folder at nowhere; make one: ")
    assert said[1:] == ["error: ROUTER_THRESHOLD 2 is not between 0 and 1"]


# --- the benchmark ---------------------------------------------------------------------------------------------------


def test_the_benchmark_measures_the_endpoint(checkpoint, tmp_path, capsys):
    prompts = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"{prompt} {i}", "label": "ROUTE_TO_INFERIOR"} for i, prompt in enumerate([EASY_PROMPT] * 4)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = "--rounds 2 --requests 4 --streams 2 --concurrency 2 --repeats 2".split()
    benchmark_endpoint.main(["--model_save_dir", str(checkpoint), "--prompts", str(prompts), *small])
    lines = [line.replace(",", "") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    table = {cells[1]: cells for cells in (list(map(str.strip, line.split("|"))) for line in lines)}
    direct, routed = table["upstream directly"], table["endpoint `router`"]
    assert 0 < float(direct[2]) < float(routed[2]) and float(routed[4].split()[0]) > 0
    assert all(float(cells[6]) > 0 and float(cells[7].split()[0]) > 0 for cells in list(table.values())[1:])


def test_the_first_byte_of_a_stream_comes_before_its_end():
    pieces = benchmark_endpoint.PIECES
    with benchmark_endpoint.upstream_server() as port:
        target = benchmark_endpoint.Target("upstream", port, "m")
        first, whole = asyncio.run(benchmark_endpoint.ask_all(target, ["hi"] * 3, 1, stream=True))
        assert len(first) == 3 and whole > 3 * (pieces - 1) * benchmark_endpoint.GAP_SECONDS > sum(first)
        seconds, whole = asyncio.run(benchmark_endpoint.ask_all(target, ["hi"] * 20, 4))
        assert len(seconds) == 20 and max(seconds) <= whole


def test_a_failed_answer_is_no_measurement(upstream):
    target = benchmark_endpoint.Target("the small one", upstream.port, "small")
    with pytest.raises(InputError, match="the small one: status 500"):
        asyncio.run(benchmark_endpoint.ask_all(target, ["break"], 1))


def test_the_table_compares_with_the_upstream():
    targets = [benchmark_endpoint.Target(name, 0, "m") for name in ("direct", "ours")]
    for target, offset in zip(targets, (0, 0.004), strict=True):
        for drift in (0.001, 0.002, 0.003):  # of the machine, from round to round
            target.latencies.append([drift + offset + i * 1e-6 for i in range(100)])
            target.first_bytes.append([drift + offset])
            target.rates.append(1000 - drift)
    *_, ours = benchmark_endpoint.table(targets, 32)
    name, median, p99, added, added_p99, first, rate = [cell.strip() for cell in ours.strip("|").split("|")]
    assert (name, added, added_p99) == ("ours", "4.00 [4.00, 4.00]", "4.00")
    assert float(median) == pytest.approx(6.05, abs=0.01) and float(p99) == pytest.approx(7.1, abs=0.01)
    assert float(first) == pytest.approx(6) and rate == "1,000 [1,000, 1,000]"


def test_faults_of_the_benchmark_are_one_line(tmp_path):
    script = ROOT / "inference" / "benchmark_endpoint.py"

    def run(*flags):
        return subprocess.run([sys.executable, script, *flags], cwd=tmp_path, **OUTPUT)

    done = run("--litellm_python", str(tmp_path / "python3"))
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("error: ")
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from benchmarks import endpoint as b\n"
    code += "try: b.main(['--help'])\n"
    code += "except SystemExit: print(sorted({'torch', 'gradio', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, **OUTPUT)
    assert "--litellm_python" in done.stdout and done.stdout.endswith("[]\n")
    with pytest.raises(InputError, match="no LiteLLM beside .*requirements/litellm.txt"):
        benchmark_endpoint.litellm_command(str(tmp_path / "python3"), tmp_path)
    with (
        pytest.raises(InputError, match="did not serve: it is broken"),
        benchmark_endpoint.server([sys.executable, "-c", "print('it is broken')"], "/health", dict(os.environ)),
    ):
        pass
