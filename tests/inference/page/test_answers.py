"""What the page answers about a prompt and a threshold."""

import html
import json
import shutil
import warnings

import pytest
from conftest import save_checkpoint

from inference.page import html_parts
from inference.page.answers import FOLLOW_UP, Page
from router_data import INFERIOR, SUPERIOR, Prices, read_rows
from router_model import TRADEOFF_FILE, Router, RouterSettings

PRICES = Prices(inferior=0.5, superior=10, tokens_per_prompt=800)
EASY_PROMPT = "please open the door with apple and bread"
HARD_PROMPT = "please open the zorp with apple and bread"
HOSTILE = (
    "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'></p></section><b id=injected>x</b>"
    " {{this}} {{{constructor}}} ${window.hacked = 1} `${window.hacked = 1}` \\u003cb\\u003e"
)


def card(page, prompt, threshold=0.5, prices=PRICES, kept=None):
    return html.unescape(page.card(prompt, page.decide(prompt), threshold, prices, kept))


def test_both_probabilities_come_first_and_the_bar_has_their_lengths(page):
    score = page.decide(HARD_PROMPT).router_score
    shown = card(page, HARD_PROMPT)
    assert shown.index(f"{1 - score:.1%}") < shown.index(f"{score:.1%}") < shown.index("This needs the superior model")
    assert f'part inferior" style="width:{1 - score:.4%}"' in shown and f"width:{score:.4%}" in shown
    assert 'mark" style="left:50.0000%"' in shown and "threshold 50.0%" in shown
    assert f'data-decision="{SUPERIOR}"' in shown and f'data-checksum="{html_parts.checksum(HARD_PROMPT)}"' in shown
    assert "The inferior model will do" in card(page, EASY_PROMPT)


def test_a_note_says_that_a_request_was_found_in_a_frame(finding_router, tmp_path):
    page = Page(finding_router, feedback_file=tmp_path / "feedback.jsonl")
    framed = "zorp zorp please open the door zorp"
    assert "only that part, 6 tokens, was scored" in " ".join(page.notes(framed, page.decide(framed)))
    assert page.notes("please open the door", page.decide("please open the door")) == []
    (note,) = page.notes(long := framed + " zorp" * 5000, page.decide(long))  # not that beginning and end were scored
    assert "only that part, 6 tokens, was scored" in note
    answers = [page.predict(prompt) for prompt in (framed, "please open the door")]
    assert [answer["framed"] for answer in answers] == [True, False]


@pytest.mark.parametrize(("threshold", "label"), [(0.0, SUPERIOR), (1.0, INFERIOR)])
def test_the_threshold_moves_the_decision_and_the_mark(page, threshold, label):
    shown = card(page, HARD_PROMPT, threshold)
    assert f'data-decision="{label}"' in shown and f'mark" style="left:{1 - threshold:.4%}"' in shown


def test_the_cost_of_a_route_in_words(page):
    assert "A thousand such prompts cost $0.40 instead of $8.00." in card(page, EASY_PROMPT)
    assert "A thousand such prompts cost $8.00." in card(page, HARD_PROMPT)


def test_a_prompt_is_compared_with_the_one_that_was_kept(page):
    kept = (EASY_PROMPT, page.decide(EASY_PROMPT))
    points = 100 * (page.decide(HARD_PROMPT).router_score - kept[1].router_score)
    assert f"Superior {points:+.1f} percentage points against the prompt kept" in card(page, HARD_PROMPT, kept=kept)
    assert EASY_PROMPT in page.kept_card(kept, 0.5) and page.kept_card(None, 0.5) == ""
    assert "Superior −" in card(page, EASY_PROMPT, kept=(HARD_PROMPT, page.decide(HARD_PROMPT)))


def test_notes_name_what_makes_a_score_doubtful(page):
    def notes(prompt):
        return " ".join(page.notes(prompt, page.decide(prompt)))

    assert notes("what is a door with a vlam and the bread") == ""
    assert "30,000 characters. It was cut" in notes("bread " * 5000)
    assert "cannot read most of this text" in notes("🙂🙂🙂") and "go to the superior model" in notes("🙂🙂🙂")
    for prompt in ("and the door?", "What about the door?"):
        assert "looks like a follow-up" in notes(prompt)
    assert "follow-up" not in notes("what is the door")


@pytest.mark.parametrize("prompt", [
    *("and why?", "continue", "make it shorter", "Why?", "what about Rome?", "go on."),
    *("prove it", "Prove that, please", "explain this."),
    *("Make that more formal", "translate this to French", "fix that", "make this longer"),
])  # fmt: skip
def test_follow_ups_are_known_by_their_beginning(prompt):
    assert FOLLOW_UP.match(prompt)


@pytest.mark.parametrize("prompt", [
    *("explain gravity", "Why is the sky blue?", "more bread, please", "android phones"),
    *("Prove that sqrt(2) is irrational", "prove that for all n, n^2 >= n", "Explain that joke about entropy"),
    *("translate this to French: good morning", "Fix this code:\nprint(x", "Prove this identity of Euler's"),
])  # fmt: skip
def test_requests_that_stand_alone_are_no_follow_ups(prompt):
    assert not FOLLOW_UP.match(prompt)


def test_an_unreadable_prompt_goes_where_router_json_says(checkpoint, page):
    assert "Sent to the superior model, whatever the score" in card(page, "🙂🙂🙂", threshold=1.0)
    loaded = Router.load(checkpoint)
    loaded.settings = RouterSettings(**loaded.settings.model_dump() | {"unfamiliar_route": "score"})
    other = Page(loaded)
    assert "whatever the score" not in card(other, "🙂🙂🙂", threshold=1.0)
    assert "Such prompts go" not in card(other, "🙂🙂🙂")


def test_predict_gives_route_and_numbers_by_name(page):
    answer = page.predict(HARD_PROMPT, 0.3)
    assert (answer["route"], answer["router_label"], answer["threshold"]) == ("superior", SUPERIOR, 0.3)
    assert answer["superior_probability"] + answer["inferior_probability"] == pytest.approx(1)
    assert page.predict(EASY_PROMPT)["threshold"] == 0.5
    for prompt, threshold in ((" ", 0.5), ("x", 7), ("x", float("nan"))):
        with pytest.raises(ValueError, match="blank|between 0 and 1"):
            page.predict(prompt, threshold)


def test_presets_keep_their_names_and_others_are_custom(page):
    assert list(page.presets()) == [
        "as started (50.0%)",
        "at most 10% superior (95.0%)",
        "at least 95% quality (15.0%)",
    ]
    assert page.preset_of(0.95) == "at most 10% superior (95.0%)" and page.preset_of(0.4) is None


def test_the_threshold_is_shown_as_share_quality_and_money(page):
    shown = html.unescape(page.figures(0.5, PRICES))
    for figure in ("50%", "88.3%", "95% interval 83.3% to 88.3%", "at random 80.0%", "$4.20", "48% less than $8.00"):
        assert figure in shown
    assert "Measured on 10 validation prompts, quality expected from the soft labels." in shown
    assert set(page.curve(0.5)["line"]) == {"this router", "at random", "threshold"}
    assert page.curve(0.5).query("line == 'threshold'")["share"].tolist() == [0.5, 0.5]


def test_the_guarantee_and_the_verdict_stand_beside_the_threshold(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / checkpoint.name)
    settings = json.loads((folder / "router.json").read_text())
    settings["thresholds"]["at_least_95_percent_quality_with_90_percent_confidence"] = 0.3
    (folder / "router.json").write_text(json.dumps(settings))
    verdict = {
        "pays": True, "sentences": ["At the threshold 0.5 <b>half</b> is saved.", "Routing pays."], "rows": 40,
        "measured_on": "shop: 40 prompts", "threshold": 0.5, "superior_share": 0.5, "quality": 0.9,
        "quality_low": 0.8, "quality_high": 0.95, "evaluated_at": "2026-01-02T00:00:00+00:00",
    }  # fmt: skip
    (folder / "verdict.json").write_text(json.dumps(verdict))
    page = Page(Router.load(folder))
    assert "<b>half" not in page.figures(0.5, PRICES)
    judged, guaranteed = (html.unescape(page.figures(threshold, PRICES)) for threshold in (0.5, 0.3))
    for text in ("<b>half</b> is saved.", "Routing pays.", "Judged on shop: 40 prompts."):
        assert text in judged and text in guaranteed
    assert "judged at the threshold 50.0%, not at this one" in guaranteed and "not at this one" not in judged
    promise = "t least 95% quality with 90% confidence"
    assert f"A{promise}, on new prompts like those" in guaranteed
    assert f"None at this threshold; a{promise} is guaranteed at 30.0%." in judged


def test_without_guarantee_and_verdict_nothing_is_said_of_them(page):
    assert "Guarantee" not in page.figures(0.5, PRICES) and "pay?" not in page.figures(0.5, PRICES)


def test_a_dearer_inferior_model_costs_more(page):
    dearer = Prices(inferior=10, superior=2, tokens_per_prompt=800)
    assert "200% more than $1.60" in html.unescape(page.figures(0.5, dearer))
    free = Prices(inferior=0, superior=0, tokens_per_prompt=0)
    assert "$0.00" in html.unescape(page.figures(0.5, free))


def test_no_difference_in_cost_is_said_so(page):
    assert "as much as $8.00" in html.unescape(page.figures(0.0, PRICES))  # everything goes to the superior model


def test_an_old_checkpoint_shows_what_it_can(tmp_path):
    with pytest.warns(UserWarning, match=r"no router\.json"):
        page = Page(Router.load(save_checkpoint(tmp_path / "bare", labels=None)))
    shown = html.unescape(page.figures(0.5, PRICES))
    assert "no tradeoff.json" in shown and "$0.40 and $8.00" in shown and page.curve(0.5) is None
    assert page.words("what is a door")[0] and page.near("what is a door", is_local=True) == ""
    (tmp_path / "bare" / TRADEOFF_FILE).write_text("{")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert Page(Router.load(tmp_path / "bare")).tradeoff is None
    assert any("tradeoff.json is not used" in str(warning.message) for warning in caught)


def test_labelled_prompts_are_shown_on_this_machine_only(router):
    page = Page(router)
    assert "0 of 12 are read" in page.near(HARD_PROMPT, is_local=True)
    page.labelled.index()
    assert "please open the door" in page.near("please open the door", is_local=True)
    assert page.near("please open the door", is_local=False) == ""


def test_words_are_coloured_by_side_and_strength(page):
    words, pushes = page.words(HARD_PROMPT)
    assert ("zorp", "strongly superior") in words and "".join(text for text, _ in words) == HARD_PROMPT
    assert "Towards superior</b>: <bdi>zorp</bdi> <bdi>(+0." in pushes


def test_user_text_becomes_inert(page):
    assert not set("<>{}$`\\'\"") & set(html_parts.safe(HOSTILE))
    decision = page.decide(HOSTILE)
    for shown in (
        page.card(HOSTILE, decision, 0.5, PRICES),
        page.kept_card((HOSTILE, decision), 0.5),
        page.words(HOSTILE)[1],
    ):
        assert "<script" not in shown and "<img" not in shown and "${" not in shown


def test_small_shares_are_not_nothing():
    assert [html_parts.percent(p) for p in (0, 0.0001, 0.024, 0.99999, 1)] == [
        "0.0%",
        "< 0.1%",
        "2.4%",
        "> 99.9%",
        "100.0%",
    ]
    assert html_parts.checksum("ü\ud800") == html_parts.checksum("ü\ufffd")


def test_feedback_is_a_labelled_prompt_and_a_second_opinion_replaces_it(router, tmp_path):
    file = tmp_path / "final-datasets" / "router_dataset_labelled-human-feedback.jsonl"
    page = Page(router, feedback_file=file)
    hard, easy = page.decide(HARD_PROMPT), page.decide(EASY_PROMPT)
    page.give_feedback(HARD_PROMPT, hard, 0.5, right=True, user=None)
    page.give_feedback(EASY_PROMPT, easy, 0.5, right=False, user=None)
    page.give_feedback(EASY_PROMPT, easy, 0.0, right=False, user=None)  # at this threshold it goes to the superior one
    page.give_feedback("  " + HARD_PROMPT.upper(), hard, 0.5, right=False, user="alice")
    rows = list(read_rows(file))
    assert [(row.prompt, row.label) for row in rows] == [
        (EASY_PROMPT, INFERIOR),
        ("  " + HARD_PROMPT.upper(), INFERIOR),
    ]
    assert {row.labelled_by for row in rows} == {"human"}
    assert all(row.superior_probability is None and row.labelled_at.endswith("+00:00") for row in rows)
    assert file.read_bytes().endswith(b"\n") and json.loads(file.read_text().splitlines()[1])["user"] == "alice"
    assert "off" in Page(router).give_feedback(HARD_PROMPT, hard, 0.5, right=True, user=None)
