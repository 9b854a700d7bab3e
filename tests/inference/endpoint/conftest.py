"""A router that has learnt one word, both models behind it, and the endpoint between."""

import pytest
from openai_server import OpenAIServer
from routing_endpoint import endpoint, says_its_name

from inference.endpoint import upstreams
from inference.endpoint.bodies import BodyReader
from router_model import Router


@pytest.fixture(scope="package")
def router(trained_checkpoint):
    return Router.load(trained_checkpoint)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(upstreams, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(BodyReader, "warm_up", lambda self: None)  # half a second of a core for each endpoint


@pytest.fixture
def upstream():
    """Both models: each says its name until a test gives `behave` something else to do."""
    with OpenAIServer(says_its_name) as server:
        yield server


@pytest.fixture
def routed(router, upstream):
    with endpoint(router, upstream) as running:
        yield running
