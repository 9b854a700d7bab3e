"""The page in gradio: what stands where, and which event asks whom."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before the import, from which on gradio would ask the network

import gradio as gr

from inference.page import checkpoints, files, html_parts
from inference.page.both_models import VOTES, BothModels
from inference.page.checkpoints import Checkpoints
from inference.page.guard import is_local_request
from router_data import InputError, Prices

MAX_CONCURRENT_USERS = 20
MEMORY_HOURS = 8  # that a scored file is kept in memory
FORGOTTEN = f"This file was scored more than {MEMORY_HOURS} hours ago and is no longer there; choose it again."
EXAMPLE_PRICES = Prices(inferior=0.5, superior=10, tokens_per_prompt=800)
EXAMPLES = [
    "What is the capital of France?",
    "Rewrite this to sound friendlier: send me the report today.",
    "A train leaves at 9:40 and arrives at 13:05. How long is the journey?",
    "Prove that every continuous function on a compact metric space is uniformly continuous, then give a "
    "counterexample without compactness.",
    "Our Postgres deadlocks only under load: two workers upsert overlapping batches in different orders. Explain the "
    "cause and rewrite the transaction so that it cannot happen.",
]
EXPLAIN_HINT = "The decision follows as you type. Ctrl+Enter, or the button, explains it."
CUSTOM = "custom"
# Of page.css, which has them for light and dark; the router's curve is no tier's, so it is drawn in ink
ROUTE_COLORS = {"inferior": "var(--inferior)", "superior": "var(--superior)"}
CURVE_COLORS = {"this router": "var(--body-text-color)", "at random": "var(--muted)", "threshold": "var(--focus)"}
# The colours of `html_parts.highlighted`; the component draws them pale, with dark letters
WORD_COLORS = {
    "strongly inferior": "#2fa89c", "clearly inferior": "#7fcac3", "a little inferior": "#cfeae7",
    "strongly superior": "#e08a3c", "clearly superior": "#efb98a", "a little superior": "#f8e2cf",
}  # fmt: skip
KEEP, STOP_COMPARING = "Compare", "Stop comparing"
RIGHT, WRONG = "Right route", "Wrong route"
CODE_CLIENTS = ("curl", "Python", "OpenAI client")
ANNOUNCE = "element.setAttribute('role', 'status')"  # makes a component's changes known to screen readers
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


@dataclass(frozen=True)
class Services:
    """What the page's events call.

    Attributes:
        checkpoints: the checkpoints to choose from.
        both_models: the two models behind "Ask both models"; None where they are not to be asked.
        is_local: whether the page is bound to this machine alone.
        feedback: whether Right and Wrong write rows; None: for requests that come straight from this machine.
    """

    checkpoints: Checkpoints
    both_models: BothModels | None = None
    is_local: bool = True
    feedback: bool | None = None

    @property
    def may_take_feedback(self) -> bool:
        """Whether anybody's feedback is taken."""
        return self.is_local if self.feedback is None else self.feedback

    def is_local_user(self, request: gr.Request) -> bool:
        """Whether a request comes from the user of this machine."""
        return self.is_local and is_local_request(request.headers, request.client and request.client.host)

    def may_ask_models(self, request: gr.Request) -> bool:
        """Whether this visitor may spend money on both models and vote: after a login, or from this machine."""
        return bool(request.username) or self.is_local_user(request)

    def takes_feedback(self, request: gr.Request) -> bool:
        """Whether this visitor's feedback is taken."""
        return self.is_local_user(request) if self.feedback is None else self.feedback


@dataclass
class PromptTab:
    """The components of the tab "One prompt"."""

    prompt: gr.Textbox
    card: gr.HTML
    kept_card: gr.HTML
    explain: gr.Button
    keep: gr.Button
    right: gr.Button
    wrong: gr.Button
    noted: gr.HTML
    words: gr.HighlightedText
    pushes: gr.HTML
    near: gr.HTML
    examples: list[gr.Button]
    code: list[gr.Textbox]


@dataclass
class BothSection:
    """The components that show both models' answers."""

    ask: gr.Button
    answers: list[gr.Textbox]
    facts: list[gr.HTML]
    votes: list[gr.Button]
    noted: gr.HTML
    results: gr.Column


@dataclass
class FileSection:
    """The components of the tab "A file"."""

    file: gr.File
    column: gr.Dropdown
    status: gr.HTML
    cancel: gr.Button
    results: gr.Column
    summary: gr.HTML
    histogram: gr.BarPlot
    curve: gr.LinePlot
    order: gr.Dropdown
    table: gr.Dataframe
    download: gr.Button
    link: gr.DownloadButton


@dataclass
class HistoryTab:
    """The components of the tab "History"."""

    table: gr.Dataframe
    export: gr.Button
    clear: gr.Button


@dataclass
class SidePanel:
    """The threshold, what it brings, the prices and the checkpoint."""

    checkpoint: gr.Dropdown
    threshold: gr.Slider
    preset: gr.Dropdown
    figures: gr.HTML
    curve: gr.LinePlot
    prices: list[gr.Number]
    about: gr.HTML
    more: gr.Accordion
    card: gr.Markdown
    plots: gr.HTML


@dataclass
class State:
    """What is kept for a tab of the browser.

    Attributes:
        decided: the text that was decided on, and the decision.
        explained: under "text", the text whose explanation is there or under way.
        kept: text and decision that others are compared with.
        scored: the scored file.
    """

    decided: gr.State
    explained: gr.State
    kept: gr.State
    scored: gr.State


class Blocks(gr.Blocks):
    """Blocks whose idle tabs hold no connection to the server.

    Gradio keeps a stream open for each tab, by which it knows when to forget the tab's state. A browser opens six
    connections to a host, so the seventh tab would wait for ever. Nothing here needs the stream: work ends with the
    stream of its own results, and what is large in the state has a time to live.
    """

    def get_config_file(self) -> Any:
        """What the browser is told of the page."""
        return {**super().get_config_file(), "connect_heartbeat": False}


def build(services: Services) -> gr.Blocks:
    """The gradio Blocks of the page."""
    with Blocks(title="LLM router", analytics_enabled=False, delete_cache=(3600, 86400)) as blocks:
        gr.HTML(html_parts.HEADER)
        gr.HTML("", elem_id="connection", js_on_load="element.setAttribute('role', 'alert')")
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=320, elem_id="main"), gr.Tabs():
                with gr.Tab("One prompt"):
                    one_prompt = one_prompt_tab(services)
                    both = both_section(services.both_models) if services.both_models else None
                with gr.Tab("A file"):
                    file = file_tab()
                with gr.Tab("History"):
                    history = history_tab()
            with gr.Column(scale=2, min_width=320, elem_id="side"):
                side = side_panel(services.checkpoints)
        connect(blocks, services, one_prompt, both, file, history, side)
    return blocks.queue(default_concurrency_limit=MAX_CONCURRENT_USERS)


# --- what stands where -----------------------------------------------------------------------------------------------


def one_prompt_tab(services: Services) -> PromptTab:
    """The prompt, the decision, and why."""
    prompt = gr.Textbox(
        label="Prompt", lines=4, max_lines=12, autofocus=True, placeholder="What a user would ask", elem_id="prompt"
    )
    kept_card = gr.HTML(visible=False, elem_id="kept")
    card = gr.HTML(html_parts.EMPTY_CARD, elem_id="decision", js_on_load=ANNOUNCE)
    with gr.Row(elem_id="actions"):
        button: dict[str, Any] = {"size": "md", "min_width": 90, "interactive": False}
        explain = gr.Button("Explain", variant="primary", elem_id="explain", **button)
        keep = gr.Button(KEEP, elem_id="keep", **button)
        right = gr.Button(RIGHT, elem_id="right", visible=services.may_take_feedback, **button)
        wrong = gr.Button(WRONG, elem_id="wrong", visible=services.may_take_feedback, **button)
    noted = gr.HTML(elem_id="noted", js_on_load=ANNOUNCE)
    words = gr.HighlightedText(
        label="Why: what each word adds", color_map=WORD_COLORS, show_inline_category=False, visible=False,
        elem_id="words",
    )  # fmt: skip
    pushes = gr.HTML(html_parts.message(EXPLAIN_HINT), elem_id="pushes")
    near = gr.HTML(elem_id="near")
    gr.HTML('<p class="title">Examples</p>')
    with gr.Column(elem_id="examples"):
        examples = [gr.Button(text, size="sm", elem_classes="example") for text in EXAMPLES]
    with gr.Accordion("Use it from code", open=False, elem_id="code"):
        code = []
        for name in CODE_CLIENTS:
            with gr.Tab(name):
                code.append(gr.Textbox(label=name, lines=5, max_lines=14, interactive=False, buttons=["copy"]))
    return PromptTab(
        prompt, card, kept_card, explain, keep, right, wrong, noted, words, pushes, near, examples, code
    )  # fmt: skip


def both_section(models: BothModels) -> BothSection:
    """Both models' answers side by side, and the vote."""
    ask = gr.Button("Ask both models", elem_id="ask_both", size="md", interactive=False)
    with gr.Column(visible=False, elem_id="both") as results:
        answers, facts = [], []
        with gr.Row():
            for name, upstream in zip(("Inferior", "Superior"), models.upstreams, strict=True):
                with gr.Column(min_width=280):
                    box = gr.Textbox(label=f"{name}: {upstream.model}", lines=8, max_lines=24, buttons=["copy"])
                    answers.append(box)
                    facts.append(gr.HTML())
        with gr.Row():
            votes = [gr.Button(vote.capitalize(), size="md", min_width=140) for vote in VOTES]
        noted = gr.HTML(js_on_load=ANNOUNCE, elem_id="voted")
    return BothSection(ask, answers, facts, votes, noted, results)


def file_tab() -> FileSection:
    """A file, how far its scoring is, and what came out."""
    file = gr.File(label="A file of prompts", file_types=files.ACCEPTED_SUFFIXES, elem_id="file")
    column = gr.Dropdown([], label="Column with the prompts", visible=False, elem_id="column", interactive=True)
    status = gr.HTML(html_parts.message(files.HINT), elem_id="status", js_on_load=ANNOUNCE)
    cancel = gr.Button("Stop", size="sm", visible=False, elem_id="cancel")
    with gr.Column(visible=False, elem_id="results") as results:
        summary = gr.HTML(elem_id="summary")
        histogram = gr.BarPlot(
            x="score", y="prompts", color="route", x_title="Superior probability, %", y_title="Prompts", height=240,
            x_lim=[0, 100], color_map=ROUTE_COLORS, color_title=" ", elem_id="histogram", buttons=[],
        )  # fmt: skip
        curve = gr.LinePlot(
            x="threshold", y="share", x_title="Threshold, %", y_title="To the superior model, %", height=220,
            x_lim=[0, 100], y_lim=[0, 100], tooltip=["cost"], elem_id="file_curve", buttons=[],
            color="route", color_map=ROUTE_COLORS, colors_in_legend=[],
        )  # fmt: skip
        orders = list(files.ORDERS)
        order = gr.Dropdown(
            orders, value=orders[0], label="Order", elem_id="order", interactive=True, filterable=False
        )  # fmt: skip
        table = gr.Dataframe(
            headers=files.TABLE_COLUMNS, label=f"Scored rows, {files.MAX_TABLE_ROWS} at most", interactive=False,
            wrap=True, column_widths=["15%", "39%", "23%", "23%"], max_height=420, elem_id="rows", buttons=[],
        )  # fmt: skip
        download = gr.Button("Download the scored file", variant="primary", elem_id="download")
    link = gr.DownloadButton("Download", visible="hidden", elem_id="link")
    return FileSection(file, column, status, cancel, results, summary, histogram, curve, order, table, download, link)


def history_tab() -> HistoryTab:
    """The prompts that were tried in this browser."""
    gr.HTML(html_parts.message("The prompts tried in this browser, which keeps them. Click one to try it again."))
    table = gr.Dataframe(
        headers=["Prompt", "Superior", "Route", "Time"],  # as in page.js, which fills it
        label="Prompts tried", interactive=False, wrap=True, max_height=520,
        column_widths=["36%", "21%", "25%", "18%"], elem_id="history", buttons=[], max_chars=200,
    )  # fmt: skip
    with gr.Row():
        export = gr.Button("Export as JSONL", size="md", elem_id="export")
        clear = gr.Button("Clear", size="md", elem_id="clear_history")
    return HistoryTab(table, export, clear)


def side_panel(offered: Checkpoints) -> SidePanel:
    """The threshold and what it brings; the prices; the model."""
    page = offered.first
    names = offered.names
    checkpoint = gr.Dropdown(
        names, value=page.name, label="Checkpoint", visible=len(names) > 1, elem_id="checkpoint", interactive=True
    )
    threshold = gr.Slider(
        0, 1, page.threshold, step=0.001, label="Threshold: superior from here on", elem_id="threshold"
    )
    threshold.preprocess = held_between_0_and_1  # type: ignore[method-assign]
    preset = gr.Dropdown(
        [*page.presets(), CUSTOM], value=page.preset_of(page.threshold), label="Thresholds that meet a target",
        elem_id="presets", interactive=True,
    )  # fmt: skip
    figures = gr.HTML(page.figures(page.threshold, EXAMPLE_PRICES), elem_id="figures")
    curve = gr.LinePlot(
        page.curve(page.threshold), x="share", y="quality", color="line", height=250,
        x_title="Sent to the superior model", y_title="Quality kept", x_axis_format=".0%", y_axis_format=".0%",
        x_lim=[0, 1], color_map=CURVE_COLORS, color_title=" ", visible=page.tradeoff is not None,
        elem_id="tradeoff", buttons=[],
    )  # fmt: skip
    with gr.Accordion("Prices (an example: put in your own)", open=False):
        prices = [
            gr.Number(EXAMPLE_PRICES.inferior, label="Inferior model, $ per million tokens"),
            gr.Number(EXAMPLE_PRICES.superior, label="Superior model, $ per million tokens"),
            gr.Number(EXAMPLE_PRICES.tokens_per_prompt, label="Tokens of a prompt with its answer"),
        ]
    with gr.Accordion("About this model", open=False, elem_id="about"):
        about = gr.HTML(checkpoints.about(page))
        with gr.Accordion("Model card and plots", open=False, elem_id="card_and_plots") as more:
            plots = gr.HTML(elem_id="plots")
            card = gr.Markdown(elem_id="model_card")
    return SidePanel(checkpoint, threshold, preset, figures, curve, prices, about, more, card, plots)


def held_between_0_and_1(payload: float | None) -> float:
    """What the slider passes on: a number typed beyond its ends counts as the nearer end; gradio raises an error."""
    return min(max(float(payload or 0), 0.0), 1.0)


# --- which event asks whom -------------------------------------------------------------------------------------------


def connect(
    blocks: gr.Blocks,
    services: Services,
    one_prompt: PromptTab,
    both: BothSection | None,
    file: FileSection,
    history: HistoryTab,
    side: SidePanel,
) -> None:
    """Tie every event to what answers it."""
    scored = gr.State(None, time_to_live=MEMORY_HOURS * 3600)
    state = State(gr.State(("", None)), gr.State({"text": None}), gr.State(None), scored)
    connect_decision(services, one_prompt, history, side, state)
    connect_feedback(services, one_prompt, side, state)
    connect_compare(services, one_prompt, side, state)
    connect_threshold(services, one_prompt, file, side, state)
    connect_file(services, file, side, scored)
    connect_download(services, file, side, scored)
    connect_history(history, one_prompt.prompt)
    if both and services.both_models:
        connect_both(services, services.both_models, both, one_prompt.prompt, side)
    connect_checkpoint(services, one_prompt, file, side, state)
    buttons = [one_prompt.explain, one_prompt.keep, one_prompt.right, one_prompt.wrong, *([both.ask] if both else [])]
    one_prompt.prompt.change(
        None, one_prompt.prompt, buttons, js=f"(text) => routerPage.enable(text, {len(buttons)})", **QUIET
    )
    blocks.load(None, None, [one_prompt.prompt, history.table], js="() => routerPage.restore()", **QUIET)
    gr.api(services.checkpoints.first.predict, api_name="predict", queue=False)


def connect_decision(services: Services, tab: PromptTab, history: HistoryTab, side: SidePanel, state: State) -> None:
    """Decide as the prompt changes; explain on demand."""
    hint = html_parts.message(EXPLAIN_HINT)

    def on_prompt(text: str, asked: dict, kept: tuple | None, checkpoint: str, threshold: float, *prices: float):
        page = services.checkpoints.get(checkpoint)
        decision = page.decide(text)
        card = page.card(text, decision, threshold, prices_of(prices), kept)
        is_explained = asked["text"] == text  # then an explanation is there or under way, and must stay
        reasons = (gr.skip(),) * 3 if is_explained else (gr.update(value=None, visible=False), hint, "")
        return card, (text, decision), "", *reasons

    def on_explain(request: gr.Request, text: str, asked: dict, kept: tuple | None, checkpoint: str, *inputs: float):
        asked["text"] = text  # set first: a decision on the same text that is still running must not clear the reasons
        decision = on_prompt(text, asked, kept, checkpoint, *inputs)[:3]
        if not text.strip():
            return *decision, gr.update(value=None, visible=False), hint, ""
        page = services.checkpoints.get(checkpoint)
        words, pushes = page.words(text)
        near = page.near(text, services.is_local_user(request))
        return *decision, gr.update(value=words, visible=True), pushes, near

    inputs = [tab.prompt, state.explained, state.kept, side.checkpoint, side.threshold, *side.prices]
    outputs = [tab.card, state.decided, tab.noted, tab.words, tab.pushes, tab.near]
    # Not `input`: gradio fires that for keys, but not where text is pasted or deleted.
    tab.prompt.change(on_prompt, inputs, outputs, trigger_mode="always_last", **QUIET).then(
        None, None, history.table, js="() => routerPage.remember(false)", **QUIET
    )

    def explain_on(listen: Callable[..., Any]) -> None:
        listen(on_explain, inputs, outputs, show_progress_on=tab.pushes, api_visibility="private").then(
            None, None, history.table, js="() => routerPage.remember(true)", **QUIET
        )

    explain_on(partial(gr.on, [tab.explain.click, tab.prompt.submit]))
    for button in tab.examples:
        explain_on(button.click(lambda text: text, button, tab.prompt, **QUIET).then)
    snippets: dict[str, Any] = {"js": "(text, threshold) => routerPage.snippets(text, threshold)", **QUIET}
    gr.on([tab.prompt.change, side.threshold.change], None, [tab.prompt, side.threshold], tab.code, **snippets)


def connect_feedback(services: Services, tab: PromptTab, side: SidePanel, state: State) -> None:
    """Write what the user says about a route."""

    def on_feedback(label: str, decided: tuple, checkpoint: str, threshold: float, request: gr.Request) -> str:
        text, decision = decided
        if decision is None:
            return html_parts.message("Type a prompt first.")
        if not services.takes_feedback(request):
            return html_parts.message("Feedback is taken from this machine only; start the page with --feedback.")
        try:
            page = services.checkpoints.get(checkpoint)
            return html_parts.message(page.give_feedback(text, decision, threshold, label == RIGHT, request.username))
        except (InputError, OSError) as error:
            return html_parts.message(str(error), "error")

    for button in (tab.right, tab.wrong):
        inputs = [button, state.decided, side.checkpoint, side.threshold]
        button.click(on_feedback, inputs, tab.noted, concurrency_limit=1, **QUIET)


def connect_compare(services: Services, tab: PromptTab, side: SidePanel, state: State) -> None:
    """Keep a prompt to compare others with, or stop that."""

    def on_keep(decided: tuple, kept: tuple | None, checkpoint: str, threshold: float, *prices: float):
        page = services.checkpoints.get(checkpoint)
        kept = None if kept or decided[1] is None else decided
        card = page.card(decided[0], decided[1], threshold, prices_of(prices), kept)
        shown = gr.update(value=page.kept_card(kept, threshold), visible=kept is not None)
        return kept, shown, card, STOP_COMPARING if kept else KEEP

    inputs = [state.decided, state.kept, side.checkpoint, side.threshold, *side.prices]
    tab.keep.click(on_keep, inputs, [state.kept, tab.kept_card, tab.card, tab.keep], **QUIET)


def connect_threshold(services: Services, tab: PromptTab, file: FileSection, side: SidePanel, state: State) -> None:
    """Everything that shows the threshold or a price follows them."""

    def on_threshold(
        threshold: float, decided: tuple, kept: tuple | None, scored: Any, summary: str, order: str, checkpoint: str,
        *given: float,
    ):  # fmt: skip
        page, prices = services.checkpoints.get(checkpoint), prices_of(given)
        name = page.preset_of(threshold) or CUSTOM
        results = (gr.skip(),) * 4
        if scored:
            results = results_of(services.checkpoints.files(checkpoint), scored, threshold, prices, order)
        elif summary:
            results = (html_parts.message(FORGOTTEN, "warning"), *(gr.skip(),) * 3)
        return (
            page.card(decided[0], decided[1], threshold, prices, kept),
            page.kept_card(kept, threshold),
            name,
            page.figures(threshold, prices),
            page.curve(threshold),
            *results,
        )

    def on_preset(name: str, checkpoint: str):
        return services.checkpoints.get(checkpoint).presets().get(name, gr.skip())

    gr.on(
        [side.threshold.change, *(price.change for price in side.prices)],
        on_threshold,
        [
            side.threshold, state.decided, state.kept, state.scored, file.summary, file.order, side.checkpoint,
            *side.prices,
        ],
        [
            tab.card, tab.kept_card, side.preset, side.figures, side.curve,
            file.summary, file.histogram, file.curve, file.table,
        ],
        trigger_mode="always_last",
        **QUIET,
    )  # fmt: skip
    side.preset.input(on_preset, [side.preset, side.checkpoint], side.threshold, **QUIET)


def connect_checkpoint(services: Services, tab: PromptTab, file: FileSection, side: SidePanel, state: State) -> None:
    """Another checkpoint decides anew, and says what it is."""

    def on_checkpoint(name: str, text: str, *prices: float):
        page = services.checkpoints.get(name)
        decision = page.decide(text)
        figures = prices_of(prices)
        return (
            page.threshold,
            gr.update(choices=[*page.presets(), CUSTOM], value=page.preset_of(page.threshold)),
            page.figures(page.threshold, figures),
            gr.update(value=page.curve(page.threshold), visible=page.tradeoff is not None),
            checkpoints.about(page),
            page.card(text, decision, page.threshold, figures),
            (text, decision),
            None,
            gr.update(visible=False),
            KEEP,
            None,
            gr.update(visible=False),
            html_parts.message(files.HINT),
        )

    def on_more(name: str):
        page = services.checkpoints.get(name)
        return checkpoints.card_text(page), checkpoints.plots(page)

    side.checkpoint.change(
        on_checkpoint,
        [side.checkpoint, tab.prompt, *side.prices],
        [
            side.threshold, side.preset, side.figures, side.curve, side.about, tab.card, state.decided, state.kept,
            tab.kept_card, tab.keep, state.scored, file.results, file.status,
        ],
        show_progress_on=side.about,
        api_visibility="private",
    )  # fmt: skip
    gr.on([side.more.expand, side.checkpoint.change], on_more, side.checkpoint, [side.card, side.plots], **QUIET)


def connect_file(services: Services, tab: FileSection, side: SidePanel, scored: gr.State) -> None:
    """Score a file, stop, choose another column."""
    outputs = [
        scored, tab.status, tab.cancel, tab.column, tab.results, tab.summary, tab.histogram, tab.curve, tab.table,
    ]  # fmt: skip

    def show(status: str, scored: Any = None, column: Any = None, is_running: bool = False, results: Any = None):
        column = gr.skip() if column is None else column
        return (
            scored,
            status,
            gr.update(visible=is_running),
            column,
            gr.update(visible=bool(results)),
            *(results or (gr.skip(),) * 4),
        )

    def on_file(
        path: str | None, column: str | None, order: str, checkpoint: str, threshold: float, *prices: float
    ) -> Iterator:
        if path is None:
            yield show(html_parts.message(files.HINT), column=gr.update(visible=False))
            return
        section = services.checkpoints.files(checkpoint)
        steps = section.score(Path(path), column)
        try:
            for step in steps:
                if isinstance(step, str):
                    yield show(html_parts.message(step), is_running=True)
                    continue
                chooser = gr.update(choices=step.columns, value=step.column, visible=len(step.columns) > 1)
                results = results_of(section, step, threshold, prices_of(prices), order)
                yield show("", step, chooser, results=results)
        except files.ColumnNeeded as needed:
            chooser = gr.update(choices=needed.columns, value=None, visible=True)
            yield show(html_parts.message(str(needed), "warning"), column=chooser)
        except InputError as error:
            yield show(html_parts.message(str(error).replace(path, Path(path).name), "error"))
        finally:
            steps.close()

    def on_new_file(path: str | None, *inputs: Any) -> Iterator:
        yield from on_file(path, None, *inputs)

    def on_column(path: str | None, column: str | None, known: Any, *inputs: Any) -> Iterator:
        if column is None or (known and known.column == column):  # the chooser follows the file
            yield (gr.skip(),) * len(outputs)
        else:
            yield from on_file(path, column, *inputs)

    def on_order(order: str, checkpoint: str, threshold: float, scored: Any):
        return services.checkpoints.files(checkpoint).table(scored, threshold, order) if scored else gr.skip()

    inputs = [tab.order, side.checkpoint, side.threshold, *side.prices]
    running: list[Any] = [
        tab.file.change(on_new_file, [tab.file, *inputs], outputs, concurrency_limit=None, **QUIET),
        # Not `input`: gradio fires that for whoever passes a chooser with the Tab key, too.
        tab.column.change(on_column, [tab.file, tab.column, scored, *inputs], outputs, concurrency_limit=None, **QUIET),
    ]
    stopped = html_parts.message("Stopped. Choose the file again to start anew.")
    hidden = gr.update(visible=False)
    tab.cancel.click(lambda: (stopped, hidden), None, [tab.status, tab.cancel], cancels=list(running), **QUIET)
    tab.order.change(on_order, [tab.order, side.checkpoint, side.threshold, scored], tab.table, **QUIET)


def connect_download(services: Services, tab: FileSection, side: SidePanel, scored: gr.State) -> None:
    """Write the scored file, then press the hidden link to it."""

    def on_download(scored: Any, checkpoint: str, threshold: float) -> str:
        if scored is None:
            raise gr.Error(FORGOTTEN, print_exception=False)
        return str(services.checkpoints.files(checkpoint).write(scored, threshold))

    tab.download.click(on_download, [scored, side.checkpoint, side.threshold], tab.link, **QUIET).success(
        js="() => { setTimeout(() => document.querySelector('#link').click(), 200) }"  # when the link knows the file
    )


def results_of(section: files.FileTab, scored: files.ScoredFile, threshold: float, prices: Prices, order: str) -> tuple:
    """Summary, histogram, curve and table of a scored file."""
    return (
        section.summary(scored, threshold, prices),
        section.histogram(scored, threshold),
        section.curve(scored, prices),
        section.table(scored, threshold, order),
    )


def connect_history(tab: HistoryTab, prompt: gr.Textbox) -> None:
    """Reload a prompt, export the history, clear it; all of it in the browser."""

    def on_select(selected: gr.SelectData) -> str:
        return selected.row_value[0] if selected.row_value else ""

    tab.table.select(on_select, None, prompt, **QUIET).then(js="() => routerPage.showPrompt()")
    tab.export.click(None, None, None, js="() => routerPage.exportHistory()", **QUIET)
    tab.clear.click(None, None, tab.table, js="() => routerPage.clearHistory()", **QUIET)


def connect_both(
    services: Services, models: BothModels, section: BothSection, prompt: gr.Textbox, side: SidePanel
) -> None:
    """Stream both answers, then take the vote."""
    voted_on = gr.State("")
    refusal = html_parts.message("Asked from this machine or after a login only; set ROUTER_PAGE_AUTH.", "warning")

    def on_ask(request: gr.Request, text: str, *given: float) -> Iterator:
        if not services.may_ask_models(request):
            idle = gr.update(interactive=False)
            yield "", gr.update(visible=True), "", "", refusal, "", idle, idle, ""
            return
        prices = prices_of(given)
        answers_of = models.ask(text)
        shown = gr.update(visible=True)
        try:
            for answers in answers_of:
                facts = [html_parts.message(line) for line in models.describe(answers, prices)]
                ready = gr.update(interactive=all(answer.finished for answer in answers))
                yield text, shown, *(a.text for a in answers), *facts, ready, ready, ""
                shown = gr.skip()  # another prompt that was typed meanwhile has hidden them
        finally:
            answers_of.close()

    def on_vote(text: str, vote: str, request: gr.Request) -> str:
        if not services.may_ask_models(request):
            return refusal
        try:
            return html_parts.message(models.vote(text, vote.lower(), request.username))
        except (InputError, OSError) as error:
            return html_parts.message(str(error), "error")

    outputs = [voted_on, section.results, *section.answers, *section.facts, *section.votes, section.noted]
    section.ask.click(on_ask, [prompt, *side.prices], outputs, concurrency_limit=4, **QUIET)
    prompt.change(None, None, section.results, js="() => ({ visible: false, __type__: 'update' })", **QUIET)
    for button in section.votes:
        button.click(on_vote, [voted_on, button], section.noted, concurrency_limit=1, **QUIET)


def prices_of(values: Sequence[float | None]) -> Prices:
    """From the page's three fields, of which any may have been emptied."""
    return Prices(*(max(value or 0, 0) for value in values))
