"""A server that plays OpenAI, and a folder of its own for every test of stage 2."""

from pathlib import Path

import pytest
from labelling_runs import LABELLING_PROMPT
from openai_server import OpenAIServer

from create_dataset import openai_client
from create_dataset.api_settings import PROXY_VARIABLES


@pytest.fixture(autouse=True)
def folder_and_short_waits(monkeypatch, tmp_path):
    monkeypatch.setattr(openai_client, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(openai_client, "TRIES", 4)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-of-the-test")
    for name in ("OPENAI_MODEL", "OPENAI_BASE_URL", *PROXY_VARIABLES, *map(str.lower, PROXY_VARIABLES)):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    Path("labelling.txt").write_text(LABELLING_PROMPT)


@pytest.fixture
def serve(monkeypatch):
    """Start a server with the given behaviour and point the client at it."""
    servers = []

    def start(behave=None, **settings) -> OpenAIServer:
        server = OpenAIServer(behave, **settings).__enter__()
        servers.append(server)
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        return server

    yield start
    for server in servers:
        server.__exit__()
