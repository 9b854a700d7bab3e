"""Serve an OpenAI-compatible endpoint that sends each conversation to the inferior or to the superior model.

Reads   a checkpoint, and from the environment or .env, for each of the two models, its name, where it is and its key:
        INFERIOR_MODEL, INFERIOR_BASE_URL, INFERIOR_API_KEY, SUPERIOR_MODEL, SUPERIOR_BASE_URL, SUPERIOR_API_KEY
Writes  with --decision_log a row of JSONL for each decision, for batch scoring, threshold choice and labelling

Point any OpenAI client at http://127.0.0.1:8000/v1 and ask for the model `router` (the checkpoint's threshold),
`router-0.35` (that threshold), `inferior` or `superior`. The request and the answer pass through as they are, streams
too; what was decided stands in x-router-... headers. The user's turns decide, never the system prompt; a conversation
without any text of the user can't be judged and goes to the superior model. Where the model chosen by the router is
down, the superior one answers. /health and /metrics (Prometheus) say how it is.

Example:
    INFERIOR_MODEL=gpt-6-luna SUPERIOR_MODEL=gpt-6 python3 inference/serve_openai_api.py
"""

import argparse
import logging
import math
import os
import signal
import socket
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from inference.endpoint.app import Settings, create_app
from inference.endpoint.upstreams import Upstream
from router_data import InputError, program_parser, run_script
from router_model import Router, add_router_flags, check_threshold, newest_checkpoint

LOCAL_NAMES = ("127.0.0.1", "localhost", "::1")
GRACE_SECONDS = 30  # for the answers under way when it is stopped
KEEP_ALIVE = 75  # seconds; clients that keep connections longer than we do would see them break


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags, checked.

    Raises:
        InputError: a flag's value is out of range, or another flag is missing beside it.
    """
    parser = program_parser(__doc__)
    add_router_flags(parser)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="the address to bind (default: %(default)s)")
    add("--port", type=int, default=8000, help="the port; 0 takes a free one (default: %(default)s)")
    add(
        "--max_in_flight", type=int, default=1000, metavar="N",
        help="requests at once; more get a 429 (default: %(default)s)",
    )  # fmt: skip
    add(
        "--timeout", type=float, default=300, metavar="SECONDS",
        help="wait for an answer's first byte, and between two of its pieces; an answer that is not streamed arrives "
        "whole (default: %(default)s)",
    )  # fmt: skip
    add(
        "--retries", type=int, default=1, metavar="N",
        help="how often a model is asked again where it can't be reached or answers with 408, 429 or 5xx, before the "
        "other is asked (default: %(default)s)",
    )  # fmt: skip
    add(
        "--fall_back_to_inferior", action="store_true",
        help="the inferior model answers where the superior one is down (default: an error)",
    )  # fmt: skip
    add("--decision_log", type=Path, metavar="FILE", help="append a row of JSONL for each decision (default: none)")
    add(
        "--log_prompts", action="store_true",
        help="the rows hold the user's turns too, ready to be scored and labelled (default: no prompt is kept)",
    )  # fmt: skip
    args = parser.parse_args(argv)
    check_threshold(args.threshold)
    if args.max_in_flight < 1 or args.retries < 0:
        raise InputError("--max_in_flight must be positive, --retries not negative")
    if not (args.timeout > 0 and math.isfinite(args.timeout)):
        raise InputError(f"--timeout {args.timeout:g} is not a positive number of seconds")
    if args.log_prompts and not args.decision_log:
        raise InputError("--log_prompts needs --decision_log FILE")
    return args


def bind(host: str, port: int) -> socket.socket:
    """A socket of this address; it fails before anything slow is loaded.

    Raises:
        InputError: the address can't be used.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"port {port} of {host} can't be used ({reason}); name another with --port") from error
    return listener


def allow_open_files(needed: int) -> None:
    """Raise this process's limit of open files where it is lower: each request holds two connections."""
    with suppress(ImportError, ValueError, OSError):  # Windows has no such limit
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < needed:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(needed, hard) if hard > 0 else needed, hard))


def make_server(app, grace: float):
    """The uvicorn server of an endpoint; `grace`: seconds for the answers under way when it is stopped."""
    import uvicorn

    config = uvicorn.Config(
        app,
        access_log=False,
        date_header=False,  # the upstream's passes through
        server_header=False,
        log_config=None,
        log_level="warning",
        timeout_graceful_shutdown=grace,
        timeout_keep_alive=KEEP_ALIVE,
        ws="none",
    )
    # A cut stream is ended without its last chunk so that the client notices; it has its own log line
    logging.getLogger("uvicorn.error").addFilter(lambda record: "without completing" not in record.getMessage())
    return uvicorn.Server(config)


def main(argv: Sequence[str] | None = None) -> None:
    """Serve the endpoint."""
    # 1. Check what was given before anything slow happens.
    args = parse_args(argv)
    settings = Settings(
        inferior=Upstream.from_environment("inferior"),
        superior=Upstream.from_environment("superior"),
        api_key=os.environ.get("ROUTER_API_KEY", "").strip() or None,
        threshold=args.threshold,
        max_in_flight=args.max_in_flight,
        timeout=args.timeout,
        retries=args.retries,
        fall_back_to_inferior=args.fall_back_to_inferior,
        decision_log=args.decision_log,
        log_prompts=args.log_prompts,
    )
    with bind(args.host, args.port) as listener:
        if args.host not in LOCAL_NAMES and not settings.api_key:
            warnings.warn("anyone who reaches this endpoint spends your money; set ROUTER_API_KEY", stacklevel=1)
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

        # 2. Load the checkpoint.
        router = Router.load(args.model_save_dir or newest_checkpoint(), args.hf_model_name)
        app = create_app(router, settings)

        # 3. Serve until Ctrl+C or SIGTERM.
        allow_open_files(2 * settings.max_in_flight + 256)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # runs after uvicorn's own handler has stopped the server
        listener.listen()  # before the address is printed, so that a script can connect as soon as it reads it
        host, port = listener.getsockname()[:2]
        where = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
        print(f"The endpoint is at {where} ({router.model_save_dir}, {router.backend}; Ctrl+C ends it)", flush=True)
        make_server(app, GRACE_SECONDS).run(sockets=[listener])


if __name__ == "__main__":
    run_script(main)
