"""Open a page on a fine-tuned router: type a prompt, see which model it needs, why, and what a threshold would save.

Reads   the checkpoint's folder, and what it names: its validation scores (what the threshold slider shows) and its
        labelled prompts (the nearest are shown). A bare `save_pretrained` folder works, with less to show.
Writes  final-datasets/router_dataset_labelled-human-feedback.jsonl, a row for each press of Right or Wrong, which
        finetuning_model/finetune_bert.py reads with the other labelled files. Only while the page is on localhost.

Example:
    python3 inference/run_gradio_model.py \\
        --model_save_dir ./models/bert-base-uncased-router-finetuning-20240722T133228-save \\
        --hf_model_name bert-base-uncased

With no flags it opens the newest checkpoint in ./models. The page asks for a login where ROUTER_PAGE_AUTH=user:password
stands in the environment or in .env.
"""

import argparse
import os
import socket
import sys
import threading
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dotenv import load_dotenv

from inference.page import html_parts
from inference.page.answers import EXPLAIN_HINT, FILE_HINT, Page, Prices
from router_data import InputError, run_script
from router_model import Router, newest_checkpoint, read_config

FEEDBACK_FILE = Path("final-datasets/router_dataset_labelled-human-feedback.jsonl")
LOCAL_NAMES = ("127.0.0.1", "localhost", "::1")
LARGEST_FILE = "50mb"
PEOPLE_AT_ONCE = 20
INDEX_AFTER = 3  # seconds that the page is served: the first visit comes first
EXAMPLE_PRICES = Prices(inferior=0.5, superior=10, tokens=800)
EXAMPLES = [
    "What is the capital of France?",
    "Rewrite this to sound friendlier: send me the report today.",
    "A train leaves at 9:40 and arrives at 13:05. How long is the journey?",
    "Prove that every continuous function on a compact metric space is uniformly continuous, then give a "
    "counterexample without compactness.",
    "Our Postgres deadlocks only under load: two workers upsert overlapping batches in different orders. Explain the "
    "cause and rewrite the transaction so that it cannot happen.",
]
FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")  # nothing to fetch before the first paint


def import_gradio():
    """Gradio's module; its import takes seconds."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # else gradio asks the network, from its import on
    import gradio

    return gradio


def build(page: Page):
    """The gradio Blocks of a page: what stands where, and which event asks `page` what."""
    gr = import_gradio()

    def on_prompt(text, asked, threshold, *prices):
        decision = page.decide(text)
        card = page.card(text, decision, threshold, Prices.of(prices))
        reasons = (gr.skip(), gr.skip()) if asked["text"] == text else (hint, "")  # those of another text must go
        return card, (text, decision), "", *reasons

    def on_explain(text, asked, *given):
        asked["text"] = text  # first of all: a decision on the same text that is still under way leaves the reasons be
        return *on_prompt(text, asked, *given)[:3], *page.why(text)

    def on_threshold(threshold, decided, scored, *prices):
        prices = Prices.of(prices)
        card = page.card(*decided, threshold, prices)
        summary = page.file_summary(scored, threshold, prices) if scored else gr.skip()
        return card, page.tradeoff(threshold, prices), summary

    def on_file(path, threshold, *prices, progress=gr.Progress()):  # noqa: B008 (gradio's way of asking for it)
        if path is None:
            return None, html_parts.message(FILE_HINT), gr.update(visible=False)
        try:
            scored = page.score_file(Path(path), progress)
        except InputError as error:
            return None, html_parts.message(str(error), "error"), gr.update(visible=False)
        return scored, page.file_summary(scored, threshold, Prices.of(prices)), gr.update(visible=True)

    def on_feedback(right, decided, threshold):
        text, decision = decided
        if decision is None:
            return html_parts.message("Type a prompt first.")
        try:
            return html_parts.message(page.give_feedback(text, decision, threshold, right))
        except (InputError, OSError) as error:
            return html_parts.message(str(error), "error")

    hint = html_parts.message(EXPLAIN_HINT)
    with gr.Blocks(title="LLM router", analytics_enabled=False, delete_cache=(3600, 86400)) as blocks:
        decided, asked, scored = gr.State(("", None)), gr.State({"text": None}), gr.State(None)
        gr.HTML(page.header())
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=320), gr.Tabs():
                with gr.Tab("One prompt"):
                    prompt = gr.Textbox(
                        label="Prompt",
                        lines=4,
                        max_lines=12,
                        autofocus=True,
                        placeholder="What a user would ask",
                        elem_id="prompt",
                    )
                    card = gr.HTML(html_parts.empty_card(), elem_id="decision", js_on_load=announce("status"))
                    with gr.Row(elem_id="actions"):
                        explain = gr.Button("Explain", variant="primary", elem_id="explain", size="md", min_width=90)
                        right = gr.Button(
                            "Right route", elem_id="right", size="md", min_width=90, visible=page.takes_feedback
                        )
                        wrong = gr.Button(
                            "Wrong route", elem_id="wrong", size="md", min_width=90, visible=page.takes_feedback
                        )
                    noted = gr.HTML(elem_id="noted", js_on_load=announce("status"))
                    words = gr.HTML(hint, elem_id="words")
                    near = gr.HTML(elem_id="near")
                    examples = gr.Dataset(
                        components=[prompt],
                        samples=[[text] for text in EXAMPLES],
                        label="Examples",
                        elem_id="examples",
                        type="values",
                    )
                with gr.Tab("A file"):
                    file = gr.File(
                        label="Prompts: JSONL, CSV or text",
                        file_types=[".jsonl", ".csv", ".txt"],
                        elem_id="file",
                    )
                    summary = gr.HTML(html_parts.message(FILE_HINT), elem_id="summary", js_on_load=announce("status"))
                    download = gr.Button("Download the scored file", visible=False, elem_id="download")
                    link = gr.DownloadButton("", visible="hidden", elem_id="link")
            with gr.Column(scale=2, min_width=320, elem_id="side"):
                threshold = gr.Slider(
                    0, 1, page.threshold, step=0.001, label="Threshold: superior from this on", elem_id="threshold"
                )
                presets = page.presets()
                preset = gr.Dropdown(list(presets), label="Thresholds that meet a target", elem_id="presets")
                figures = gr.HTML(page.tradeoff(page.threshold, EXAMPLE_PRICES), elem_id="figures")
                with gr.Accordion("Prices (an example: put in your own)", open=False):
                    prices = [
                        gr.Number(EXAMPLE_PRICES.inferior, label="Inferior model, $ per million tokens", minimum=0),
                        gr.Number(EXAMPLE_PRICES.superior, label="Superior model, $ per million tokens", minimum=0),
                        gr.Number(EXAMPLE_PRICES.tokens, label="Tokens of a prompt with its answer", minimum=0),
                    ]

        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        ask, answer = [prompt, asked, threshold, *prices], [card, decided, noted, words, near]
        # Not `input`: gradio fires that for keys, but not where text is pasted or deleted.
        prompt.change(on_prompt, ask, answer, trigger_mode="always_last", **quiet)
        gr.on([explain.click, prompt.submit], on_explain, ask, answer, show_progress_on=words, api_name="explain")
        examples.click(lambda row: row[0], examples, prompt, **quiet).then(js=click("#explain", after=100))
        for button, said in ((right, True), (wrong, False)):
            button.click(
                lambda *given, said=said: on_feedback(said, *given),
                [decided, threshold],
                noted,
                concurrency_limit=1,
                **quiet,
            )
        gr.on(
            [threshold.change, *(price.change for price in prices)],
            on_threshold,
            [threshold, decided, scored, *prices],
            [card, figures, summary],
            trigger_mode="always_last",
            **quiet,
        )
        preset.input(presets.get, preset, threshold, **quiet)
        threshold.input(lambda: None, None, preset, **quiet)
        file.change(
            on_file,
            [file, threshold, *prices],
            [scored, summary, download],
            concurrency_limit=1,
            show_progress_on=summary,
            api_visibility="private",
        )
        download.click(lambda *given: str(page.write_scored(*given)), [scored, threshold], link, **quiet).then(
            js=click("#link", after=0)
        )
    return blocks.queue(default_concurrency_limit=PEOPLE_AT_ONCE)


def announce(role: str) -> str:
    """Script that makes a component's changes known to screen readers."""
    return f"element.setAttribute('role', '{role}')"


def click(selector: str, after: int) -> str:
    """Script that presses a button some milliseconds later, when what the last event changed has been dealt with."""
    return f"() => {{ setTimeout(() => document.querySelector('{selector}').click(), {after}) }}"


def launch(page: Page, server_name: str, server_port: int | None, share: bool, auth: tuple[str, str] | None):
    """Serve the page without blocking; returns the Blocks, the local URL and the public one.

    Raises:
        InputError: no port is free.
    """
    gr, blocks = import_gradio(), build(page)
    theme = gr.themes.Default(primary_hue="teal", secondary_hue="teal", neutral_hue="slate", font=FONT)
    theme.set(slider_color="var(--inferior)")
    for name, teal in (("fill", "#0f766e"), ("fill_hover", "#115e59")):  # dark enough for white letters
        theme.set(**{f"button_primary_background_{name}{mode}": teal for mode in ("", "_dark")})
    try:
        _, local, public = blocks.launch(
            server_name=server_name,
            server_port=server_port,
            share=share,
            auth=auth,
            quiet=True,
            prevent_thread_lock=True,
            footer_links=[],
            max_file_size=LARGEST_FILE,
            theme=theme,
            css_paths=Path(__file__).parent / "page" / "page.css",
        )
    except OSError as error:
        raise InputError(f"the page can't be served on {server_name}: {error}; name a free --server_port") from error
    return blocks, local, public


def check_port(server_name: str, port: int) -> None:
    """Fail before anything slow is loaded."""
    family = socket.AF_INET6 if ":" in server_name else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((server_name, port))
        except OSError as error:
            raise InputError(
                f"port {port} of {server_name} can't be used ({error.strerror}); name another with --server_port, "
                "or leave it out and a free one is found"
            ) from error


def login_from_environment() -> tuple[str, str] | None:
    """User and password from ROUTER_PAGE_AUTH; None where it is not set."""
    user, colon, password = os.environ.get("ROUTER_PAGE_AUTH", "").partition(":")
    if not user and not colon:
        return None
    if not (user and password):
        raise InputError("ROUTER_PAGE_AUTH must read user:password; mend or unset it")
    return user, password


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    summary, _, rest = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model_save_dir", type=Path, help="the checkpoint's folder (default: the newest in ./models)")
    parser.add_argument(
        "--hf_model_name",
        help="where the tokenizer comes from if the folder has none: a hub id or a local folder; otherwise it is only "
        "compared with the checkpoint's base (default: none)",
    )
    parser.add_argument(
        "--threshold", type=float, help="superior from this probability on, 0 to 1 (default: the checkpoint's)"
    )
    parser.add_argument("--server_name", default="127.0.0.1", help="the address to bind (default: %(default)s)")
    parser.add_argument("--server_port", type=int, help="the port (default: the first free one from 7860 on)")
    parser.add_argument(
        "--share", action="store_true", help="also a public link through gradio's servers (default: no)"
    )
    parser.add_argument(
        "--feedback",
        action=argparse.BooleanOptionalAction,
        help="the buttons Right and Wrong, which write labelled rows (default: only while the page is on localhost)",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    # 1. Check what was given before anything slow happens.
    args = parse_args(argv)
    load_dotenv()
    auth = login_from_environment()
    if args.threshold is not None and not 0 <= args.threshold <= 1:
        raise InputError(f"--threshold {args.threshold} is not between 0 and 1")
    if args.server_port is not None:
        check_port(args.server_name, args.server_port)
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    is_local = args.server_name in LOCAL_NAMES and not args.share
    if not is_local and auth is None:
        warnings.warn("anyone who reaches this page can use it; set ROUTER_PAGE_AUTH=user:password", stacklevel=1)

    folder = args.model_save_dir or newest_checkpoint()
    read_config(folder)

    # 2. Load the checkpoint.
    import_gradio()
    router = Router.load(folder, args.hf_model_name)
    takes_feedback = is_local if args.feedback is None else args.feedback
    page = Page(router, args.threshold, FEEDBACK_FILE if takes_feedback else None)

    # 3. Serve the page until Ctrl+C.
    blocks, local, public = launch(page, args.server_name, args.server_port, args.share, auth)
    index = threading.Timer(INDEX_AFTER, page.labelled.index)  # the first to ask for reasons need not wait for it
    index.daemon = True
    index.start()
    where = f"{local} and {public}" if public else local
    print(f"The page is at {where} ({router.model_save_dir}, {router.backend}; Ctrl+C ends it)", flush=True)
    blocks.block_thread()


if __name__ == "__main__":
    run_script(main)
