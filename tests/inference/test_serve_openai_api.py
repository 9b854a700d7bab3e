"""The program that serves the endpoint: its flags, its variables, its start and its end."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest
from conftest import ROOT
from openai_server import OpenAIServer, stream_of
from routing_endpoint import (
    EASY_PROMPT,
    INFERIOR_KEY,
    PATIENCE,
    SUPERIOR_KEY,
    refused,
    says_its_name,
    text_of_stream,
    user,
    wait_until,
)

from inference import serve_openai_api
from inference.endpoint.access import Access
from inference.endpoint.app import EndpointApp
from inference.endpoint.settings import Settings
from inference.endpoint.upstreams import Upstream
from router_data import InputError
from router_model import Router

SCRIPT = ROOT / "inference" / "serve_openai_api.py"


@pytest.fixture(scope="module")
def router(exported_checkpoint):
    return Router.load(exported_checkpoint)


@pytest.fixture
def upstream():
    with OpenAIServer(says_its_name) as server:
        yield server


def environment(**more: str) -> dict[str, str]:
    variables = {"INFERIOR_MODEL": "small", "SUPERIOR_MODEL": "large", "INFERIOR_API_KEY": INFERIOR_KEY}
    variables |= {"SUPERIOR_API_KEY": SUPERIOR_KEY, "ROUTER_API_KEY": "", "OPENAI_API_KEY": "", "HF_HUB_OFFLINE": "1"}
    variables |= {"INFERIOR_BASE_URL": "http://127.0.0.1:9/v1", "SUPERIOR_BASE_URL": "http://127.0.0.1:9/v1"}
    return {**os.environ, **variables, **more}


@contextmanager
def script(*flags: str, cwd: Path, **variables: str):
    """The script as its users start it; yields the process and the base URL that it prints."""
    command = [sys.executable, str(SCRIPT), "--port", "0", *map(str, flags)]
    with open(cwd / "stderr.txt", "w") as stderr:
        pipes = {"stdout": subprocess.PIPE, "stderr": stderr, "text": True}
        process = subprocess.Popen(command, cwd=cwd, env=environment(**variables), **pipes)
    try:
        yield process, re.search(r"http://\S+/v1", process.stdout.readline())[0]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_the_script_serves_until_it_is_told_to_stop(exported_checkpoint, upstream, tmp_path):
    upstream.behave = lambda *_: stream_of("one two", hold=True)
    urls = {"INFERIOR_BASE_URL": upstream.url, "SUPERIOR_BASE_URL": f"{upstream.url}/"}
    flags = (
        "--model_save_dir",
        exported_checkpoint,
        "--decision_log",
        "log.jsonl",
        "--log_prompts",
        "--threshold",
        "0.4",
    )
    with script(*flags, cwd=tmp_path, **urls, ROUTER_API_KEY="own-secret") as (process, url):
        http = httpx.Client(trust_env=False)
        client = openai.OpenAI(base_url=url, api_key="own-secret", max_retries=0, http_client=http)
        stream = client.chat.completions.create(model="router", messages=[user(EASY_PROMPT)], stream=True)
        next(stream)
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: refused(url.removesuffix("/v1")))
        upstream.release()
        assert text_of_stream(stream) == "one two"
        assert process.wait(PATIENCE) == 0
        client.close()
    [row] = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert (row["prompt"], row["threshold"], row["status"]) == (EASY_PROMPT, 0.4, 200)
    stderr = (tmp_path / "stderr.txt").read_text()
    assert "route=inferior status=200" in stderr and len(stderr.splitlines()) == 1
    assert "apple" not in stderr and "secret" not in stderr


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"INFERIOR_MODEL": ""}, "no INFERIOR_MODEL: put it into .env"),
        ({"SUPERIOR_API_KEY": ""}, "no SUPERIOR_API_KEY: put it"),
        ({"SUPERIOR_API_KEY": "", "SUPERIOR_BASE_URL": ""}, r"no SUPERIOR_API_KEY \(or OPENAI_API_KEY\)"),
        ({"INFERIOR_BASE_URL": "127.0.0.1:8000"}, "INFERIOR_BASE_URL must read like https://"),
        ({"INFERIOR_BASE_URL": "http://me:secret@host/v1"}, "with no password"),
        ({"INFERIOR_API_KEY": "sk-secret\u2014"}, "INFERIOR_API_KEY holds characters that no HTTP header can carry"),
    ],
)
def test_a_fault_of_the_environment_is_named(monkeypatch, variables, message):
    for name, value in environment(**variables).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message) as caught:
        serve_openai_api.main([])
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "flags",
    ["--threshold 1.5", "--threshold nan", "--max_in_flight 0", "--timeout 0", "--timeout nan", "--timeout inf",
     "--log_prompts", "--shadow_share 2", "--shadow_share 0.1", "--shadow_share 0.1 --decision_log x",
     "--max_connections_per_address 0"],
)  # fmt: skip
def test_faults_of_the_flags_are_named(flags):
    with pytest.raises(InputError, match=flags.split()[0]):
        serve_openai_api.parse_args(flags.split())


def test_a_port_that_is_taken_ends_in_one_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, SCRIPT, "--port", port], cwd=tmp_path, env=environment(), capture_output=True, text=True
        )
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert re.match(f"error: port {port} of 127.0.0.1 can't be used .*--port", done.stderr)


def test_a_file_that_is_no_decision_log_is_not_written_to(router, tmp_path):
    upstream = Upstream("inferior", "m", "http://127.0.0.1:9/v1", "k")
    for name, content in ((".env", b"OPENAI_API_KEY=sk-1"), ("input.jsonl", b'{"prompt": "hi"}\n{"prompt": "ho"}')):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match="holds something else"):
            EndpointApp(router, Settings(upstream, upstream, decision_log=tmp_path / name))
        assert (tmp_path / name).read_bytes() == content


def warnings_of(monkeypatch, tmp_path, *flags: str, **variables: str) -> str:
    """What the program warns of before it finds no checkpoint."""
    monkeypatch.chdir(tmp_path)
    for name, value in environment(**variables).items():
        monkeypatch.setenv(name, value)
    with warnings.catch_warnings(record=True) as caught, pytest.raises(InputError, match="no checkpoint in models/"):
        warnings.simplefilter("always")
        serve_openai_api.main(["--port", "0", *flags])
    return " ".join(str(warning.message) for warning in caught)


def test_beyond_localhost_without_a_key_there_is_a_warning(monkeypatch, tmp_path):
    everywhere = ("--host", "0.0.0.0")
    assert "ROUTER_API_KEY" in warnings_of(monkeypatch, tmp_path, *everywhere)
    assert warnings_of(monkeypatch, tmp_path, *everywhere, ROUTER_API_KEY="own-secret") == ""
    assert warnings_of(monkeypatch, tmp_path) == ""


def test_a_key_that_goes_to_another_machine_in_clear_is_warned_of(monkeypatch, tmp_path):
    told = warnings_of(monkeypatch, tmp_path, SUPERIOR_BASE_URL="http://203.0.113.7/v1")
    assert "SUPERIOR_BASE_URL is http" in told and "INFERIOR" not in told and "secret" not in told


def test_the_names_that_mean_models():
    aliases_in = serve_openai_api.aliases_in
    assert aliases_in(" gpt-4o = router-0.3, mini=inferior ,") == {"gpt-4o": "router-0.3", "mini": "inferior"}
    assert aliases_in("") == {}
    for wrong in ("gpt-4o", "gpt-4o=gpt-5", "=router", "a=router-7"):
        with pytest.raises(InputError, match="ROUTER_ALIASES"):
            aliases_in(wrong)


def test_the_settings_are_those_of_the_flags_and_the_environment(monkeypatch):
    for name, value in environment(ROUTER_API_KEY="own", ROUTER_ALIASES="o=router").items():
        monkeypatch.setenv(name, value)
    flags = "--sessions free --allowed_hosts A.test --allowed_origins http://x/ --forward_headers X-Tenant"
    flags += " --other_paths inferior"
    found = serve_openai_api.settings_from(serve_openai_api.parse_args(flags.split()))
    assert not found.sticky and found.aliases == {"o": "router"} and found.other_paths == "inferior"
    assert found.forward_headers == {"x-tenant"}
    assert found.access == Access(
        "own", frozenset({"a.test", "localhost", "127.0.0.1", "::1"}), frozenset({"http://x"})
    )


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no such signal")
def test_a_signal_takes_the_newest_checkpoint_and_refuses_a_broken_one(exported_checkpoint, upstream, tmp_path):
    models = tmp_path / "models"
    first = shutil.copytree(exported_checkpoint, models / "tiny-router-finetuning-20260102T000000-save")
    urls = {"INFERIOR_BASE_URL": upstream.url, "SUPERIOR_BASE_URL": upstream.url}
    with script(cwd=tmp_path, **urls) as (process, url):
        health = url.replace("/v1", "/health")

        def checkpoint() -> str:
            return httpx.get(health, trust_env=False).json()["checkpoint"]

        assert checkpoint() == first.name
        broken = shutil.copytree(exported_checkpoint, models / "tiny-router-finetuning-20260103T000000-save")
        (broken / "router.json").write_text('{"threshold": 7}')
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: "is refused" in (tmp_path / "stderr.txt").read_text())
        assert checkpoint() == first.name
        newest = shutil.copytree(exported_checkpoint, models / "tiny-router-finetuning-20260104T000000-save")
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: checkpoint() == newest.name)
