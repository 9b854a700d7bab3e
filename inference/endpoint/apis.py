"""The APIs that the endpoint speaks: which paths they have, and the form of their errors.

Requests and answers pass through as they are; nothing is translated from one API into another.
"""

import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Headers = list[tuple[bytes, bytes]]
Scope = MutableMapping[str, Any]  # ASGI's
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

ANTHROPIC_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
}


@dataclass(frozen=True)
class Api:
    """One way to ask a model.

    Attributes:
        name: for logs and metrics.
        path: below /v1 of the endpoint and below each upstream's base URL.
        conversation: the field of the body with the conversation.
        is_anthropic: whether errors, keys and versions are in Anthropic's form, else in OpenAI's.
        generates: whether a model answers; else a conversation is only measured or compacted.
    """

    name: str
    path: str
    conversation: str = "messages"
    is_anthropic: bool = False
    generates: bool = True


CHAT = Api("chat", "/chat/completions")
RESPONSES = Api("responses", "/responses", conversation="input")
MESSAGES = Api("messages", "/messages", is_anthropic=True)
COUNT_TOKENS = Api("count_tokens", "/messages/count_tokens", is_anthropic=True, generates=False)
INPUT_TOKENS = Api("input_tokens", "/responses/input_tokens", conversation="input", generates=False)
COMPACT = Api("compact", "/responses/compact", conversation="input", generates=False)
APIS = {api.path: api for api in (CHAT, RESPONSES, MESSAGES, COUNT_TOKENS, INPUT_TOKENS, COMPACT)}


def below_v1(path: str) -> str:
    """A path without the /v1 that clients may leave out; a first part that only begins so, as /v1x, stays."""
    return path.removeprefix("/v1") if f"{path}/".startswith("/v1/") else path


@dataclass(eq=False)
class ApiError(Exception):
    """A request that the router itself refuses or can't serve.

    Attributes:
        status: HTTP.
        code: for programs, such as "model_not_found".
        message: for people.
        param: the field of the request that is wrong.
        headers: further ones of the answer.
    """

    status: int
    code: str
    message: str
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message

    def body(self, is_anthropic: bool) -> bytes:
        """The error as JSON, in Anthropic's or OpenAI's form."""
        if is_anthropic:
            kind = ANTHROPIC_ERROR_TYPES.get(self.status) or (
                "invalid_request_error" if self.status < 500 else "api_error"
            )
            return json.dumps({"type": "error", "error": {"type": kind, "message": self.message}}).encode()
        kind = "invalid_request_error" if self.status < 429 else "router_error"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return json.dumps({"error": error}).encode()


async def respond(send: Send, status: int, body: bytes, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
    """Send a whole answer; JSON unless `headers` name another type."""
    content_type = (
        () if any(name == b"content-type" for name, _ in headers) else ((b"content-type", b"application/json"),)
    )
    all_headers = [*content_type, (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": all_headers})
    await send({"type": "http.response.body", "body": body})


async def respond_with_error(
    send: Send, error: ApiError, is_anthropic: bool, headers: Sequence[tuple[bytes, bytes]] = ()
) -> None:
    """Send an error in the form of the API that was asked."""
    own = [(name.encode(), value.encode()) for name, value in error.headers.items()]
    await respond(send, error.status, error.body(is_anthropic), [*own, *headers])
