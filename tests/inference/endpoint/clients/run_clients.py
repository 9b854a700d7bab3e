"""Today's clients ask the endpoint, each by its default API, with the line that the README gives: `make clients`."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT
from model_apis import speaks_all
from routing_endpoint import EASY_PROMPT, HARD_PROMPT, endpoint

FOLDER = Path(__file__).parent
PYTHON = ROOT / "clients-venv" / "bin" / "python3"
CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
SECONDS = 120

CLIENTS = {
    ("node", "openai-chat"): CHAT,
    ("node", "openai-responses"): RESPONSES,
    ("node", "anthropic"): MESSAGES,
    ("node", "ai-sdk"): RESPONSES,
    ("node", "openai-agents"): RESPONSES,
    ("python", "openai_agents"): RESPONSES,
    ("python", "pydantic_ai"): RESPONSES,
    ("python", "langchain_openai"): CHAT,
    ("python", "langchain_anthropic"): MESSAGES,
}
KEY = "own-secret"


CLAUDE_CODE = FOLDER / "node_modules" / "@anthropic-ai" / "claude-code" / "cli-wrapper.cjs"


def line_of_the_readme(client: str, address: str) -> list[str]:
    row = next(line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith(f"| {client}"))
    return shlex.split(row.split("`")[1].replace("http://127.0.0.1:8000", address))


def command(language: str, client: str, address: str, question: str) -> list[str]:
    if language == "python":
        return [str(PYTHON), str(FOLDER / "ask.py"), client, question]
    return ["node", str(FOLDER / "ask.mjs"), client, address, question]


@pytest.fixture
def serving(router, upstream):
    upstream.other_path = speaks_all
    with endpoint(router, upstream, api_key=KEY) as running:
        yield running


@pytest.fixture
def environment(serving, tmp_path):
    """A home of its own, the endpoint's address and key, and no other key."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    own = {"HOME": str(tmp_path), "NO_PROXY": "127.0.0.1", "OPENAI_AGENTS_DISABLE_TRACING": "1"}
    own |= {"OPENAI_BASE_URL": f"{serving.address}/v1", "OPENAI_API_KEY": KEY}
    return kept | own | {"ANTHROPIC_BASE_URL": serving.address, "ANTHROPIC_API_KEY": KEY}


def answer_of(arguments: list[str], environment: dict[str, str], folder: Path) -> str:
    streams = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    done = subprocess.run(arguments, env=environment, cwd=folder, timeout=SECONDS, **streams)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


@pytest.mark.parametrize(("prompt", "answer"), [(EASY_PROMPT, "I am small"), (HARD_PROMPT, "I am large")])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("language", "client"), CLIENTS, ids=map(" ".join, CLIENTS))
def test_a_client_gets_the_answer_of_the_model_that_was_chosen(
    serving, upstream, environment, tmp_path, language, client, stream, prompt, answer
):
    name = client + ("-stream" if language == "node" else "_stream") * stream
    assert answer_of(command(language, name, serving.address, prompt), environment, tmp_path) == answer
    assert upstream.paths == [CLIENTS[language, client]]


@pytest.mark.parametrize(("prompt", "answer"), [(EASY_PROMPT, "I am small"), (HARD_PROMPT, "I am large")])
def test_codex_works_through_the_router_with_the_line_of_the_readme(
    router, upstream, environment, tmp_path, prompt, answer
):
    upstream.other_path = speaks_all
    with endpoint(router, upstream) as running:
        _, *flags = line_of_the_readme("Codex CLI", running.address)
        program = [str(FOLDER / "node_modules" / ".bin" / "codex"), "exec", "--skip-git-repo-check"]
        assert answer_of([*program, *flags, prompt], environment, tmp_path) == answer
    assert set(upstream.paths) == {RESPONSES}


@pytest.mark.parametrize(("prompt", "answer"), [(EASY_PROMPT, "I am small"), (HARD_PROMPT, "I am large")])
def test_claude_code_works_through_the_router_with_the_line_of_the_readme(
    serving, upstream, environment, tmp_path, prompt, answer
):
    *variables, _ = line_of_the_readme("Claude Code", serving.address)
    quiet = {"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1"}
    environment = environment | quiet | dict(variable.split("=", 1) for variable in variables)
    assert answer_of(["node", str(CLAUDE_CODE), "-p", prompt], environment, tmp_path) == answer
    assert {path.partition("?")[0] for path in upstream.paths} == {MESSAGES}
