"""A local HTTP server that plays OpenAI: what it answers is a function, so a test can script any fault."""

import asyncio
import contextlib
import json
import re
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field

INFERIOR_ANSWER = '{"label": "ROUTE_TO_INFERIOR"}'
MODEL_PATHS = ("/chat/completions", "/responses", "/messages", "/messages/count_tokens")
SUPERIOR_ANSWER = '{"label": "ROUTE_TO_SUPERIOR"}'
QUALITY_ANSWER = '{"inferior_quality": 0.4, "superior_quality": 0.9}'


@dataclass
class Answer:
    """A response; `cut` closes the connection after so many bytes of the body, `delay` is in seconds.

    With `pieces` the body is a stream of them, chunked; `cut` then counts pieces, and with `hold` those after the first
    wait for the server's `release`.
    """

    body: object = ""
    status: int = 200
    headers: dict = field(default_factory=dict)
    delay: float = 0.0
    cut: int | None = None
    pieces: list[bytes] | None = None
    hold: bool = False


def completion(text: str | None = INFERIOR_ANSWER, finish_reason="stop", refusal=None, logprobs=None, n=1) -> Answer:
    message = {"role": "assistant", "content": text, "refusal": refusal}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason, "logprobs": logprobs}
    usage = {"prompt_tokens": 100, "completion_tokens": 10 * n, "total_tokens": 100 + 10 * n}
    return Answer({"id": "x", "object": "chat.completion", "model": "m", "choices": [choice] * n, "usage": usage})


def stream_of(text: str, **more) -> Answer:
    """The words of a text as a stream of chunks; `more` as for `Answer`."""
    deltas = [{"role": "assistant", "content": ""}, *({"content": f"{word} "} for word in text.split()), {}]
    pieces = []
    for delta in deltas:
        choice = {"index": 0, "delta": delta, "finish_reason": None if delta else "stop"}
        event = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [choice]}
        pieces.append(b"data: %s\n\n" % json.dumps(event).encode())
    return Answer(pieces=[*pieces, b"data: [DONE]\n\n"], **more)


def error(status: int, code: str | None = None, message: str = "no", param: str | None = None, **headers) -> Answer:
    body = {"error": {"message": message, "type": code, "code": code, "param": param}}
    return Answer(body, status, {name.replace("_", "-"): value for name, value in headers.items()})


def judged_prompt(body: dict) -> str:
    return json.loads(body["messages"][-1]["content"])["prompt_to_judge"]


def last_content(body: dict) -> str:
    """What the last message of a request says, as text."""
    conversation = body.get("messages", body.get("input")) or ""
    content = conversation if isinstance(conversation, str) else conversation[-1].get("content", "")
    return content if isinstance(content, str) else json.dumps(content)


class OpenAIServer:
    """Answers the APIs of models by `behave(prompt, nth_time, body)`, and the models, files and batches.

    `other_path("GET /responses/x", payload)` may answer any request before that.
    """

    def __init__(self, behave: Callable[[str, int, dict], Answer] | None = None, delay: float = 0.0) -> None:
        self.behave = behave or (lambda prompt, nth, body: completion())
        self.delay = delay
        self.asked: Counter[str] = Counter()  # requests for each prompt
        self.bodies: list[dict] = []
        self.payloads: list[bytes] = []
        self.headers: list[str] = []
        self.paths: list[str] = []
        self.held = 0  # times that a stream was held
        self.left = 0  # clients that closed their connection before they had the answer
        self.times: list[float] = []
        self.in_flight = self.most_in_flight = 0
        self.model = Answer({"id": "m", "object": "model", "created": 0, "owned_by": "test"})
        self.files: dict[str, dict] = {}
        self.batches: dict[str, dict] = {}
        self.other_path: Callable[[str, bytes], Answer | None] = lambda path, payload: None
        self.batch_fault: Callable[[str], Answer | None] = lambda path: None

    def __enter__(self) -> "OpenAIServer":
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()

        def serve() -> None:
            self._released = asyncio.Event()
            self._server = self._loop.run_until_complete(
                asyncio.start_server(self._connection, "127.0.0.1", 0, backlog=2048)
            )
            self.port = self._server.sockets[0].getsockname()[1]
            self.url = f"http://127.0.0.1:{self.port}/v1"
            ready.set()
            self._loop.run_forever()
            self._server.close()
            for task in asyncio.all_tasks(self._loop):
                task.cancel()
            self._loop.run_until_complete(asyncio.sleep(0.01))
            self._loop.close()

        self._thread = threading.Thread(target=serve, daemon=True)
        self._thread.start()
        ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                method, path, _ = line.decode().split()
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = re.search(r"content-length: (\d+)", head, re.I)
                payload = await reader.readexactly(int(length[1]) if length else 0)
                if "transfer-encoding: chunked" in head.lower():
                    while size := int((await reader.readline()).strip(), 16):
                        payload += await reader.readexactly(size)
                        await reader.readline()
                    await reader.readline()
                answer = await self._answer(method, path, head, payload, reader)
                if not await self._send(writer, answer, reader):
                    break
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()

    def release(self) -> None:
        """Let the streams go on that are held."""
        self._loop.call_soon_threadsafe(self._released.set)

    async def _while_there(self, reader: asyncio.StreamReader, wait: Coroutine) -> None:
        """Await something, but not longer than the client is there."""
        leaving, waiting = asyncio.ensure_future(reader.read(1)), asyncio.ensure_future(wait)
        try:
            await asyncio.wait({leaving, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                self.left += 1
                raise ConnectionError("the client left")
        finally:
            # until the reading has really ended, nothing else may read
            for task in (leaving, waiting):
                task.cancel()
            await asyncio.gather(leaving, waiting, return_exceptions=True)

    async def _send(self, writer: asyncio.StreamWriter, answer: Answer, reader: asyncio.StreamReader) -> bool:
        if answer.pieces is not None:
            return await self._stream(writer, answer, reader)
        body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        lines = [f"HTTP/1.1 {answer.status} X", f"content-length: {len(body)}"]
        headers = {"content-type": "application/json"} | answer.headers
        lines += [f"{name}: {value}" for name, value in headers.items()]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body[: answer.cut])
        await writer.drain()
        return answer.cut is None

    async def _stream(self, writer: asyncio.StreamWriter, answer: Answer, reader: asyncio.StreamReader) -> bool:
        lines = [f"HTTP/1.1 {answer.status} X", "content-type: text/event-stream", "transfer-encoding: chunked"]
        lines += [f"{name}: {value}" for name, value in answer.headers.items()]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n")
        for i, piece in enumerate(answer.pieces[: answer.cut]):
            if i and answer.hold:
                self.held += 1
                await self._while_there(reader, self._released.wait())
            writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            await writer.drain()
        if answer.cut is None:
            writer.write(b"0\r\n\r\n")
            await writer.drain()
        return answer.cut is None

    async def _answer(self, method: str, path: str, head: str, payload: bytes, reader: asyncio.StreamReader) -> Answer:
        self.headers.append(head)
        self.paths.append(path)
        path = path.removeprefix("/v1")
        path = path.partition("?")[0] if path.partition("?")[0] in MODEL_PATHS else path
        if path.startswith("/models/"):
            return self.model
        if answer := self.other_path(f"{method} {path}", payload):
            return answer
        if path in MODEL_PATHS:
            body = json.loads(payload)
            content = last_content(body)
            prompt = judged_prompt(body) if content.startswith('{"prompt_to_judge"') else content
            self.asked[prompt] += 1
            self.bodies.append(body)
            self.payloads.append(payload)
            self.times.append(time.monotonic())
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            try:
                answer = self.behave(prompt, self.asked[prompt], body)
                if delay := self.delay + answer.delay:
                    await self._while_there(reader, asyncio.sleep(delay))
            finally:
                self.in_flight -= 1
            return answer
        return self._batch_api(method, path, payload)

    # --- files and batches: everything completes at once unless `batch_fault` says otherwise ---

    def _batch_api(self, method: str, path: str, payload: bytes) -> Answer:
        fault = self.batch_fault(f"{method} {path}")
        if path == "/files" and method == "POST":
            name = re.search(rb'filename="([^"]+)"', payload)[1].decode()
            content = payload[payload.index(b"{") : payload.rindex(b"}") + 1]
            file = self.store(content, name)
            return fault or Answer(file)
        if path.startswith("/files?") or path == "/files":
            return fault or Answer({"object": "list", "data": [dict(f, content=None) for f in self.files.values()]})
        if path.endswith("/content"):
            return fault or Answer(self.files[path.split("/")[2]]["content"].encode())
        if path == "/batches" and method == "POST":
            order = json.loads(payload)
            batch = {
                "id": f"batch_{uuid.uuid4().hex[:8]}", "object": "batch", "endpoint": order["endpoint"],
                "input_file_id": order["input_file_id"], "completion_window": "24h", "status": "in_progress",
                "metadata": order.get("metadata"), "created_at": 0,
            }  # fmt: skip
            self.batches[batch["id"]] = batch
            return fault or Answer(batch)
        if path.startswith("/batches?") or path == "/batches":
            return fault or Answer({"object": "list", "data": list(self.batches.values()), "has_more": False})
        if path.startswith("/batches/"):
            return fault or Answer(self.batches[path.split("/")[2]])
        return error(404)

    def store(self, content: bytes, name: str) -> dict:
        """Keep a file as if it had been uploaded."""
        file = {
            "id": f"file-{uuid.uuid4().hex[:8]}", "object": "file", "bytes": len(content), "created_at": 0,
            "filename": name, "purpose": "batch", "status": "processed", "content": content.decode("utf-8", "replace"),
        }  # fmt: skip
        self.files[file["id"]] = file
        return dict(file, content=None)

    def finish_batches(self) -> None:
        """Work through every batch in progress; a refused request goes to the error file, as at OpenAI."""
        for batch in self.batches.values():
            if batch["status"] != "in_progress":
                continue
            done, failed = [], []
            for line in self.files[batch["input_file_id"]]["content"].splitlines():
                request = json.loads(line)
                prompt = judged_prompt(request["body"])
                self.asked[prompt] += 1
                answer = self.behave(prompt, self.asked[prompt], request["body"])
                response = {"status_code": answer.status, "request_id": "r", "body": answer.body}
                result = {"id": "b", "custom_id": request["custom_id"], "response": response, "error": None}
                (done if answer.status == 200 else failed).append(json.dumps(result))
            batch["status"] = "completed"
            for field_name, lines in (("output_file_id", done), ("error_file_id", failed)):
                if lines:
                    batch[field_name] = self.store(("\n".join(lines) + "\n").encode(), "out")["id"]
            batch["request_counts"] = {
                "total": len(done) + len(failed), "completed": len(done), "failed": len(failed),
            }  # fmt: skip
