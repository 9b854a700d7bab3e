"""The page in a browser: what a visitor sees and does, at a desk and on a phone, and with no mouse."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from openai_server import OpenAIServer, stream_of
from playwright.sync_api import expect

from inference.page import files, layout
from inference.page.answers import Page
from inference.page.both_models import BothModels
from inference.page.checkpoints import Checkpoints
from inference.page.layout import EXAMPLES, Services
from inference.run_gradio_model import launch
from router_data import INFERIOR, SUPERIOR, Outcome, read_rows
from router_model import Router

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    # Gradio's own: it uses what pandas deprecates, and leaves sockets and event loops to the collector
    pytest.mark.filterwarnings("ignore:'future.no_silent_downcasting' is deprecated"),
    pytest.mark.filterwarnings("ignore:The copy keyword is deprecated"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

PATIENCE = 60_000  # milliseconds
expect.set_options(PATIENCE)
EASY_PROMPT = "please open the door with apple and bread"
HARD_PROMPT = "please open the zorp with apple and bread"
ARABIC = "ما هي عاصمة فرنسا؟ وكم عدد سكانها (تقريبًا)؟"
HOSTILE = (
    "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'></p></section><b id=injected>x</b>"
    " {{this}} {{{constructor}}} ${window.hacked = 1} `${window.hacked = 1}` \\u003cb\\u003e"
)
AXE = Path(find_spec("axe_playwright_python").origin).with_name("axe.min.js")
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


class Served:
    """A page that is being served."""

    def __init__(self, router, feedback_file: Path, **services) -> None:
        self.feedback_file = feedback_file
        page = Page(router, feedback_file=feedback_file)
        page.labelled.index()
        self.blocks, self.url, _ = launch(Services(Checkpoints(page), **services))

    def close(self) -> None:
        self.blocks.close()


@pytest.fixture(scope="module")
def served_with_both(router, tmp_path_factory):
    """A page that may ask two models, which answer with their names."""
    folder = tmp_path_factory.mktemp("both")
    answering = OpenAIServer(lambda prompt, nth, body: stream_of(f"{body['model']} answers"))
    with pytest.MonkeyPatch.context() as environment, answering as server:
        for name in ("INFERIOR", "SUPERIOR"):
            environment.setenv(f"{name}_MODEL", f"{name.lower()}-m")
            environment.setenv(f"{name}_BASE_URL", server.url)
            environment.setenv(f"{name}_API_KEY", "k")
        both = BothModels.from_environment(folder / "votes.jsonl")
        page = Served(router, folder / "feedback.jsonl", both_models=both)
        yield page
        page.close()


@pytest.fixture(scope="module")
def served(router, tmp_path_factory):
    page = Served(router, tmp_path_factory.mktemp("final-datasets") / "router_dataset_labelled-human-feedback.jsonl")
    yield page
    page.close()


def new_tab(chromium, url: str, problems: list, viewport=None, scheme="light"):
    """A tab with the page, which notes what is asked of other hosts and which scripts fail."""
    tab = start_tab(chromium, url, problems, viewport, scheme)
    wait_until_ready(tab)
    return tab


def start_tab(chromium, url: str, problems: list, viewport=None, scheme="light"):
    """As `new_tab`, without waiting until the page is there."""
    context = chromium.new_context(viewport=viewport or DESK, color_scheme=scheme)
    tab = context.new_page()
    tab.set_default_timeout(PATIENCE)
    tab.on("request", lambda request: request.url.startswith((url, "data:", "blob:")) or problems.append(request.url))
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("dialog", lambda dialog: (problems.append(dialog.message), dialog.dismiss()))
    tab.goto(url, wait_until="commit")
    return tab


def wait_until_ready(tab) -> None:
    tab.wait_for_selector("#decision .card")
    tab.wait_for_function("window.routerPage && document.querySelector('#prompt textarea')?.dir === 'auto'")


@pytest.fixture
def tab(served, chromium):
    problems: list[str] = []
    tab = new_tab(chromium, served.url, problems)
    yield tab
    tab.context.close()
    assert problems == []


def ask(tab, prompt: str) -> dict[str, str]:
    """Type a prompt and read both probabilities off the page."""
    tab.fill("#prompt textarea", prompt)
    expect(tab.locator("#decision .card.stale")).to_have_count(0)
    tab.wait_for_selector("#decision .card[data-decision]")
    parts = tab.locator("#decision .probabilities span").all()
    return {part.get_attribute("class"): part.locator("b").inner_text() for part in parts}


def explain(tab) -> None:
    tab.click("#explain")
    tab.wait_for_selector("#pushes .push")


def set_threshold(tab, value: float) -> None:
    box = tab.locator("#threshold input[type=number]")
    box.fill(str(value))
    box.press("Enter")
    box.blur()


def wait_for_text(tab, selector: str, text: str) -> None:
    expect(tab.locator(selector)).to_contain_text(text, use_inner_text=True)


def test_the_decision_follows_the_typing_and_is_explained_on_demand(tab, router):
    assert tab.locator("#explain").is_disabled() and tab.locator("#right").is_disabled()
    easy = ask(tab, EASY_PROMPT)
    assert "inferior model will do" in tab.inner_text("#decision h2")
    hard = ask(tab, HARD_PROMPT)
    assert "needs the superior model" in tab.inner_text("#decision h2")
    for shown, score in zip((easy, hard), router.score([EASY_PROMPT, HARD_PROMPT]), strict=True):
        assert shown == {"inferior": f"{1 - score:.1%}", "superior": f"{score:.1%}"}
    tab.wait_for_function(
        """score => { const [a, b] = [...document.querySelectorAll("#decision .bar .part")].map(
            part => part.getBoundingClientRect().width); return Math.abs(b / (a + b) - score) < 0.01 }""",
        arg=float(router.score([HARD_PROMPT])[0]),
    )

    explain(tab)
    assert "Towards superior: zorp (+0." in tab.inner_text("#pushes")
    assert "zorp" in tab.inner_text("#words") and "superior what is a zorp with a vlam" in tab.inner_text("#near")
    tab.focus("#prompt textarea")
    tab.keyboard.press("End")
    tab.keyboard.type(" door")  # the explanation is out of date at once, the decision follows
    tab.wait_for_selector("#pushes .push", state="detached")
    tab.keyboard.press("Control+Enter")
    tab.wait_for_selector("#pushes .push")
    assert tab.inner_text("#words").rstrip().endswith("door")


def test_an_example_is_whole_and_runs(tab):
    buttons = tab.locator("#examples button")
    assert [button.inner_text() for button in buttons.all()] == EXAMPLES
    buttons.first.click()
    tab.wait_for_selector("#pushes .push")
    assert tab.input_value("#prompt textarea") == EXAMPLES[0]


@pytest.mark.parametrize(
    ("prompt", "note"),
    [(HOSTILE, ""), ("🙂🙂🙂", "cannot read"), ("bread " * 175_000, "1,050,000 characters")],
    ids=["html", "emoji", "megabyte"],
)
def test_strange_prompts(tab, prompt, note):
    ask(tab, prompt)
    explain(tab)
    assert note in tab.inner_text("#decision")
    assert tab.evaluate("window.hacked") is None
    assert tab.locator("#injected, #decision img, #words img").count() == 0
    if prompt is HOSTILE:
        words = tab.inner_text("#words").replace("\n", "")
        assert "window.hacked" in words and "{{this}}" in words


def test_a_blank_prompt_is_no_decision(tab):
    ask(tab, EASY_PROMPT)
    tab.fill("#prompt textarea", "  \n ")
    tab.wait_for_selector("#decision .card:not([data-decision])")
    assert tab.locator("#explain").is_disabled()


def test_an_old_decision_is_dimmed_and_a_lost_server_is_named(router, chromium, tmp_path):
    served = Served(router, tmp_path / "feedback.jsonl")
    problems: list[str] = []
    tab = new_tab(chromium, served.url, problems)
    ask(tab, HARD_PROMPT)
    served.close()
    tab.fill("#prompt textarea", "hi")
    tab.wait_for_selector("#decision .card.stale")
    wait_for_text(tab, "#connection", "The router cannot be reached")
    assert tab.locator("#decision .card.stale").count() == 1
    tab.context.close()


def test_the_threshold_moves_the_decision_and_the_figures(tab):
    ask(tab, EASY_PROMPT)
    set_threshold(tab, 0)
    tab.wait_for_selector(f"#decision [data-decision={SUPERIOR}]")
    wait_for_text(tab, "#figures", "$8.00")
    assert "100%" in tab.inner_text("#figures")
    assert tab.locator("#presets input").input_value() == "custom"
    set_threshold(tab, 0.5)
    tab.wait_for_selector(f"#decision [data-decision={INFERIOR}]")
    wait_for_text(tab, "#figures", "$4.20")

    tab.locator("#threshold input[type=range]").focus()
    tab.keyboard.press("ArrowRight")
    wait_for_text(tab, "#decision", "threshold 50.1%")
    tab.get_by_label("Thresholds that meet a target").click()
    tab.get_by_role("option", name="at most 10% superior (95.0%)").click()
    wait_for_text(tab, "#decision", "threshold 95.0%")
    wait_for_text(tab, "#figures", "$1.16")
    assert tab.locator("#presets input").input_value() == "at most 10% superior (95.0%)"

    tab.get_by_role("button", name="Prices").click()
    tab.get_by_label("Inferior model, $ per million tokens").fill("20")
    wait_for_text(tab, "#figures", "90% more than $8.00")


@pytest.mark.parametrize(("typed", "shown"), [(7, "threshold 100.0%"), (-1, "threshold 0.0%")])
def test_an_impossible_threshold_is_put_right(tab, typed, shown):
    ask(tab, EASY_PROMPT)
    set_threshold(tab, typed)
    wait_for_text(tab, "#decision", shown)
    assert tab.locator(".toast-body.error").count() == 0


def test_two_prompts_side_by_side(tab):
    ask(tab, EASY_PROMPT)
    tab.click("#keep")
    wait_for_text(tab, "#kept", "Kept for comparison")
    ask(tab, HARD_PROMPT)
    wait_for_text(tab, "#decision", "percentage points against the prompt kept")
    assert EASY_PROMPT in tab.inner_text("#kept")
    tab.get_by_role("button", name="Stop comparing").click()
    tab.wait_for_selector("#kept .kept", state="hidden")


def test_the_history_is_kept_over_a_reload_and_exported(tab, router):
    ask(tab, EASY_PROMPT)
    explain(tab)
    ask(tab, HARD_PROMPT)
    explain(tab)
    tab.wait_for_function("JSON.parse(localStorage['router-page-history']).length === 2")
    tab.reload()
    tab.wait_for_selector(f"#decision .card[data-decision={SUPERIOR}]")  # the text came back, and was decided anew
    assert tab.input_value("#prompt textarea") == HARD_PROMPT
    tab.get_by_role("tab", name="History").click()
    tab.get_by_role("gridcell", name=EASY_PROMPT).or_(
        tab.locator(f"#history td:has-text('{EASY_PROMPT}')")
    ).first.click()
    expect(tab.locator("#prompt textarea")).to_have_value(EASY_PROMPT)
    tab.get_by_role("tab", name="History").click()
    with tab.expect_download() as download:
        tab.click("#export")
    rows = [json.loads(line) for line in Path(download.value.path()).read_text().splitlines()]
    assert {row["prompt"]: row["router_label"] for row in rows} == {EASY_PROMPT: INFERIOR, HARD_PROMPT: SUPERIOR}
    assert {row["threshold"] for row in rows} == {0.5}


def test_the_snippets_answer_as_the_page_does(tab, served, router):
    prompt = 'what\'s a "zorp" with $HOME `x`'
    ask(tab, prompt)
    tab.get_by_role("button", name="Use it from code").click()
    expect(tab.locator("#code textarea").first).to_have_value(re.compile("curl"))
    score = router.score([prompt])[0]
    snippets = tab.evaluate("(prompt) => routerPage.snippets(prompt, 0.5)", prompt)
    done = subprocess.run(["bash", "-c", snippets[0]], capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout)["data"][0]["superior_probability"] == pytest.approx(score, abs=1e-6)
    done = subprocess.run([sys.executable, "-c", snippets[1]], capture_output=True, text=True, timeout=120)
    assert f"superior {score:.6f}".rstrip("0") in done.stdout
    compile(snippets[2], "snippet", "exec")
    assert 'model="router-0.5"' in snippets[2]


def test_a_file_is_scored_sorted_and_downloaded(tab, tmp_path):
    rows = [{"prompt": f"{HARD_PROMPT if i % 4 == 0 else EASY_PROMPT} {i}", "id": i} for i in range(400)]
    (tmp_path / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"pro\n')
    tab.get_by_role("tab", name="A file").click()
    tab.set_input_files("#file input[type=file]", tmp_path / "many.jsonl")
    tab.wait_for_selector("#summary .stats")
    summary = tab.inner_text("#summary")
    assert "400" in summary and "25%" in summary and "100 prompts" in summary and "line 401: not JSON" in summary
    wait_for_text(tab, "#rows", HARD_PROMPT)
    with tab.expect_download() as download:
        tab.click("#download")
    assert download.value.suggested_filename == "many-scored.jsonl"
    written = [json.loads(line) for line in Path(download.value.path()).read_text().splitlines()]
    assert [row["id"] for row in written] == list(range(400))
    assert [row["router_label"] for row in written[:4]] == [SUPERIOR, INFERIOR, INFERIOR, INFERIOR]
    set_threshold(tab, 0)
    wait_for_text(tab, "#summary", "100%")
    with tab.expect_download() as download:
        tab.click("#download")
    assert json.loads(Path(download.value.path()).read_text().splitlines()[1])["router_label"] == SUPERIOR


def test_the_column_of_a_file_is_chosen(tab, tmp_path):
    (tmp_path / "a.csv").write_text(f"id;frage\n1;{HARD_PROMPT}\n2;{EASY_PROMPT}\n")
    tab.get_by_role("tab", name="A file").click()
    tab.set_input_files("#file input[type=file]", tmp_path / "a.csv")
    wait_for_text(tab, "#status", "Which column holds the prompts?")
    tab.get_by_label("Column with the prompts").click()
    tab.get_by_role("option", name="frage").click()
    wait_for_text(tab, "#summary", "CSV with semicolons")


def test_a_bad_file_is_named_in_one_line(tab, tmp_path):
    (tmp_path / "bad.jsonl").write_text('<img src=x onerror="window.hacked=1">\n')
    tab.get_by_role("tab", name="A file").click()
    tab.set_input_files("#file input[type=file]", tmp_path / "bad.jsonl")
    wait_for_text(tab, "#status", "line 1: not JSON")
    assert not tab.locator("#download").is_visible() and tab.evaluate("window.hacked") is None


def test_work_on_a_file_ends_with_stop_and_when_the_browser_goes(router, chromium, tmp_path, monkeypatch):
    scored = []
    decide = Router.decide
    monkeypatch.setattr(
        Router,
        "decide",
        lambda self, prompts, *more: (
            time.sleep(0.2 if len(prompts) > 1 else 0),
            scored.append(len(prompts)),
            decide(self, prompts, *more),
        )[2],
    )
    served = Served(router, tmp_path / "feedback.jsonl")
    (tmp_path / "many.txt").write_text("\n".join(f"{EASY_PROMPT} {i}" for i in range(100_000)))
    for ending in ("stop", "leave"):
        tab = new_tab(chromium, served.url, [])
        tab.get_by_role("tab", name="A file").click()
        tab.set_input_files("#file input[type=file]", tmp_path / "many.txt")
        wait_for_text(tab, "#status", "of 100,000 prompts scored")
        if ending == "stop":
            tab.click("#cancel")
            wait_for_text(tab, "#status", "Stopped")
        tab.context.close()
        deadline = time.monotonic() + 30
        before = -1
        while len(scored) != before and time.monotonic() < deadline:
            before = len(scored)
            time.sleep(3)
        assert len(scored) == before < 390, ending
        scored.clear()
    served.close()


def test_feedback_becomes_a_row(tab, served):
    ask(tab, HARD_PROMPT)
    tab.get_by_role("button", name="Wrong").click()
    wait_for_text(tab, "#noted", "Noted as inferior")
    row = list(read_rows(served.feedback_file))[-1]
    assert (row.prompt, row.label, row.labelled_by) == (HARD_PROMPT, INFERIOR, "human")
    ask(tab, EASY_PROMPT)
    tab.wait_for_selector("#noted .note", state="detached")
    tab.get_by_role("button", name="Right").click()
    wait_for_text(tab, "#noted", "Noted as inferior")
    assert [row.label for row in read_rows(served.feedback_file)] == [INFERIOR, INFERIOR]


def test_both_models_answer_and_a_vote_is_stored(served_with_both, chromium):
    problems: list[str] = []
    tab = new_tab(chromium, served_with_both.url, problems)
    ask(tab, HARD_PROMPT)
    ask_both(tab)
    vote(tab)
    tab.fill("#prompt textarea", EASY_PROMPT)  # the answers to another prompt go
    tab.wait_for_selector("#both", state="hidden")
    tab.context.close()
    assert problems == []
    row = list(read_rows(served_with_both.feedback_file.with_name("votes.jsonl"), Outcome))[-1]
    assert (row.prompt, row.weak_score, row.strong_score) == (HARD_PROMPT, 0, 1)


def ask_both(tab) -> None:
    tab.click("#ask_both")
    wait_until_answered(tab)


def wait_until_answered(tab) -> None:
    for i, model in enumerate(("inferior-m", "superior-m")):
        expect(tab.locator("#both textarea").nth(i)).to_have_value(re.compile(rf"^\s*{model} answers\s*$"))


def vote(tab) -> None:
    tab.get_by_role("button", name="Right is clearly better").click()
    wait_for_text(tab, "#voted", "Noted")


def test_no_feedback_buttons_where_it_is_off(router, chromium, tmp_path):
    served = Served(router, tmp_path / "feedback.jsonl", feedback=False)
    tab = new_tab(chromium, served.url, [])
    assert tab.get_by_role("button", name="Wrong").count() == 0
    tab.context.close()
    served.close()


def test_a_forwarded_request_writes_no_row_and_sees_no_labelled_prompt(served, chromium):
    context = chromium.new_context(extra_http_headers={"X-Forwarded-For": "8.8.8.8"})
    tab = context.new_page()
    tab.set_default_timeout(PATIENCE)
    tab.goto(served.url)
    tab.wait_for_selector("#decision .card")
    before = served.feedback_file.read_bytes() if served.feedback_file.exists() else b""
    ask(tab, EASY_PROMPT)
    explain(tab)
    assert "please open the door" not in tab.inner_text("#near")
    tab.get_by_role("button", name="Right").click()
    wait_for_text(tab, "#noted", "from this machine only")
    context.close()
    assert (served.feedback_file.read_bytes() if served.feedback_file.exists() else b"") == before


def test_a_forwarded_request_spends_nothing_on_both_models(served_with_both, chromium):
    votes = served_with_both.feedback_file.with_name("votes.jsonl")
    context = chromium.new_context(extra_http_headers={"X-Forwarded-For": "8.8.8.8"})
    tab = context.new_page()
    tab.set_default_timeout(PATIENCE)
    tab.goto(served_with_both.url)
    wait_until_ready(tab)
    ask(tab, EASY_PROMPT)
    tab.click("#ask_both")
    wait_for_text(tab, "#both", "after a login only")
    assert tab.get_by_role("button", name="Left is enough").is_disabled()
    context.close()
    vote = next(event.fn for event in served_with_both.blocks.fns.values() if event.name == "on_vote")
    forwarded = {"host": "localhost", "x-forwarded-for": "8.8.8.8"}
    request = SimpleNamespace(headers=forwarded, client=SimpleNamespace(host="127.0.0.1"), username=None)
    before = votes.read_bytes() if votes.exists() else b""
    assert "after a login only" in vote(EASY_PROMPT, "Left is enough", request)
    assert (votes.read_bytes() if votes.exists() else b"") == before


@pytest.mark.parametrize("path", ["", "config", "gradio_api/run/predict", "gradio_api/upload", "gradio_api/queue/join"])
def test_a_rebound_name_reaches_nothing(served, path):
    import http.client

    port = int(re.search(r":(\d+)", served.url)[1])
    for headers in ({"Host": "evil.example"}, {"Host": f"localhost:{port}", "Origin": "https://evil.example"}):
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("POST" if "/" in path else "GET", f"/{path}", body=b"{}", headers=headers)
        assert connection.getresponse().status == 421
        connection.close()


def test_it_works_by_keyboard_and_for_screen_readers(tab):
    tab.focus("#prompt textarea")
    tab.keyboard.type(HARD_PROMPT)
    tab.wait_for_selector(f"#decision [data-decision={SUPERIOR}]")
    reached = []
    for _ in range(24):
        tab.keyboard.press("Tab")
        reached.append(tab.evaluate("document.activeElement.closest('[id]:not([id^=component])')?.id"))
    assert [name for name in ("explain", "keep", "right", "wrong", "threshold", "presets") if name not in reached] == []
    assert tab.locator("#decision[role=status], #decision [role=status]").count() == 1
    tab.locator("#threshold input[type=range]").focus()
    tab.keyboard.press("ArrowLeft")
    assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    label = tab.locator("#decision .bar").get_attribute("aria-label")
    assert label.startswith("Inferior ") and "superior" in label


def tab_to(tab, selector: str, key: str = "Tab") -> None:
    """Press Tab (or Shift+Tab) until what the selector names has the focus."""
    tab.wait_for_timeout(500)  # until what the last step changed is drawn, which may take the focus
    for _ in range(60):
        if tab.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
        tab.keyboard.press(key)
    raise AssertionError(f"{key} never reaches {selector}")


def choose(tab, selector: str, text: str) -> None:
    """Choose the one option of a list that holds a text, by keyboard."""
    tab_to(tab, selector)
    tab.keyboard.press("Control+A")
    tab.keyboard.type(text)
    expect(tab.get_by_role("option")).to_contain_text([text])  # the list follows what is typed a moment later
    tab.keyboard.press("Enter")


def go_to_tab(tab, name: str) -> None:
    """Open a tab of the page by keyboard."""
    tab_to(tab, "button[role=tab]", "Shift+Tab")
    while tab.evaluate("document.activeElement.innerText") != name:
        tab.keyboard.press("Tab" if name != "One prompt" else "Shift+Tab")
    tab.keyboard.press("Enter")


def test_a_prompt_is_tried_explained_compared_and_judged_by_keyboard(tab, served):
    tab.keyboard.type(EASY_PROMPT)  # the box has the focus from the start
    tab.wait_for_selector(f"#decision [data-decision={INFERIOR}]")
    tab.keyboard.press("Control+Enter")
    tab.wait_for_selector("#pushes .push")
    tab_to(tab, "#keep")
    tab.keyboard.press("Enter")
    wait_for_text(tab, "#kept", EASY_PROMPT)
    tab_to(tab, "#prompt textarea", "Shift+Tab")
    tab.keyboard.press("Control+A")
    tab.keyboard.type(HARD_PROMPT)
    wait_for_text(tab, "#decision", "percentage points against the prompt kept")
    tab_to(tab, "#explain")
    tab.keyboard.press("Space")
    wait_for_text(tab, "#pushes", "zorp")
    tab_to(tab, "#right")
    tab.keyboard.press("Enter")
    wait_for_text(tab, "#noted", "Noted as superior")
    assert list(read_rows(served.feedback_file))[-1].prompt == HARD_PROMPT

    tab_to(tab, "#examples button")
    tab.keyboard.press("Enter")
    expect(tab.locator("#prompt textarea")).to_have_value(EXAMPLES[0])
    tab_to(tab, "#code button")
    tab.keyboard.press("Enter")
    tab_to(tab, "#code button[role=tab]:not(.selected)")
    tab.keyboard.press("Enter")
    expect(tab.locator("#code textarea:visible")).to_have_value(re.compile(r"Client\("))


def test_threshold_prices_and_model_by_keyboard(tab):
    ask(tab, EASY_PROMPT)
    tab_to(tab, "#threshold input[type=number]")
    tab.keyboard.press("Control+A")
    tab.keyboard.type("0.25")
    tab.keyboard.press("Tab")
    wait_for_text(tab, "#decision", "threshold 25.0%")
    tab_to(tab, "#threshold input[type=range]")
    tab.keyboard.press("ArrowRight")
    wait_for_text(tab, "#decision", "threshold 25.1%")
    tab.keyboard.press("End")
    wait_for_text(tab, "#decision", "threshold 100.0%")
    choose(tab, "#presets input", "at most 10%")
    expect(tab.locator("#presets input")).to_have_value("at most 10% superior (95.0%)")
    wait_for_text(tab, "#decision", "threshold 95.0%")
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.innerText").startswith("Prices")
    tab.keyboard.press("Enter")
    tab_to(tab, "input[aria-label^='Inferior model']")
    tab.keyboard.press("Control+A")
    tab.keyboard.type("20")
    wait_for_text(tab, "#figures", "more than $8.00")
    tab_to(tab, "#about button")
    tab.keyboard.press("Enter")
    tab_to(tab, "#card_and_plots button")
    tab.keyboard.press("Enter")
    wait_for_text(tab, "#model_card", "A card")


def test_a_file_is_scored_and_downloaded_by_keyboard(tab, tmp_path, monkeypatch):
    reads, read_file = [], files.read_file
    monkeypatch.setattr(files, "read_file", lambda path, column: reads.append(column) or read_file(path, column))
    (tmp_path / "a.csv").write_text(f"id;frage\n1;{HARD_PROMPT}\n2;{EASY_PROMPT}\n")
    with tab.expect_file_chooser() as chooser:  # early: Playwright takes a moment until it catches one
        go_to_tab(tab, "A file")
        tab_to(tab, "#file button")
        tab.keyboard.press("Enter")
    chooser.value.set_files(tmp_path / "a.csv")
    wait_for_text(tab, "#status", "Which column holds the prompts?")
    choose(tab, "#column input", "frage")
    tab.wait_for_selector("#summary .stats")
    tab.wait_for_selector("#download:not([disabled])")
    for order, first in (("highest first", HARD_PROMPT), ("lowest first", EASY_PROMPT)):
        tab_to(tab, "#order input")
        tab.keyboard.press("ArrowDown")
        tab.keyboard.press("Enter")
        expect(tab.locator("#order input")).to_have_value(order)
        expect(tab.locator("#rows [role=gridcell]").nth(1)).to_have_text(first, use_inner_text=True)
    tab_to(tab, "#download")
    with tab.expect_download() as download:
        tab.keyboard.press("Enter")
    assert download.value.suggested_filename == "a-scored.csv"
    assert reads == [None, "frage"]  # once a choice, however often Tab passed the chooser
    tab_to(tab, "#file [aria-label='Clear']", "Shift+Tab")
    tab.keyboard.press("Enter")
    tab.wait_for_selector("#summary .stats", state="hidden")


def test_another_checkpoint_decides_when_it_is_chosen_and_not_when_tab_passes(router, chromium, tmp_path):
    older, newest = (tmp_path / f"tiny-router-finetuning-2026010{day}T000000-save" for day in (1, 2))
    for folder in (older, newest):
        shutil.copytree(router.model_save_dir, folder)
    page, problems = Served(Router.load(newest), tmp_path / "feedback.jsonl"), []
    tab = new_tab(chromium, page.url, problems)
    (tmp_path / "a.txt").write_text(f"{HARD_PROMPT}\n{EASY_PROMPT}\n")
    go_to_tab(tab, "A file")
    tab.set_input_files("#file input[type=file]", tmp_path / "a.txt")
    tab.wait_for_selector("#summary .stats")
    tab_to(tab, "#checkpoint input")
    tab.keyboard.press("Tab")
    tab.wait_for_timeout(1000)  # for what must not come
    expect(tab.locator("#summary .stats")).to_be_visible()
    choose(tab, "#checkpoint input", older.name)
    expect(tab.locator("#summary .stats")).to_be_hidden()
    wait_for_text(tab, "#status", files.HINT)
    tab.context.close()
    page.close()
    assert problems == []


def test_a_tried_prompt_comes_back_by_keyboard(tab):
    for prompt in (EASY_PROMPT, HARD_PROMPT):
        ask(tab, prompt)
        explain(tab)
    tab.wait_for_function("JSON.parse(localStorage['router-page-history']).length === 2")
    go_to_tab(tab, "History")
    tab_to(tab, "#history [role=gridcell]")
    tab.keyboard.press("ArrowDown")
    expect(tab.locator("#history :focus")).to_contain_text(EASY_PROMPT, use_inner_text=True)
    tab.keyboard.press("Enter")
    expect(tab.locator("#prompt textarea")).to_have_value(EASY_PROMPT)
    expect(tab.locator("#prompt textarea")).to_be_focused()
    go_to_tab(tab, "History")
    tab_to(tab, "#export")
    with tab.expect_download() as download:
        tab.keyboard.press("Enter")
    assert len(Path(download.value.path()).read_text().splitlines()) == 2
    tab_to(tab, "#clear_history")
    tab.keyboard.press("Enter")
    tab.wait_for_function("JSON.parse(localStorage['router-page-history']).length === 0")


def test_both_models_are_asked_and_judged_by_keyboard(served_with_both, chromium):
    problems: list[str] = []
    tab = new_tab(chromium, served_with_both.url, problems)
    tab.keyboard.type(EASY_PROMPT)
    tab.wait_for_selector(f"#decision [data-decision={INFERIOR}]")
    tab_to(tab, "#ask_both")
    tab.keyboard.press("Enter")
    wait_until_answered(tab)
    tab_to(tab, "#both button.secondary")
    tab.keyboard.press("Enter")
    wait_for_text(tab, "#voted", "Noted: left is enough")
    tab.context.close()
    assert problems == []


def test_text_from_right_to_left(tab):
    ask(tab, ARABIC)
    explain(tab)
    expect(tab.locator("#prompt textarea")).to_have_css("direction", "rtl")
    expect(tab.locator("#words .textfield")).to_have_css("unicode-bidi", "plaintext")
    assert tab.locator("#pushes bdi, #near bdi").count() > 0
    long = ARABIC * 500  # whose direction the page finds itself
    tab.fill("#prompt textarea", long)
    expect(tab.locator("#prompt textarea")).to_have_attribute("dir", "rtl")
    tab.fill("#prompt textarea", EASY_PROMPT * 1000 + ARABIC)
    expect(tab.locator("#prompt textarea")).to_have_attribute("dir", "ltr")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
def test_every_state_fits_and_passes_axe(served_with_both, chromium, tmp_path, viewport, scheme):
    problems: list[str] = []
    tab = new_tab(chromium, served_with_both.url, problems, viewport, scheme)
    tab.add_script_tag(path=AXE)
    faults: list[str] = []

    def check(state: str) -> None:
        tab.wait_for_timeout(500)  # until what moves has come to rest
        if folder := os.environ.get("ROUTER_SCREENSHOTS"):
            tab.screenshot(path=Path(folder) / f"{state}-{viewport['width']}-{scheme}.png", full_page=True)
        faults.extend(f"{state}: {fault}" for fault in violations(tab))
        if tab.evaluate("document.documentElement.scrollWidth") > viewport["width"]:
            faults.append(f"{state}: wider than the window")

    check("empty")
    ask(tab, EASY_PROMPT)
    check("easy")
    tab.click("#keep")
    wait_for_text(tab, "#kept", "Kept for comparison")
    ask(tab, HARD_PROMPT)
    explain(tab)
    check("hard, explained, compared")
    tab.get_by_role("button", name="Stop comparing").click()
    ask(tab, "🙂🙂🙂")
    check("unfamiliar")
    ask(tab, "bread " * 5000)
    check("cut")
    ask(tab, ARABIC)
    explain(tab)
    check("from right to left")
    ask(tab, HARD_PROMPT)
    ask_both(tab)
    check("both answers")
    vote(tab)
    tab.get_by_role("button", name="Wrong").click()
    wait_for_text(tab, "#noted", "Noted as inferior")
    for name in ("About this model", "Use it from code", "Prices", "Model card and plots"):
        tab.get_by_role("button", name=name).click()
    check("vote, feedback, all open")
    cells = tab.locator("#model_card td").all()
    assert cells and all(cell.bounding_box()["height"] < 60 for cell in cells)  # no figure is broken into its letters
    colour = tab.evaluate("getComputedStyle(document.querySelector('#decision .card')).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", colour)[:3])) / 3 < 80) == (scheme == "dark")

    tab.get_by_role("tab", name="A file").click()
    check("file")
    (tmp_path / "bad.jsonl").write_text("[1\n")
    tab.set_input_files("#file input[type=file]", tmp_path / "bad.jsonl")
    tab.wait_for_selector("#status .error")
    check("file error")
    (tmp_path / "a.csv").write_text(f"id;frage\n1;{HARD_PROMPT}\n2;{EASY_PROMPT}\n")
    tab.get_by_label("Remove this file").or_(tab.get_by_label("Clear")).first.click()
    tab.set_input_files("#file input[type=file]", tmp_path / "a.csv")
    wait_for_text(tab, "#status", "Which column holds the prompts?")
    check("file column")
    tab.get_by_label("Column with the prompts").click()
    tab.get_by_role("option", name="frage").click()
    tab.wait_for_selector("#summary .stats")
    check("file scored")
    tab.get_by_role("tab", name="History").click()
    check("history")

    tab.get_by_role("tab", name="One prompt").click()
    tab.context.set_offline(True)
    tab.fill("#prompt textarea", EASY_PROMPT)
    tab.wait_for_selector("#decision .card.stale")
    check("stale")
    wait_for_text(tab, "#connection", "The router cannot be reached")
    check("server gone")
    tab.context.close()
    assert not faults, "\n".join(faults)
    assert problems == []


def violations(tab) -> list[str]:
    """What axe-core finds."""
    found = tab.evaluate("axe.run()")["violations"]
    return [f"{v['id']}: {node['html'][:160]} {node['any'][:1]}" for v in found for node in v["nodes"]]


def test_on_a_phone_the_threshold_is_always_in_reach(served, chromium):
    tab = new_tab(chromium, served.url, [], PHONE)
    ask(tab, HARD_PROMPT)
    box = tab.locator("#threshold input[type=range]").bounding_box()
    assert 0 < box["y"] < PHONE["height"]
    for name in ("#explain", "#keep", "#right", "#wrong"):
        button = tab.locator(name).bounding_box()
        assert button["x"] >= 0 and button["x"] + button["width"] <= PHONE["width"]
    tab.evaluate("window.scrollTo(0, 99999)")  # and hides nothing for good
    last = tab.locator("#about").bounding_box()
    assert last["y"] + last["height"] <= tab.locator("#threshold").bounding_box()["y"]
    tab.context.close()


def test_the_page_asks_for_the_login(router, chromium, tmp_path):
    page = Page(router, feedback_file=tmp_path / "feedback.jsonl")
    blocks, url, _ = launch(Services(Checkpoints(page)), auth=("alice", "s3cret"))
    context = chromium.new_context()
    tab = context.new_page()
    tab.set_default_timeout(PATIENCE)
    try:
        tab.goto(url)
        for password, inside in (("wrong", False), ("s3cret", True)):
            tab.get_by_label("username").fill("alice")
            tab.get_by_label("password").fill(password)
            tab.get_by_role("button", name="Login").click()
            if inside:
                tab.wait_for_selector("#prompt")
            else:
                tab.wait_for_timeout(1500)
                assert tab.locator("#prompt").count() == 0
    finally:
        context.close()
        blocks.close()


def test_without_the_login_nothing_of_ours_answers(router, tmp_path):
    """What Gradio leaves open (its own scripts, app_id, /cancel, /reset) holds no prompt and starts no work."""
    import httpx

    page = Page(router, feedback_file=tmp_path / "feedback.jsonl")
    blocks, url, _ = launch(Services(Checkpoints(page)), auth=("alice", "s3cret"))
    try:
        with httpx.Client(base_url=url, trust_env=False, timeout=PATIENCE) as client:
            for method, path in (
                ("POST", "run/predict"), ("POST", "call/predict"), ("POST", "queue/join"), ("POST", "upload"),
                ("GET", "info"), ("GET", "queue/data?session_hash=x"), ("GET", "file=README.md"),
            ):  # fmt: skip
                answer = client.request(method, f"gradio_api/{path}", json={"data": [EASY_PROMPT, 0.5]})
                assert answer.status_code == 401, path
            assert client.get("config").status_code == 401
            assert client.get("openapi.json").status_code == 404
            shown = "".join(client.get(path).text for path in ("", "gradio_api/app_id", "theme.css"))
            assert page.name not in shown and "tradeoff" not in shown
            fields = {"username": "alice", "password": "s3cret"}
            assert client.post("login", data=fields).status_code == 200
            assert page.name in client.get("config").text  # with it all is there
    finally:
        blocks.close()


def test_twenty_people_at_once_get_their_own_answers(served, router):
    from gradio_client import Client

    prompts = [f"{HARD_PROMPT if i % 2 else EASY_PROMPT} {'bread ' * i}" for i in range(20)]
    client = Client(served.url, verbose=False)
    with ThreadPoolExecutor(20) as people:
        answers = list(people.map(lambda prompt: client.predict(prompt, 0.5, api_name="/predict"), prompts))
    for answer, score in zip(answers, router.score(prompts), strict=True):
        assert answer["superior_probability"] == pytest.approx(score, abs=1e-6)
        assert answer["route"] == ("superior" if score >= 0.5 else "inferior")


def test_a_browser_may_have_many_tabs(served, chromium):
    context = chromium.new_context()  # whose tabs share the six connections that a browser opens to a host
    for i in range(9):
        tab = context.new_page()
        tab.set_default_timeout(PATIENCE)
        tab.goto(served.url, wait_until="commit")
        wait_until_ready(tab)
        ask(tab, f"{HARD_PROMPT} {i}")
    assert len(context.pages) == 9
    context.close()


def test_a_scored_file_that_is_no_longer_in_memory_says_so(router, chromium, tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "MEMORY_HOURS", 3 / 3600)
    served = Served(router, tmp_path / "feedback.jsonl")
    tab = new_tab(chromium, served.url, [])
    (tmp_path / "a.txt").write_text(f"{HARD_PROMPT}\n{EASY_PROMPT}\n")
    tab.get_by_role("tab", name="A file").click()
    tab.set_input_files("#file input[type=file]", tmp_path / "a.txt")
    tab.wait_for_selector("#summary .stats")
    tab.wait_for_timeout(6000)
    tab.click("#download")
    tab.wait_for_selector(".toast-body.error")
    set_threshold(tab, 0.1)
    wait_for_text(tab, "#summary", "no longer there; choose it again")
    tab.context.close()
    served.close()


def test_ten_visitors_type_at_once(served, chromium):
    tabs = [start_tab(chromium, served.url, []) for _ in range(10)]
    for tab in tabs:
        wait_until_ready(tab)
    for i, tab in enumerate(tabs):
        tab.fill("#prompt textarea", (HARD_PROMPT if i % 2 else EASY_PROMPT) + f" {i}")
    for i, tab in enumerate(tabs):
        tab.wait_for_selector(f"#decision [data-decision={SUPERIOR if i % 2 else INFERIOR}]")
        tab.context.close()
