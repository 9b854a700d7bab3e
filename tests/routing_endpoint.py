"""The endpoint in a thread, with the clients that ask it; what the tests of its modules share."""

import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import httpx
import openai
from openai_server import Answer, OpenAIServer, completion, stream_of
from prometheus_client.parser import text_string_to_metric_families

from inference import serve_openai_api
from inference.endpoint.access import Access
from inference.endpoint.app import EndpointApp
from inference.endpoint.protocol import ConnectionLimits
from inference.endpoint.settings import Settings
from inference.endpoint.upstreams import Upstream
from inference.listener import bind
from router_model import Router

EASY_PROMPT = "what is the apple with the bread"
HARD_PROMPT = "what is the zorp with the quix"
INFERIOR_KEY, SUPERIOR_KEY, OWN_KEY = "sk-inferior-secret", "sk-superior-secret", "own-secret-ü"
PATIENCE = 30  # seconds, for what comes in a moment
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
JSON_TYPE = {"content-type": "application/json"}


def says_its_name(prompt: str, nth: int, body: dict) -> Answer:
    text = f"I am {body['model']}"
    return stream_of(text) if body.get("stream") else completion(text)


def broken(*models: str, by: Answer):
    """Behaviour of a server of which these models fail."""
    return lambda prompt, nth, body: by if body["model"] in models else says_its_name(prompt, nth, body)


def nobody() -> str:
    """The address of a server that isn't there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/v1"


def user(content) -> dict:
    return {"role": "user", "content": content}


def headers_of_decision(headers) -> dict[str, str]:
    return {name.removeprefix("x-router-"): v for name, v in headers.items() if name.startswith("x-router-")}


def wait_until(holds) -> None:
    until = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.01)


def text_of(response) -> str:
    return response.parse().choices[0].message.content


def text_of_stream(stream) -> str:
    return "".join(c.choices[0].delta.content or "" for c in stream if c.choices).strip()


def refused(address: str) -> bool:
    try:
        httpx.get(f"{address}/health", trust_env=False, timeout=PATIENCE)
    except httpx.TransportError:
        return True
    return False


class Endpoint:
    """The endpoint in a thread, with OpenAI's client of it.

    Args:
        upstream: the server of both models; `urls` names one for each.
        api_key, allowed_hosts, allowed_origins: as in `Access`; other settings as in `Settings`.
        inferior, superior: attributes of these upstreams that differ from the usual ones.
    """

    def __init__(
        self,
        router: Router,
        upstream: OpenAIServer | None = None,
        urls: Sequence[str] | None = None,
        grace: float = 10,
        limits: ConnectionLimits | None = None,
        load_router=None,
        inferior: dict | None = None,
        superior: dict | None = None,
        **settings,
    ):
        inferior_url, superior_url = urls or (upstream.url, upstream.url)
        small = {"name": "inferior", "model": "small", "base_url": inferior_url, "api_key": INFERIOR_KEY}
        large = {"name": "superior", "model": "large", "base_url": superior_url, "api_key": SUPERIOR_KEY}
        access = {name: settings.pop(name) for name in Access.__dataclass_fields__ if name in settings}
        sides = Upstream(**small | (inferior or {})), Upstream(**large | (superior or {}))
        listener = bind("127.0.0.1", 0, "")
        self.port = listener.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.app = EndpointApp(
            router, Settings(*sides, access=Access(**access), **{"timeout": PATIENCE} | settings), load_router
        )
        limits = limits or ConnectionLimits(5000)
        self.server = serve_openai_api.make_server(self.app, limits, grace)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listener]}, daemon=True)
        self.thread.start()
        wait_until(lambda: self.server.started)
        self.client = openai.OpenAI(
            base_url=f"{self.address}/v1",
            api_key=access.get("api_key") or "none",
            max_retries=0,
            timeout=PATIENCE,
            http_client=httpx.Client(trust_env=False, timeout=PATIENCE),
        )

    def stop(self) -> None:
        self.client.close()
        self.server.should_exit = True
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()

    def ask(self, messages=EASY_PROMPT, model="router", **more):
        """The raw response of OpenAI's client."""
        messages = [user(messages)] if isinstance(messages, str) else messages
        return self.client.chat.completions.with_raw_response.create(model=model, messages=messages, **more)

    def decision(self, *inputs, **more) -> dict[str, str]:
        """What the answer's headers say of the decision."""
        return headers_of_decision(self.ask(*inputs, **more).headers)

    def post(self, content, path: str = "/v1/chat/completions", **headers) -> httpx.Response:
        """A body that a client wouldn't send, or any as JSON."""
        content = content if isinstance(content, bytes | str) else json.dumps(content)
        return self.send("POST", path, content, **JSON_TYPE | headers)

    def get(self, path: str, **headers) -> httpx.Response:
        return self.send("GET", path, **headers)

    def send(self, method: str, path: str, content=None, **headers) -> httpx.Response:
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        url = self.address + path
        return httpx.request(method, url, content=content, headers=headers, timeout=PATIENCE, trust_env=False)

    def raw(self, *pieces: bytes, patience: float = PATIENCE) -> bytes:
        """All that comes back on a connection of its own until the endpoint or the patience ends it."""
        with socket.create_connection(("127.0.0.1", self.port), patience) as connection:
            received = b""
            try:
                for piece in pieces:
                    connection.sendall(piece)
                    time.sleep(0.05)
                while more := connection.recv(65536):
                    received += more
            except OSError:
                pass
            return received

    def metrics(self) -> dict[str, float]:
        """The counters, by name and labels: router_responses_total{200}."""
        found = {}
        for family in text_string_to_metric_families(self.get("/metrics").text):
            for sample in family.samples:
                found[f"{sample.name}{{{','.join(sample.labels.values())}}}"] = sample.value
        return found


@contextmanager
def endpoint(router: Router, *inputs, **settings) -> Iterator[Endpoint]:
    running = Endpoint(router, *inputs, **settings)
    try:
        yield running
    finally:
        running.stop()
