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
import os
import signal
import socket
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dotenv import load_dotenv

from inference.endpoint.app import Settings, create_app
from inference.endpoint.upstreams import Side
from router_data import InputError, run_script
from router_model import Router, newest_checkpoint

LOCAL_NAMES = ("127.0.0.1", "localhost", "::1")
KEEP_ALIVE = 75  # seconds; clients that keep connections longer than we do would see them break


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    summary, _, rest = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model_save_dir", type=Path, help="the checkpoint's folder (default: the newest in ./models)")
    add("--hf_model_name", help="where the tokenizer comes from if the folder has none (a hub id or a local folder)")
    add("--threshold", type=float, help="of the model `router`, 0 to 1 (default: the checkpoint's)")
    add("--host", default="127.0.0.1", help="the address to bind (default: %(default)s)")
    add("--port", type=int, default=8000, help="the port; 0 takes a free one (default: %(default)s)")
    add("--max_in_flight", type=int, default=1000, help="requests at once; more get a 429 (default: %(default)s)")
    add("--timeout", type=float, default=300, help="seconds to wait for an answer's first byte and between two of its "
        "pieces; an answer that is not streamed arrives whole (default: %(default)s)")  # fmt: skip
    add("--retries", type=int, default=1, help="how often a model is asked again where it can't be reached or answers "
        "with 408, 429 or 5xx, before the other is asked (default: %(default)s)")  # fmt: skip
    add("--fall_back_to_inferior", action="store_true", help="where the superior model is down the inferior one "
        "answers (default: an error)")  # fmt: skip
    add("--decision_log", type=Path, metavar="FILE", help="append a row of JSONL for each decision (default: none)")
    add("--log_prompts", action="store_true", help="the rows hold the user's turns too, ready to be scored and "
        "labelled (default: no prompt is kept)")  # fmt: skip
    add("--grace", type=float, default=30, help="seconds for the answers under way when it is stopped "
        "(default: %(default)s)")  # fmt: skip
    args = parser.parse_args(argv)
    if args.threshold is not None and not 0 <= args.threshold <= 1:
        parser.error(f"--threshold {args.threshold} is not between 0 and 1")
    if args.max_in_flight < 1 or args.timeout <= 0 or args.retries < 0 or args.grace < 0:
        parser.error("--max_in_flight and --timeout must be positive, --retries and --grace not negative")
    if args.log_prompts and not args.decision_log:
        parser.error("--log_prompts needs --decision_log FILE")
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
    # a broken stream is broken on purpose, and has its own log line
    logging.getLogger("uvicorn.error").addFilter(lambda record: "without completing" not in record.getMessage())
    return uvicorn.Server(config)


def main(argv: Sequence[str] | None = None) -> None:
    # 1. Check what was given before anything slow happens.
    args = parse_args(argv)
    load_dotenv()
    settings = Settings(
        inferior=Side.from_environment("inferior"),
        superior=Side.from_environment("superior"),
        api_key=os.environ.get("ROUTER_API_KEY", "").strip() or None,
        **{name: getattr(args, name) for name in (f.name for f in fields(Settings)) if hasattr(args, name)},
    )
    listener = bind(args.host, args.port)
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    if args.host not in LOCAL_NAMES and not settings.api_key:
        warnings.warn("anyone who reaches this endpoint spends your money; set ROUTER_API_KEY", stacklevel=1)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    # 2. Load the checkpoint.
    router = Router.load(args.model_save_dir or newest_checkpoint(), args.hf_model_name)
    app = create_app(router, settings)

    # 3. Serve until Ctrl+C or SIGTERM.
    allow_open_files(2 * settings.max_in_flight + 256)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn's own handler comes first, this one when it is done
    listener.listen()  # who reads the next line can connect
    host, port = listener.getsockname()[:2]
    where = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
    print(f"The endpoint is at {where} ({router.model_save_dir}, {router.backend}; Ctrl+C ends it)", flush=True)
    make_server(app, args.grace).run(sockets=[listener])


if __name__ == "__main__":
    run_script(main)
