"""Small copies of the judgments, for the tests of stage 1."""

from pathlib import Path

import pytest
from judgments import gpt4_votes, human_votes, write_votes

from dataset_analysis import plots, report, vote_statistics

WRITE_REPORT = report.write_report


@pytest.fixture
def judgments(tmp_path: Path, monkeypatch) -> Path:
    """A small copy of the data set; its analysis writes no report."""
    monkeypatch.setattr(report, "write_report", lambda *args: None)
    folder = tmp_path / "judgments"
    folder.mkdir()
    write_votes(human_votes(), folder / "human.jsonl")
    write_votes(gpt4_votes(), folder / "gpt4_pair.jsonl")
    return folder


@pytest.fixture
def reported_judgments(judgments: Path, monkeypatch) -> Path:
    """The same, with a report of few resamples and small pictures."""
    monkeypatch.setattr(report, "write_report", WRITE_REPORT)
    monkeypatch.setattr(vote_statistics, "RESAMPLES", 20)
    monkeypatch.setattr(vote_statistics, "HALVINGS", 20)
    monkeypatch.setattr(plots, "DPI", 20)
    return judgments
