"""Open a page on a fine-tuned router: type a prompt, see which model it needs, why, and what a threshold would save.

Reads   the checkpoint's folder (a bare `save_pretrained` folder works, with less to show), and the labelled prompts
        that its run.json names, of which the nearest are shown; the environment or .env: ROUTER_PAGE_AUTH, and the two
        models as serve_openai_api.py reads them, for "Ask both models"
Writes  final-datasets/router_dataset_labelled-human-feedback.jsonl, a row for each press of Right or Wrong, which
        finetune_bert.py reads with the other labelled files; final-datasets/router_dataset_outcomes-human-votes.jsonl,
        a row for each vote on two answers, which evaluate_router.py reads; labelled_embeddings.npz in the checkpoint

Example:
    python3 inference/run_gradio_model.py \\
        --model_save_dir ./models/bert-base-uncased-router-finetuning-20240722T133228-save \\
        --hf_model_name bert-base-uncased

With no flags it opens the newest checkpoint in ./models. The page asks for a login where ROUTER_PAGE_AUTH=user:password
stands in the environment or in .env; set it before you bind the page beyond this machine.
"""

import argparse
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from inference.listener import bind
from inference.page.guard import LOOPBACK_NAMES, Guard
from router_data import DATASETS_DIR, INFERIOR, TIER_COLORS, InputError, is_loopback, program_parser, run_script
from router_model import Router, add_router_flags, check_threshold, newest_checkpoint, read_config

if TYPE_CHECKING:
    import gradio

    from inference.page.layout import Services

FEEDBACK_FILE = DATASETS_DIR / "router_dataset_labelled-human-feedback.jsonl"
VOTES_FILE = DATASETS_DIR / "router_dataset_outcomes-human-votes.jsonl"
MAX_FILE_SIZE = "50mb"
INDEX_DELAY_SECONDS = 3  # that the page is served before the labelled prompts are read: the first visit comes first
INDEX_NICENESS = 10
FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")  # nothing to fetch before the first paint
PAGE_DIR = Path(__file__).parent / "page"
MAX_SESSIONS = 1000  # tabs whose prompt and file are remembered, the last ones used


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags, checked without loading anything large."""
    parser = program_parser(__doc__)
    add_router_flags(parser)
    add = parser.add_argument_group("page").add_argument
    add("--server_name", default="127.0.0.1", metavar="ADDRESS", help="the address to bind (default: %(default)s)")
    add("--server_port", type=int, metavar="PORT", help="the port (default: the first free one from 7860 on)")
    add("--share", action="store_true", help="also a public link through gradio's servers (default: no)")
    add(
        "--allowed_hosts", nargs="+", default=[], metavar="NAME",
        help="further host names that the page answers to, for a reverse proxy in front of it (default: none)",
    )  # fmt: skip
    add(
        "--feedback", action=argparse.BooleanOptionalAction,
        help="the buttons Right and Wrong, which write labelled rows (default: for requests that come straight from "
        "this machine, while the page is on localhost and has no login)",
    )  # fmt: skip
    args = parser.parse_args(argv)
    check_threshold(args.threshold)
    if args.server_port is not None:
        remedy = "name another with --server_port, or leave it out and a free one is found"
        bind(args.server_name, args.server_port, remedy).close()
    return args


def login_from_environment() -> tuple[str, str] | None:
    """User and password from ROUTER_PAGE_AUTH; None where it is not set.

    Raises:
        InputError: it is malformed; its value is not repeated.
    """
    user, colon, password = os.environ.get("ROUTER_PAGE_AUTH", "").partition(":")
    if not user and not colon:
        return None
    if not (user and password):
        raise InputError("ROUTER_PAGE_AUTH must read user:password; mend or unset it")
    return user, password


def allowed_hosts(args: argparse.Namespace) -> list[str] | None:
    """The host names that are answered; None for any: beyond this machine, where no name was given."""
    if args.share or not (is_loopback(args.server_name) or args.allowed_hosts):
        return None
    return [*LOOPBACK_NAMES, args.server_name, *args.allowed_hosts]


def launch(
    services: "Services",
    server_name: str = "127.0.0.1",
    server_port: int | None = None,
    share: bool = False,
    auth: tuple[str, str] | None = None,
    hosts: Sequence[str] | None = LOOPBACK_NAMES,
) -> tuple["gradio.Blocks", str, str | None]:
    """Serve the page without blocking.

    Returns:
        The Blocks, the local URL and the public one.

    Raises:
        InputError: no port is free.
    """
    from starlette.middleware import Middleware

    from inference.page.layout import build, gr

    blocks = build(services)
    theme = gr.themes.Default(primary_hue="teal", secondary_hue="teal", neutral_hue="slate", font=FONT)
    theme.set(slider_color="var(--inferior)")
    theme.set(body_text_color_subdued="*neutral_500", input_placeholder_color="*neutral_500")  # 4.5:1 on white
    for name, teal in (("fill", TIER_COLORS[INFERIOR]), ("fill_hover", "#115e59")):  # dark enough for white letters
        theme.set(**{f"button_primary_background_{name}{mode}": teal for mode in ("", "_dark")})
    try:
        _, local, public = blocks.launch(
            server_name=server_name,
            server_port=server_port,
            share=share,
            auth=auth,
            quiet=True,
            prevent_thread_lock=True,
            footer_links=["api"],
            run_history=False,
            max_file_size=MAX_FILE_SIZE,
            state_session_capacity=MAX_SESSIONS,
            theme=theme,
            css_paths=PAGE_DIR / "page.css",
            head=f"<script>{(PAGE_DIR / 'page.js').read_text(encoding='utf-8')}</script>",
            app_kwargs={"middleware": [Middleware(Guard, hosts=hosts)], "openapi_url": None},
        )
    except OSError as error:
        raise InputError(f"the page can't be served on {server_name}: {error}; name a free --server_port") from error
    return blocks, local, public


@contextmanager
def folder_for_uploads() -> Iterator[None]:
    """Uploaded files lie in a folder of this run's own, and go with it; gradio's default could be another user's."""
    if os.environ.get("GRADIO_TEMP_DIR"):
        yield
        return
    with tempfile.TemporaryDirectory(prefix="router-page-", ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            yield
        finally:
            del os.environ["GRADIO_TEMP_DIR"]


def index_later(services: "Services") -> None:
    """Make the labelled prompts searchable, in the background and after the first visitor has the page."""

    def index() -> None:
        if hasattr(os, "setpriority"):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), INDEX_NICENESS)
        services.checkpoints.first.labelled.index()

    timer = threading.Timer(INDEX_DELAY_SECONDS, index)
    timer.daemon = True
    timer.start()


def main(argv: Sequence[str] | None = None) -> None:
    """Load the checkpoint and serve the page until Ctrl+C."""
    # 1. Check what was given before anything slow happens.
    args = parse_args(argv)
    auth = login_from_environment()
    is_local = is_loopback(args.server_name) and not args.share
    if not is_local and auth is None:
        warnings.warn("anyone who reaches this page can use it; set ROUTER_PAGE_AUTH=user:password", stacklevel=1)
    folder = args.model_save_dir or newest_checkpoint()
    read_config(folder)

    # 2. Load the checkpoint.
    from inference.page.answers import Page
    from inference.page.both_models import BothModels
    from inference.page.checkpoints import Checkpoints
    from inference.page.layout import Services

    both_models = BothModels.from_environment(VOTES_FILE) if is_local or auth else None
    page = Page(Router.load(folder, args.hf_model_name), args.threshold, FEEDBACK_FILE)
    feedback = False if args.feedback is None and auth else args.feedback
    services = Services(Checkpoints(page, args.hf_model_name), both_models, is_local, feedback)

    # 3. Serve the page until Ctrl+C.
    with folder_for_uploads():
        blocks, local, public = launch(
            services, args.server_name, args.server_port, args.share, auth, allowed_hosts(args)
        )  # fmt: skip
        index_later(services)
        where = f"{local} and {public}" if public else local
        print(f"The page is at {where} ({folder}, {page.router.backend}; Ctrl+C ends it)", flush=True)
        blocks.block_thread()


if __name__ == "__main__":
    run_script(main)
