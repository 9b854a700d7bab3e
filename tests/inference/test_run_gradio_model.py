"""The page: what it answers, how it starts, and what a browser sees of it."""

import csv
import html
import json
import os
import re
import socket
import subprocess
import sys
import urllib.request
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import HARD, ROOT, save_checkpoint, tiny_tokenizer

from inference import run_gradio_model
from inference.page import html_parts
from inference.page.answers import Page, Prices, Validation, read_prompts
from inference.page.explain import LabelledPrompts, word_effects
from router_data import INFERIOR, SUPERIOR, InputError, read_rows
from router_model import Router, newest_checkpoint

SCRIPT = ROOT / "inference" / "run_gradio_model.py"
DOCUMENTED_NAME = "bert-base-uncased-router-finetuning-20240722T133228-save"
PRICES = Prices(inferior=0.5, superior=10, tokens=800)
EASY_PROMPT = "please open the door with apple and bread"
HARD_PROMPT = "please open the zorp with apple and bread"
PATIENCE = 15_000  # milliseconds
HOSTILE = (
    "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'></p></section><b id=injected>x</b>"
    " {{this}} {{{constructor}}} ${window.hacked = 1} `${window.hacked = 1}` \\u003cb\\u003e"
)


@pytest.fixture(scope="module")
def router(trained_checkpoint):
    return Router.load(trained_checkpoint)


@pytest.fixture(scope="module")
def page(router):
    return Page(router)


# Starting it


def test_help_imports_nothing_heavy():
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from inference.run_gradio_model import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print(sorted({'torch', 'transformers', 'datasets', 'gradio'} & set(sys.modules)))\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "--model_save_dir" in out
    assert out.splitlines()[-1] == "[]"


@contextmanager
def running(arguments: list[str], folder: Path, **environment: str):
    """The script as a user starts it; yields its last line and what it wrote to stderr by then."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "ROUTER_PAGE_AUTH": "", **environment}
    with open(folder / "stderr.txt", "w") as stderr:
        command = [sys.executable, str(SCRIPT), *arguments]
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=stderr, text=True)
    try:
        line = process.stdout.readline()
        yield line, (folder / "stderr.txt").read_text()
    finally:
        process.terminate()
        process.communicate()


def fetch(line: str) -> str:
    url = re.search(r"http://127\.0\.0\.1:\d+", line)[0]
    return urllib.request.urlopen(url, timeout=30).read().decode()


DOCUMENTED = ["--model_save_dir", f"./models/{DOCUMENTED_NAME}", "--hf_model_name", "bert-base-uncased"]


def test_documented_command_on_a_checkpoint_of_stage_3(tmp_path):
    settings = {"base_model": "bert-base-uncased", "max_length": 64}
    save_checkpoint(tmp_path / "models" / DOCUMENTED_NAME, settings=settings)
    with running(DOCUMENTED, tmp_path) as (line, stderr):
        assert DOCUMENTED_NAME in line and "torch" in line
        assert DOCUMENTED_NAME in fetch(line)
    assert "warning" not in stderr and "Traceback" not in stderr


def test_documented_command_on_a_plain_checkpoint_without_tokenizer(tmp_path):
    save_checkpoint(tmp_path / "models" / DOCUMENTED_NAME, labels=None, tokenizer=False)
    assert not list((tmp_path / "models" / DOCUMENTED_NAME).glob("*token*"))
    cache = tmp_path / "hub" / "models--bert-base-uncased"  # as a download of bert-base-uncased leaves it
    snapshot = cache / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    tiny_tokenizer(["what", "is", "door"]).save_pretrained(snapshot)
    (snapshot / "config.json").write_text('{"model_type": "bert"}')
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(snapshot.name)
    with running(DOCUMENTED, tmp_path, HF_HUB_CACHE=str(tmp_path / "hub")) as (line, stderr):
        assert DOCUMENTED_NAME in fetch(line)
    assert stderr.count("warning") == 1 and "no router.json" in stderr


def test_without_flags_the_newest_checkpoint_opens(tmp_path):
    for day in (1, 3, 2):
        folder = tmp_path / "models" / f"tiny-router-finetuning-2026010{day}T000000-save"
        save_checkpoint(folder, settings={"max_length": 64})
    with running([], tmp_path) as (line, _):
        assert "tiny-router-finetuning-20260103T000000-save" in line
        assert "tiny-router-finetuning-20260103T000000-save" in fetch(line)


def test_missing_model_folder_ends_in_one_line(tmp_path):
    done = subprocess.run([sys.executable, SCRIPT, *DOCUMENTED], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert DOCUMENTED_NAME in done.stderr and "finetune_bert.py" in done.stderr


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        (("EASY", "MIDDLE", "HARD"), "3 labels"),
        (("NEGATIVE", "POSITIVE"), "NEGATIVE"),
        ((SUPERIOR, INFERIOR), "not a router"),
    ],
)
def test_other_classifiers_are_refused(tmp_path, labels, named):
    save_checkpoint(tmp_path / "model", labels=labels)
    with pytest.raises(InputError, match=named):
        run_gradio_model.main(["--model_save_dir", str(tmp_path / "model")])


def test_a_checkpoint_without_tokenizer_asks_for_its_base(tmp_path):
    save_checkpoint(tmp_path / "model", tokenizer=False, settings={})
    with pytest.raises(InputError, match="--hf_model_name bert-base-uncased"):
        run_gradio_model.main(["--model_save_dir", str(tmp_path / "model")])


def test_a_taken_port_is_named_before_anything_is_loaded(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} .*--server_port"):
            run_gradio_model.main(["--model_save_dir", str(tmp_path / "none"), "--server_port", str(port)])


def test_a_threshold_beyond_1_is_refused():
    with pytest.raises(InputError, match=r"--threshold 1\.5"):
        run_gradio_model.main(["--threshold", "1.5"])


@pytest.mark.parametrize("value", ["alice", "alice:", ":secret"])
def test_a_malformed_login_is_refused_and_not_repeated(monkeypatch, value):
    monkeypatch.setenv("ROUTER_PAGE_AUTH", value)
    with pytest.raises(InputError) as error:
        run_gradio_model.main([])
    assert "user:password" in str(error.value)
    assert "secret" not in str(error.value) and "alice" not in str(error.value)


@pytest.fixture
def launched(monkeypatch):
    """What `main` would have served, with nothing served."""
    given = {}

    class Blocks:
        def block_thread(self):
            pass

    def launch(page, server_name, server_port, share, auth):
        given.update(page=page, server_name=server_name, share=share, auth=auth)
        return Blocks(), f"http://{server_name}:7860/", None

    monkeypatch.setattr(run_gradio_model, "launch", launch)
    monkeypatch.setenv("ROUTER_PAGE_AUTH", "")
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    return given


def test_localhost_takes_feedback_and_does_not_warn(launched, trained_checkpoint, capsys):
    run_gradio_model.main(["--model_save_dir", str(trained_checkpoint)])
    assert launched["server_name"] == "127.0.0.1" and launched["auth"] is None
    assert launched["page"].feedback_file.match("final-datasets/router_dataset_labelled-*.jsonl")
    assert launched["page"].threshold == 0.5
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "http://127.0.0.1:7860/" in captured.out.splitlines()[-1]


@pytest.mark.parametrize("flags", [["--server_name", "0.0.0.0"], ["--share"]])
def test_beyond_localhost_there_is_no_feedback_and_a_warning(launched, trained_checkpoint, capsys, flags):
    run_gradio_model.main(["--model_save_dir", str(trained_checkpoint), "--threshold", "0.3", *flags])
    assert launched["page"].feedback_file is None
    assert launched["page"].threshold == 0.3
    assert "ROUTER_PAGE_AUTH" in capsys.readouterr().err


def test_a_login_from_the_environment_silences_the_warning(launched, trained_checkpoint, capsys, monkeypatch):
    monkeypatch.setenv("ROUTER_PAGE_AUTH", "alice:pass:word")
    run_gradio_model.main(["--model_save_dir", str(trained_checkpoint), "--server_name", "0.0.0.0", "--feedback"])
    assert launched["auth"] == ("alice", "pass:word")
    assert launched["page"].feedback_file is not None
    captured = capsys.readouterr()
    assert captured.err == "" and "pass:word" not in captured.out


# Why


def test_the_responsible_word_has_the_largest_effect(router):
    for word in HARD:
        spans = word_effects(router, f"please open the {word}, with the apple and the bread.")
        assert "".join(span.text for span in spans) == f"please open the {word}, with the apple and the bread."
        strongest = max(spans, key=lambda span: span.log_odds)
        assert strongest.text == f"{word},"
        assert strongest.probability > 0.5
        others = [span.log_odds for span in spans if span is not strongest]
        assert max(others) < strongest.log_odds / 3


def test_effects_are_what_leaving_the_word_out_changes(router):
    spans = [span for span in word_effects(router, "the zorp is bread") if span.text.strip()]
    full, without = router.score(["the zorp is bread", "the is bread"])
    assert spans[1].text == "zorp"
    assert spans[1].probability == pytest.approx(full - without, abs=1e-6)


def test_a_long_prompt_is_explained_in_few_pieces_without_its_middle(router):
    spans = word_effects(router, "zorp " + "bread " * 5000 + "door")
    assert len(spans) < 200
    text = "".join(span.text for span in spans)
    assert text.startswith("zorp bread") and text.endswith("bread door")
    assert text.count("…") == 1 and len(text) < 1000


@pytest.mark.parametrize("prompt", ["", "   ", "🙂🙂", "x" * 100_000, "春天的诗"])
def test_strange_prompts_have_an_explanation(router, prompt):
    assert np.isfinite([span.log_odds for span in word_effects(router, prompt)]).all()


def test_nearest_labelled_prompts_come_from_the_checkpoint_and_its_training_files(tmp_path, trained_checkpoint):
    labelled = LabelledPrompts.of_checkpoint(trained_checkpoint)
    nearest = labelled.nearest("tell me what a vlam is")[0]
    assert (nearest.prompt, nearest.label) == ("what is a zorp with a vlam", SUPERIOR)
    assert labelled.nearest("tell me jokes about winter") == []

    training = tmp_path / "train.jsonl"
    training.write_text(json.dumps({"prompt": "jokes about winter", "label": INFERIOR}) + "\n")
    (tmp_path / "run.json").write_text(json.dumps({"train_files": [str(training), "gone.jsonl"]}))
    nearest = LabelledPrompts.of_checkpoint(tmp_path).nearest("tell me jokes about winter")
    assert [near.prompt for near in nearest] == ["jokes about winter"]


def test_the_index_of_labelled_prompts_is_made_once_whoever_asks_first(monkeypatch):
    from sklearn.feature_extraction.text import TfidfVectorizer

    made, fit = [], TfidfVectorizer.fit_transform
    monkeypatch.setattr(TfidfVectorizer, "fit_transform", lambda *given: made.append(1) or fit(*given))
    labelled = LabelledPrompts({"jokes about winter": INFERIOR, "what is a vlam": SUPERIOR})
    assert not made  # the page does not wait for it
    with ThreadPoolExecutor(4) as pool:
        pool.submit(labelled.index)
        found = list(pool.map(labelled.nearest, ["winter jokes"] * 8))
    assert {near[0].prompt for near in found} == {"jokes about winter"} and len(made) == 1


def test_notes_name_what_makes_a_score_doubtful(page, monkeypatch):
    def notes(prompt):
        return " ".join(page.notes(prompt, page.decide(prompt)))

    assert notes("what is a door with a vlam and the bread") == ""
    assert "30,000 characters" in notes("bread " * 5000)
    assert "unknown to the model" in notes("🙂🙂🙂")
    assert "labelled prompts" not in notes(EASY_PROMPT)
    monkeypatch.setattr(page, "labelled", LabelledPrompts({"what is it": INFERIOR, "wie spät ist es": INFERIOR}))
    assert "0% of these words" in notes(EASY_PROMPT)


# What the threshold means


def test_validation_figures_by_hand():
    validation = Validation(np.array([0.1, 0.4, 0.6, 0.9]), np.array([0.0, 0.5, 0.5, 1.0]))
    assert validation.share(0.5) == 0.5
    assert validation.quality(0.5).value == pytest.approx((1 + 1 + 1 + 0.5) / 4)
    assert validation.quality(0.5).low < validation.quality(0.5).value <= validation.quality(0.5).high
    assert validation.at_random(0.5) == pytest.approx(0.5 + 0.5 * 0.5)
    assert (validation.share(0.9), validation.share(0.901), validation.quality(0).value) == (0.25, 0, 1)


def test_money_by_hand():
    assert PRICES.per_thousand(0) == pytest.approx(0.4)
    assert PRICES.per_thousand(1) == pytest.approx(8)
    assert PRICES.per_thousand(0.25) == pytest.approx(2.3)
    assert Prices.of([None, 10, 800]).per_thousand(0) == 0


def test_the_threshold_is_shown_as_share_quality_and_money(page):
    shown = html.unescape(page.tradeoff(0.5, PRICES))
    for figure in ("50%", "90.0%", "random: 75.0%", "$4.20", "48% less than $8.00", "10 validation prompts"):
        assert figure in shown
    assert list(page.presets()) == [
        "as started (0.50)",
        "at most 10% superior (0.95)",
        "at least 95% quality (0.15)",
    ]


def test_a_bare_folder_shows_what_it_can(tmp_path):
    with pytest.warns(UserWarning, match=r"no router\.json"):
        page = Page(Router.load(save_checkpoint(tmp_path / "bare", labels=None)))
    assert "$0.40 and $8.00" in html.unescape(page.tradeoff(0.5, PRICES))
    words, near = page.why("what is a door")
    assert "door" in words and near == ""


def test_a_broken_validation_file_is_left_out_with_a_warning(tmp_path):
    (tmp_path / "validation_predictions.jsonl").write_text('{"prompt": "x"}\n')
    with pytest.warns(UserWarning, match="superior_probability"):
        assert Validation.read(tmp_path / "validation_predictions.jsonl") is None


# A file


def test_files_of_each_kind_are_scored_and_written_back(page, tmp_path):
    jsonl, table, text = tmp_path / "a.jsonl", tmp_path / "a.csv", tmp_path / "a.txt"
    jsonl.write_text(
        json.dumps({"prompt": HARD_PROMPT, "id": 7}) + '\n\n{"prompt": " "}\n' + json.dumps({"prompt": EASY_PROMPT})
    )
    table.write_text(f'id,prompt\n7,"{HARD_PROMPT}"\n8, \n9,"{EASY_PROMPT}"\n')
    text.write_text(f"{HARD_PROMPT}\n\n{EASY_PROMPT}\n")
    hard, easy = page.router.score([HARD_PROMPT, EASY_PROMPT])
    assert hard > 0.7 and easy < 0.3

    for path in (jsonl, table, text):
        seen = []
        scored = page.score_file(path, lambda done, text, seen=seen: seen.append(done))
        assert seen and list(scored.of_prompts) == pytest.approx([hard, easy])
        summary = html.unescape(page.file_summary(scored, 0.5, PRICES))
        assert "50%" in summary and "$0.0084" in summary and "<svg" in summary
        assert ("1 blank" in summary) == (path is not text)
        written = page.write_scored(scored, 0.5)
        assert written.name == ("a-scored.csv" if path is table else "a-scored.jsonl")
        with open(written, newline="") as file:
            rows = list(csv.DictReader(file) if path is table else map(json.loads, file))
        routes = {row["prompt"].strip(): row["route"] for row in rows}
        assert routes[HARD_PROMPT] == "superior" and routes[EASY_PROMPT] == "inferior"
        assert not routes.get("")
        assert path is text or str(rows[0]["id"]) == "7"
    assert page.write_scored(scored, 1.0).parent != written.parent


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"prompt": "x"}\n{"prompt": \n', "line 2: not JSON"),
        ("a.jsonl", b'{"text": "x"}\n', "line 1: no text named prompt"),
        ("a.csv", b"question\nx\n", "no column named prompt, but question"),
        ("a.txt", b"\xff\xfe\x00", "not UTF-8"),
        ("a.txt", b"\n \n", "holds no prompt"),
    ],
)
def test_a_bad_file_is_answered_in_one_line(page, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        page.score_file(tmp_path / name)


def test_a_csv_may_be_as_excel_writes_it(tmp_path):
    (tmp_path / "a.csv").write_bytes('\ufeffprompt,n\r\n"two\r\nlines, é",1\r\n'.encode())
    assert read_prompts(tmp_path / "a.csv") == [{"prompt": "two\r\nlines, é", "n": "1"}]


# Feedback


def test_feedback_is_a_labelled_prompt_and_a_second_opinion_replaces_it(router, tmp_path):
    file = tmp_path / "final-datasets" / "router_dataset_labelled-human-feedback.jsonl"
    page = Page(router, feedback_file=file)
    hard, easy = page.decide(HARD_PROMPT), page.decide(EASY_PROMPT)
    page.give_feedback(HARD_PROMPT, hard, 0.5, right=True)
    page.give_feedback(EASY_PROMPT, easy, 0.5, right=False)
    page.give_feedback(EASY_PROMPT, easy, 0.0, right=False)  # at this threshold it goes to the superior model
    page.give_feedback("  " + HARD_PROMPT.upper(), hard, 0.5, right=False)
    rows = list(read_rows(file))
    assert [(row.prompt, row.label) for row in rows] == [
        (EASY_PROMPT, INFERIOR),
        ("  " + HARD_PROMPT.upper(), INFERIOR),
    ]
    assert {row.labelled_by for row in rows} == {"human"}
    assert all(row.superior_probability is None and row.labelled_at.endswith("+00:00") for row in rows)
    assert file.read_bytes().endswith(b"\n")


# What a browser makes of it


def test_user_text_becomes_inert():
    inert = html_parts.safe(HOSTILE)
    assert not set("<>{}$`\\'\"") & set(inert)


@pytest.fixture(scope="module")
def served(router, tmp_path_factory):
    """A page that is being served, with its URL and the file its feedback goes to."""
    file = tmp_path_factory.mktemp("final-datasets") / "router_dataset_labelled-human-feedback.jsonl"
    blocks, url, _ = run_gradio_model.launch(Page(router, feedback_file=file), "127.0.0.1", None, False, None)
    yield url, file
    blocks.close()


@pytest.fixture
def tab(served, chromium):
    """A browser tab with the page, which fails the test if anything is asked of another host or a script fails."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    tab = context.new_page()
    tab.set_default_timeout(PATIENCE)
    problems = []
    tab.on(
        "request", lambda request: request.url.startswith((served[0], "data:", "blob:")) or problems.append(request.url)
    )
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("dialog", lambda dialog: (problems.append(dialog.message), dialog.dismiss()))
    open_page(tab, served[0])
    yield tab
    context.close()
    assert problems == []


def open_page(tab, url: str) -> None:
    tab.goto(url)
    tab.wait_for_selector("#decision .card")


def ask(tab, prompt: str) -> dict[str, float]:
    """Type a prompt and read both probabilities off the page."""
    tab.fill("#prompt textarea", "")
    tab.wait_for_selector("#decision .card:not([data-decision])")
    tab.fill("#prompt textarea", prompt)
    tab.wait_for_selector("#decision .card[data-decision]")
    parts = tab.locator("#decision .probabilities [data-label]").all()
    return {part.locator("dt").inner_text(): float(part.locator("dd").inner_text()) for part in parts}


def explain(tab) -> None:
    tab.click("#explain")
    tab.wait_for_selector("#words .words")


def set_threshold(tab, value: float) -> None:
    box = tab.locator("#threshold input[type=number]")
    box.fill(str(value))
    box.press("Enter")
    box.blur()


def screenshot(tab, name: str) -> None:
    """Kept only where ROUTER_SCREENSHOTS names a folder."""
    if folder := os.environ.get("ROUTER_SCREENSHOTS"):
        tab.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


@pytest.mark.browser
def test_browser_decides_as_one_types_and_explains_on_demand(tab, router):
    easy = ask(tab, EASY_PROMPT)
    assert "inferior model will do" in tab.inner_text("#decision h2")
    hard = ask(tab, HARD_PROMPT)
    assert "needs the superior model" in tab.inner_text("#decision h2")
    expected = router.score([EASY_PROMPT, HARD_PROMPT])
    for probabilities, superior in ((easy, expected[0]), (hard, expected[1])):
        assert probabilities[SUPERIOR] == pytest.approx(superior, abs=6e-4)
        assert probabilities[INFERIOR] == pytest.approx(1 - superior, abs=6e-4)
    assert router.model_save_dir.name in tab.inner_text("header")

    explain(tab)
    marks = {mark.inner_text(): float(mark.get_attribute("data-effect")) for mark in tab.locator("#words mark").all()}
    assert max(marks, key=marks.get) == "zorp"
    assert "Towards superior: zorp (+0." in tab.inner_text("#words")
    assert "inferior please open the door" in tab.inner_text("#near")

    tab.focus("#prompt textarea")
    tab.keyboard.type(" door")  # the explanation is out of date at once, the decision follows
    tab.wait_for_selector("#words .words", state="detached")
    tab.keyboard.press("Shift+Enter")
    tab.wait_for_selector("#words .words")
    assert tab.inner_text("#words .words").endswith("door")


@pytest.mark.browser
def test_browser_runs_an_example(tab):
    tab.get_by_role("button", name="What is the capital of France?").click()
    tab.wait_for_selector("#words .words")
    assert tab.input_value("#prompt textarea") == "What is the capital of France?"
    assert tab.locator("#decision .card").get_attribute("data-decision") in (INFERIOR, SUPERIOR)


@pytest.mark.browser
@pytest.mark.parametrize(
    ("prompt", "note"),
    [
        (HOSTILE, "words occur|unknown"),
        ("🙂🙂🙂", "unknown to the model"),
        ("bread " * 175_000, "1,050,000 characters"),
    ],
    ids=["html", "emoji", "megabyte"],
)
def test_browser_takes_strange_prompts(tab, prompt, note):
    assert sum(ask(tab, prompt).values()) == pytest.approx(1, abs=0.002)
    explain(tab)
    assert re.search(note, tab.inner_text("#decision"))
    assert tab.evaluate("window.hacked") is None
    assert tab.locator("#injected, #decision img, #words img").count() == 0
    if prompt is HOSTILE:
        assert "<script>window.hacked = 1</script>" in tab.inner_text("#words")
        assert "{{this}} {{{constructor}}} ${window.hacked = 1}" in tab.inner_text("#words")


@pytest.mark.browser
def test_browser_blank_prompt_is_no_decision(tab):
    tab.fill("#prompt textarea", "  \n ")
    tab.click("#explain")
    tab.wait_for_timeout(300)
    assert tab.locator("#decision [data-decision]").count() == 0
    assert tab.locator("#words .words").count() == 0


@pytest.mark.browser
def test_browser_threshold_moves_the_decision_and_the_figures(tab):
    superior = ask(tab, EASY_PROMPT)[SUPERIOR]
    set_threshold(tab, 0)
    tab.wait_for_selector(f"#decision [data-decision={SUPERIOR}]")
    assert "100%" in tab.inner_text("#figures") and "$8.00" in tab.inner_text("#figures")
    set_threshold(tab, 0.5)
    tab.wait_for_selector(f"#decision [data-decision={INFERIOR}]")
    assert "90.0%" in tab.inner_text("#figures") and "$4.20" in tab.inner_text("#figures")
    assert superior < 0.5

    tab.locator("#threshold input[type=range]").focus()
    tab.keyboard.press("ArrowRight")
    tab.wait_for_function("document.querySelector('#decision').innerText.includes('from 0.501 on')")

    tab.get_by_label("Thresholds that meet a target").click()
    tab.get_by_role("option", name="at most 10% superior (0.95)").click()
    tab.wait_for_function("document.querySelector('#decision').innerText.includes('from 0.950 on')")
    assert "10%" in tab.inner_text("#figures") and "$1.16" in tab.inner_text("#figures")

    tab.get_by_role("button", name="Prices").click()
    tab.get_by_label("Superior model, $ per million tokens").fill("20")
    tab.wait_for_function("document.querySelector('#figures').innerText.includes('$16.00')")


@pytest.mark.browser
def test_browser_scores_a_file_of_10000_prompts(tab, tmp_path):
    rows = [{"prompt": f"{HARD_PROMPT if i % 4 == 0 else EASY_PROMPT} {i}", "id": i} for i in range(10_000)]
    (tmp_path / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tab.get_by_role("tab", name="A file").click()
    tab.set_input_files("#file input[type=file]", tmp_path / "many.jsonl")
    tab.wait_for_selector(".progress-bar", timeout=20_000)
    tab.wait_for_selector("#summary .stats", timeout=120_000)
    summary = tab.inner_text("#summary")
    assert "10,000" in summary and "25%" in summary and "2,500 prompts" in summary
    assert tab.locator("#summary svg rect").count() == 20
    screenshot(tab, "page-file")
    with tab.expect_download() as download:
        tab.click("#download")
    assert download.value.suggested_filename == "many-scored.jsonl"
    written = [json.loads(line) for line in Path(download.value.path()).read_text().splitlines()]
    assert [row["id"] for row in written] == list(range(10_000))
    assert [row["route"] for row in written[:4]] == ["superior", "inferior", "inferior", "inferior"]
    set_threshold(tab, 0)
    tab.wait_for_function("document.querySelector('#summary').innerText.includes('100%')")
    with tab.expect_download() as download:
        tab.click("#download")
    assert json.loads(Path(download.value.path()).read_text().splitlines()[1])["route"] == "superior"


@pytest.mark.browser
def test_browser_names_the_line_of_a_bad_file(tab, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"prompt": "x"}\n<img src=x onerror="window.hacked=1">\n')
    tab.get_by_role("tab", name="A file").click()
    tab.set_input_files("#file input[type=file]", tmp_path / "bad.jsonl")
    tab.wait_for_selector("#summary .error")
    assert "line 2: not JSON" in tab.inner_text("#summary")
    assert not tab.locator("#download").is_visible()
    set_threshold(tab, 0.3)
    tab.wait_for_selector("#figures .stats")
    assert "line 2: not JSON" in tab.inner_text("#summary")


@pytest.mark.browser
def test_browser_feedback_becomes_a_row(tab, served):
    ask(tab, HARD_PROMPT)
    tab.get_by_role("button", name="Wrong").click()
    tab.wait_for_selector("#noted .note")
    row = list(read_rows(served[1]))[-1]
    assert (row.prompt, row.label, row.labelled_by) == (HARD_PROMPT, INFERIOR, "human")
    ask(tab, EASY_PROMPT)
    tab.wait_for_selector("#noted .note", state="detached")
    tab.get_by_role("button", name="Right").click()
    tab.wait_for_selector("#noted .note")
    assert [row.label for row in read_rows(served[1])] == [INFERIOR, INFERIOR]


@pytest.mark.browser
def test_browser_has_no_feedback_buttons_where_it_is_off(router, chromium):
    blocks, url, _ = run_gradio_model.launch(Page(router), "127.0.0.1", None, False, None)
    tab = chromium.new_page()
    try:
        open_page(tab, url)
        tab.wait_for_selector("#explain")
        assert tab.get_by_role("button", name="Wrong").count() == 0
    finally:
        tab.close()
        blocks.close()


@pytest.mark.browser
def test_browser_works_by_keyboard_and_for_screen_readers(tab):
    tab.focus("#prompt textarea")
    tab.keyboard.type(HARD_PROMPT)
    tab.wait_for_selector("#decision [data-decision]")
    reached = []
    for _ in range(16):
        tab.keyboard.press("Tab")
        reached.append(tab.evaluate("document.activeElement.closest('[id]:not([id^=component])')?.id"))
    assert [name for name in ("explain", "right", "wrong", "threshold", "presets") if name not in reached] == []
    assert tab.locator("#decision[role=status], #decision [role=status]").count() == 1
    assert "Superior probability" in tab.locator("#decision .bar").get_attribute("aria-label")
    nameless = tab.evaluate(
        """[...document.querySelectorAll('input:not([type=file]), textarea, button')].filter(e => e.checkVisibility()
           && !(e.ariaLabel || e.title || e.innerText?.trim() || e.labels?.length || e.getAttribute('aria-labelledby')))
           .map(e => e.outerHTML)"""
    )
    assert nameless == []


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_browser_phone_and_dark_mode(served, chromium, scheme):
    context = chromium.new_context(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    tab = context.new_page()
    open_page(tab, served[0])
    ask(tab, HARD_PROMPT)
    explain(tab)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    for name in ("#explain", "#right", "#wrong"):
        box = tab.locator(name).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390
    colour = tab.evaluate("getComputedStyle(document.querySelector('#decision .card')).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", colour)[:3])) / 3
    assert (brightness < 80) == (scheme == "dark")
    context.close()


@pytest.mark.browser
def test_browser_asks_for_the_login(router, chromium):
    blocks, url, _ = run_gradio_model.launch(Page(router), "127.0.0.1", None, False, ("alice", "s3cret"))
    context = chromium.new_context()
    tab = context.new_page()
    try:
        tab.goto(url)
        for password, inside in (("wrong", 0), ("s3cret", 1)):
            tab.get_by_label("username").fill("alice")
            tab.get_by_label("password").fill(password)
            tab.get_by_role("button", name="Login").click()
            tab.wait_for_timeout(1500)
            assert tab.locator("#prompt").count() == inside
        assert "zorp" not in tab.content()
    finally:
        context.close()
        blocks.close()


def test_twenty_people_at_once_get_their_own_answers(served, router):
    from gradio_client import Client

    prompts = [f"{HARD_PROMPT if i % 2 else EASY_PROMPT} {'bread ' * i}" for i in range(20)]
    client = Client(served[0], verbose=False)

    def answer(prompt: str) -> str:
        return client.predict(prompt, 0.5, 0.5, 10, 800, api_name="/explain")[0]

    with ThreadPoolExecutor(20) as people:
        cards = list(people.map(answer, prompts))
    for card, probability in zip(cards, router.score(prompts), strict=True):
        assert f"<dd>{probability:.3f}</dd>" in card


@pytest.mark.browser
@pytest.mark.skipif("ROUTER_SCREENSHOTS" not in os.environ, reason="names the folder for the README's pictures")
def test_screenshots_of_the_newest_checkpoint(chromium):
    blocks, url, _ = run_gradio_model.launch(
        Page(Router.load(newest_checkpoint(ROOT / "models")), feedback_file=Path("feedback.jsonl")),
        "127.0.0.1",
        None,
        False,
        None,
    )
    for name, width, scheme in (("page", 1200, "light"), ("page-dark", 1200, "dark"), ("page-phone", 390, "light")):
        context = chromium.new_context(
            viewport={"width": width, "height": 800}, color_scheme=scheme, device_scale_factor=2
        )
        tab = context.new_page()
        open_page(tab, url)
        ask(tab, run_gradio_model.EXAMPLES[3])
        explain(tab)
        tab.wait_for_timeout(500)
        screenshot(tab, name)
        context.close()
    blocks.close()
