"""Serve an endpoint that sends each conversation to the inferior or to the superior model.

Reads   a checkpoint, and from the environment or .env, for each of the two models, its name, where it is and its key:
        INFERIOR_MODEL, INFERIOR_BASE_URL, INFERIOR_API_KEY, SUPERIOR_MODEL, SUPERIOR_BASE_URL, SUPERIOR_API_KEY
Writes  with --decision_log a row of JSONL for each decision, for batch scoring, threshold choice and labelling

Point any client of OpenAI or Anthropic at http://127.0.0.1:8000 (of OpenAI at http://127.0.0.1:8000/v1) and ask for the
model `router` (the checkpoint's threshold), `router-0.35` (that threshold), `inferior` or `superior`. Chat completions,
the Responses API and Anthropic's Messages pass through as they are, streams too, to models that speak the same API;
what was decided stands in x-router-... headers. The user's own words decide, never the system prompt, tools' results or
what an agent adds; a conversation without any goes to the superior model. A conversation that needed the superior model
once stays there. Where the model chosen by the router is down or can't take the request, the superior one answers.
/health and /metrics (Prometheus) say how it is. SIGHUP takes the checkpoint that is there by then.

Further variables: ROUTER_API_KEY (the key that clients must send), ROUTER_ALIASES (names that mean others:
gpt-4o=router,gpt-4o-mini=inferior), INFERIOR_MAX_INPUT_TOKENS and INFERIOR_INPUTS (text,image,audio,video,file,tools:
what the inferior model takes; other requests go to the superior one at once), OTEL_EXPORTER_OTLP_ENDPOINT (where spans
go, with requirements/otel.txt).

Example:
    INFERIOR_MODEL=gpt-6-luna SUPERIOR_MODEL=gpt-6 python3 inference/serve_openai_api.py
"""

import argparse
import gc
import logging
import math
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from inference.endpoint.access import Access, hosts_for
from inference.endpoint.app import EndpointApp
from inference.endpoint.protocol import ConnectionLimits, protocol_with
from inference.endpoint.settings import Settings
from inference.endpoint.tracing import tracing_from_environment
from inference.endpoint.upstreams import Upstream
from inference.listener import bind
from router_data import InputError, is_loopback, program_parser, run_script
from router_model import Router, add_router_flags, check_threshold, newest_checkpoint, parse_router_model

if TYPE_CHECKING:
    import uvicorn

GRACE_SECONDS = 30  # for the answers under way when it is stopped
KEEP_ALIVE_SECONDS = 75  # clients that keep connections longer than we do would see them break
MODEL_CHOICES = ("inferior", "superior")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags, checked.

    Raises:
        InputError: a flag's value is out of range, or another flag is missing beside it.
    """
    parser = program_parser(__doc__)
    add_router_flags(parser)
    _add_server_flags(parser)
    _add_model_flags(parser)
    _add_log_flags(parser)
    args = parser.parse_args(argv)
    check_threshold(args.threshold)
    if args.max_in_flight < 1 or args.retries < 0 or args.shadow_max_requests < 0:
        raise InputError("--max_in_flight must be positive, --retries and --shadow_max_requests not negative")
    if args.max_connections_per_address is not None and args.max_connections_per_address < 1:
        raise InputError("--max_connections_per_address must be positive")
    if not (args.timeout > 0 and math.isfinite(args.timeout)):
        raise InputError(f"--timeout {args.timeout:g} is not a positive number of seconds")
    if not 0 <= args.shadow_share <= 1:
        raise InputError(f"--shadow_share {args.shadow_share:g} is not between 0 and 1")
    if args.log_prompts and not args.decision_log:
        raise InputError("--log_prompts needs --decision_log FILE")
    if args.shadow_share and not args.log_prompts:
        raise InputError("--shadow_share needs --decision_log FILE and --log_prompts: both answers stand there")
    return args


def _add_server_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("server").add_argument
    add("--host", default="127.0.0.1", help="the address to bind (default: %(default)s)")
    add("--port", type=int, default=8000, help="the port; 0 takes a free one (default: %(default)s)")
    add(
        "--allowed_hosts", nargs="+", default=[], metavar="NAME",
        help="names that the Host header may have; while bound to a loopback address, beside localhost and 127.0.0.1 "
        "(default: no others there, any elsewhere)",
    )  # fmt: skip
    add(
        "--allowed_origins", nargs="+", default=[], metavar="ORIGIN",
        help="web pages whose scripts may ask, such as http://localhost:5173 (default: none)",
    )  # fmt: skip
    add(
        "--max_in_flight", type=int, default=1000, metavar="N",
        help="requests at once; more get a 429 (default: %(default)s)",
    )  # fmt: skip
    add(
        "--max_connections_per_address", type=int, metavar="N",
        help="open connections of one address (default: of a loopback address as many as there may be in all, of "
        "another one half of them)",
    )  # fmt: skip


def _add_model_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("models").add_argument
    add(
        "--sessions", choices=("sticky", "free"), default="sticky",
        help="sticky: a conversation that needed the superior model once stays there; free: each request is decided by "
        "all that the user said so far (default: %(default)s)",
    )  # fmt: skip
    add(
        "--timeout", type=float, default=300, metavar="SECONDS",
        help="wait for an answer's first byte, and between two of its pieces; an answer that is not streamed arrives "
        "whole (default: %(default)s)",
    )  # fmt: skip
    add(
        "--retries", type=int, default=1, metavar="N",
        help="how often a model is asked again where it can't be reached, gives no answer, or answers with 408, 429 or "
        "5xx, before the other is asked (default: %(default)s)",
    )  # fmt: skip
    add(
        "--fall_back_to_inferior", action="store_true",
        help="the inferior model answers where the superior one is down (default: an error)",
    )  # fmt: skip
    add(
        "--other_paths", choices=MODEL_CHOICES,
        help="the model whose server gets the paths that are not routed, such as /v1/embeddings (default: a 404)",
    )  # fmt: skip
    add(
        "--forward_headers", nargs="+", default=[], metavar="NAME",
        help="further headers of the client that go on to the models (default: only those of the content, the SDK, the "
        "API's version and traces)",
    )  # fmt: skip


def _add_log_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("decision log").add_argument
    add("--decision_log", type=Path, metavar="FILE", help="append a row of JSONL for each decision (default: none)")
    add(
        "--log_prompts", action="store_true",
        help="the rows hold the user's turns too, ready to be scored and labelled (default: no prompt is kept)",
    )  # fmt: skip
    add(
        "--shadow_share", type=float, default=0.0, metavar="SHARE",
        help="for this share (0..1) of the router's requests the other model is asked too, after the client has its "
        "answer; both answers stand in the decision log (default: %(default)s)",
    )  # fmt: skip
    add(
        "--shadow_max_requests", type=int, default=1000, metavar="N",
        help="the other model is asked so often at most, until the next start (default: %(default)s)",
    )  # fmt: skip


def settings_from(args: argparse.Namespace) -> Settings:
    """The settings by the flags and the environment.

    Raises:
        InputError: a variable is missing or wrong.
    """
    return Settings(
        inferior=Upstream.from_environment("inferior"),
        superior=Upstream.from_environment("superior"),
        threshold=args.threshold,
        sticky=args.sessions == "sticky",
        max_in_flight=args.max_in_flight,
        timeout=args.timeout,
        retries=args.retries,
        fall_back_to_inferior=args.fall_back_to_inferior,
        other_paths=args.other_paths,
        aliases=aliases_in(os.environ.get("ROUTER_ALIASES", "")),
        forward_headers=frozenset(name.lower() for name in args.forward_headers),
        access=Access(
            os.environ.get("ROUTER_API_KEY", "").strip() or None,
            hosts_for(args.host, args.allowed_hosts),
            frozenset(origin.rstrip("/") for origin in args.allowed_origins),
        ),
        decision_log=args.decision_log,
        log_prompts=args.log_prompts,
        shadow_share=args.shadow_share,
        shadow_max_requests=args.shadow_max_requests,
        tracing=tracing_from_environment(),
    )


def aliases_in(text: str) -> dict[str, str]:
    """The names that ROUTER_ALIASES gives to models: "gpt-4o=router,gpt-4o-mini=inferior".

    Raises:
        InputError: it reads otherwise, or a name means no model.
    """
    aliases = {}
    for pair in filter(None, map(str.strip, text.split(","))):
        name, _, meant = map(str.strip, pair.partition("="))
        if not name or not (meant in MODEL_CHOICES or parse_router_model(meant)[0]):
            raise InputError(f"ROUTER_ALIASES: {pair!r} must read like gpt-4o=router; mend it in .env")
        aliases[name] = meant
    return aliases


def warn_if_open(host: str, settings: Settings) -> None:
    """Warn where anyone may ask."""
    if not is_loopback(host) and not settings.access.api_key:
        warnings.warn("anyone who reaches this endpoint spends your money; set ROUTER_API_KEY", stacklevel=1)


def connection_limits(settings: Settings, per_address: int | None) -> ConnectionLimits:
    """How many connections may be open; the limit of open files is raised where it is lower than they need.

    A request holds two connections, the client's and the upstream's.
    """
    wanted = settings.max_in_flight + 256  # connections that wait for their next request, /health and /metrics
    files = allow_open_files(wanted + settings.max_in_flight + 128)
    return ConnectionLimits(wanted if files is None else max(8, min(wanted, (files - 64) // 2)), per_address)


def allow_open_files(needed: int) -> int | None:
    """Raise this process's limit of open files where it is lower; what it is then, None where there is none."""
    with suppress(ImportError, ValueError, OSError):  # Windows has no such limit
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < needed:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(needed, hard) if hard > 0 else needed, hard))
        return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None


def make_server(app: object, limits: ConnectionLimits, grace: float = GRACE_SECONDS) -> "uvicorn.Server":
    """The uvicorn server of an endpoint; `grace`: seconds for the answers under way when it is stopped."""
    import uvicorn

    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        http=protocol_with(limits),
        access_log=False,
        date_header=False,  # the upstream's passes through
        server_header=False,
        proxy_headers=False,  # nothing depends on what they say
        log_config=None,
        log_level="warning",
        timeout_graceful_shutdown=grace,  # type: ignore[arg-type]
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        ws="none",
    )
    # A cut stream is ended without its last chunk so that the client notices; it has its own log line
    logging.getLogger("uvicorn.error").addFilter(lambda record: "without completing" not in record.getMessage())
    return uvicorn.Server(config)


def main(argv: Sequence[str] | None = None) -> None:
    """Serve the endpoint."""
    # 1. Check what was given before anything slow happens.
    args = parse_args(argv)
    settings = settings_from(args)
    with bind(args.host, args.port, "name another with --port") as listener:
        warn_if_open(args.host, settings)
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
        logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False  # the format has none of them

        # 2. Load the checkpoint, and again at SIGHUP.
        def load_router() -> Router:
            return Router.load(args.model_save_dir or newest_checkpoint(), args.hf_model_name)

        router = load_router()
        app = EndpointApp(router, settings, load_router)
        gc.freeze()  # the libraries' objects stay; to look through them would stop all requests for 0.1 s at a time

        # 3. Serve until Ctrl+C or SIGTERM.
        limits = connection_limits(settings, args.max_connections_per_address)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # runs after uvicorn's own handler has stopped the server
        listener.listen()  # before the address is printed, so that a script can connect as soon as it reads it
        host, port = listener.getsockname()[:2]
        where = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
        print(f"The endpoint is at {where} ({router.model_save_dir}, {router.backend}; Ctrl+C ends it)", flush=True)
        make_server(app, limits).run(sockets=[listener])


if __name__ == "__main__":
    run_script(main)
