"""A stand-in for a model's provider: answers every request after a fixed time with the same text, also as a stream.

Example:
    python3 benchmarks/upstream.py --port 9000 --answer_seconds 0.2
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from aiohttp import web

from router_data import program_parser, run_script

STREAM_CHUNKS = 5
STREAM_GAP_SECONDS = 0.01  # a proxy that gathers a stream before it passes it on shows it in the time to the first byte


def answer_to(content: str) -> bytes:
    """A chat completion with this text."""
    message = {"role": "assistant", "content": content}
    usage = {"prompt_tokens": 600, "completion_tokens": 70, "total_tokens": 670}
    body = {"id": "chatcmpl-0", "object": "chat.completion", "created": 0, "model": "fixed", "usage": usage}
    return json.dumps(body | {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}).encode()


def chunk(number: int) -> bytes:
    """An event of a stream."""
    choice = {"index": 0, "delta": {"role": "assistant", "content": f"word{number} "}, "finish_reason": None}
    body = {"id": "chatcmpl-0", "object": "chat.completion.chunk", "created": 0, "model": "fixed", "choices": [choice]}
    return b"data: %s\n\n" % json.dumps(body).encode()


async def serve(port: int, answer_seconds: float, content: str) -> None:
    """Serve on 127.0.0.1 until the process ends."""
    answer = answer_to(content)

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        if request.method == "POST" and answer_seconds:
            await asyncio.sleep(answer_seconds)
        if b'"stream":true' not in body.replace(b" ", b""):
            return web.Response(body=answer, content_type="application/json")
        stream = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await stream.prepare(request)
        for number in range(STREAM_CHUNKS):
            await stream.write(chunk(number))
            await asyncio.sleep(STREAM_GAP_SECONDS)
        await stream.write(b"data: [DONE]\n\n")
        return stream

    runner = web.ServerRunner(web.Server(handle, access_log=None))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=1024).start()
    await asyncio.Event().wait()


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags."""
    parser = program_parser(__doc__)
    add = parser.add_argument
    add("--port", type=int, required=True, help="on 127.0.0.1")
    add("--answer_seconds", type=float, default=0, metavar="S", help="before each answer (default: %(default)s)")
    add("--content", default="The capital of France is Paris. " * 10, metavar="TEXT", help="what it answers")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Serve."""
    args = parse_args(argv)
    import uvloop

    uvloop.run(serve(args.port, args.answer_seconds, args.content))


if __name__ == "__main__":
    run_script(main)
