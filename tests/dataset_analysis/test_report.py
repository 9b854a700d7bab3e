"""The report of stage 1 and its plots."""

import re

import pandas as pd
import pytest
from conftest import ROOT
from judgments import HARDEST_FIRST, analyse_judgments, human_votes
from PIL import Image, ImageColor

from dataset_analysis import report
from dataset_analysis.read_judgments import votes_between_tiers
from router_data import TIER_COLORS


@pytest.mark.slow
def test_report_and_its_plots(reported_judgments, tmp_path):
    analyse_judgments(reported_judgments, tmp_path / "out")
    written = (tmp_path / "out" / "mt_bench_analysis.md").read_text()
    assert f"Source: {reported_judgments}. Of its 202 human votes, 180 are between the tiers" in written
    assert "inferior model's answer in 21.7% [" in written and "called 37.8% [" in written  # 39 and 68 of 180
    assert "the inferior ratio is 0.340 [" in written
    assert "0.000 (question 121, coding) to 0.700 (question 123, coding)" in written
    assert "left out: 1." in written and "$" not in written.split("## All questions")[0]
    pictures = re.findall(r"\((mt_bench_analysis/\w+\.png)\)", written)
    assert len(pictures) == 4
    for picture in pictures:
        assert (tmp_path / "out" / picture).read_bytes().startswith(b"\x89PNG")
    with Image.open(tmp_path / "out" / "mt_bench_analysis" / "categories.png") as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(image.width * image.height)}
    assert {ImageColor.getrgb(colour) for colour in TIER_COLORS.values()} <= colours
    rows = [line for line in written.splitlines() if re.match(r"\| \d", line)]
    assert [int(line.split(" | ")[1]) for line in rows] == HARDEST_FIRST
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in rows} == {12}  # the text's own bar is escaped
    assert str(ROOT) not in written


def test_models_and_tiers_against_each_other():
    votes = votes_between_tiers(human_votes(), ["big-1", "big-2"], ["small-1", "small-2"])
    table = report.model_pairs(votes).set_index(["superior", "inferior"])
    assert len(table) == 9 and table.loc[("all", "all"), "votes"] == 180
    assert table.loc[("all", "all"), "value"] == pytest.approx((39 + 68 / 2) / 180)
    pair = votes[(votes["superior"] == "big-2") & (votes["inferior"] == "small-1")]
    assert table.loc[("big-2", "small-1"), "value"] == pytest.approx(pair["score"].mean())
    assert (table["low"] <= table["value"]).all() and (table["value"] <= table["high"]).all()


def test_adjusting_for_the_pairs_changes_nothing_where_there_is_one_pair():
    votes = votes_between_tiers(human_votes(), ["big-1"], ["small-1"])
    questions = pd.DataFrame({"inferior_ratio": votes.groupby("question_id")["score"].mean()})
    assert report.ranking_reliability(votes, questions)[
        "ratio, ratio adjusted for which models met"
    ].low == pytest.approx(1)


def test_agreement_with_gpt4_stands_beside_a_constant_answer():
    def votes(scores):
        where = {"question_id": range(len(scores)), "turn": 1, "superior": "big-1", "inferior": "small-1"}
        return pd.DataFrame({**where, "score": scores})

    sentence = report.agreement_with_gpt4(votes([0, 0, 0, 1, 1, 0.5, 0]), votes([0, 0, 1, 1, 0, 0, 0.5]))
    assert "(5 human votes)" in sentence  # two have a tie on either side
    assert re.search(r"side in 60\.0% \[.*superior model would do so in 60\.0% \[.*difference 0\.0%", sentence)


def test_report_without_gpt4(reported_judgments, tmp_path):
    (reported_judgments / "gpt4_pair.jsonl").unlink()
    analyse_judgments(reported_judgments, tmp_path / "out")
    written = (tmp_path / "out" / "mt_bench_analysis.md").read_text()
    assert "holds no votes of the GPT-4 judge" in written and "human_against_gpt4" not in written
