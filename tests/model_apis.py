"""Answers of the Responses API and of Anthropic's Messages, for the scripted server."""

import json

from openai_server import Answer


def response_object(model: str, text: str, response_id: str = "resp_1") -> dict:
    part = {"type": "output_text", "text": text, "annotations": []}
    item = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [part]}
    usage = {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10}
    return {
        "id": response_id, "object": "response", "created_at": 0, "model": model, "status": "completed", "error": None,
        "output": [item], "usage": usage, "tools": [], "tool_choice": "auto", "parallel_tool_calls": True,
    }  # fmt: skip


def message_object(model: str, text: str) -> dict:
    return {
        "id": "msg_1", "type": "message", "role": "assistant", "model": model, "stop_reason": "end_turn",
        "content": [{"type": "text", "text": text}], "usage": {"input_tokens": 7, "output_tokens": 3},
    }  # fmt: skip


def events(*pairs: tuple[str, dict]) -> list[bytes]:
    return [
        b"event: %s\ndata: %s\n\n" % (name.encode(), json.dumps({"type": name} | data).encode()) for name, data in pairs
    ]


def response_stream(model: str, text: str, **more) -> Answer:
    whole = response_object(model, text)
    deltas = [("response.output_text.delta", {"delta": f"{word} ", "item_id": "msg_1"}) for word in text.split()]
    start = ("response.created", {"response": whole | {"output": [], "status": "in_progress"}})
    item = ("response.output_item.done", {"output_index": 0, "item": whole["output"][0]})
    return Answer(pieces=events(start, *deltas, item, ("response.completed", {"response": whole})), **more)


def message_stream(model: str, text: str, **more) -> Answer:
    start = message_object(model, "") | {"content": [], "stop_reason": None}
    deltas = [{"index": 0, "delta": {"type": "text_delta", "text": f"{word} "}} for word in text.split()]
    return Answer(
        pieces=events(
            ("message_start", {"message": start}),
            ("content_block_start", {"index": 0, "content_block": {"type": "text", "text": ""}}),
            *[("content_block_delta", delta) for delta in deltas],
            ("content_block_stop", {"index": 0}),
            ("message_delta", {"delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 3}}),
            ("message_stop", {}),
        ),
        **more,
    )


def speaks_all(path: str, payload: bytes) -> Answer | None:
    """A server of all APIs: each model says its name."""
    method, _, path = path.partition(" ")
    if method != "POST":
        return None
    body = json.loads(payload) if payload else {}
    text = f"I am {body.get('model')}"
    if path in ("/messages/count_tokens", "/responses/input_tokens"):
        return Answer({"input_tokens": 7, "object": "response.input_tokens"})
    if path == "/responses/compact":
        item = {"type": "compaction", "id": "cmp_1", "encrypted_content": text}
        return Answer(response_object(body["model"], text) | {"object": "response.compaction", "output": [item]})
    if path == "/responses":
        return (
            response_stream(body["model"], text) if body.get("stream") else Answer(response_object(body["model"], text))
        )
    if path == "/messages":
        return (
            message_stream(body["model"], text) if body.get("stream") else Answer(message_object(body["model"], text))
        )
    return None
