"""Both models answer side by side; a vote is an outcome."""

import pytest
from openai_server import OpenAIServer, error, stream_of

from inference.page.both_models import BothModels
from router_data import InputError, Outcome, Prices, read_rows

PRICES = Prices(inferior=1, superior=10, tokens_per_prompt=800)


@pytest.fixture
def models(monkeypatch, tmp_path):
    """Two models at one scripted server, which is the second value."""

    def behave(prompt, nth, body):
        if prompt == "fail":
            return error(500, message="broken, Bearer sk-secret-1")
        return stream_of(f"{body['model']} says hello to {prompt}")

    with OpenAIServer(behave) as server:
        for name in ("INFERIOR", "SUPERIOR"):
            monkeypatch.setenv(f"{name}_MODEL", f"{name.lower()}-m")
            monkeypatch.setenv(f"{name}_BASE_URL", server.url)
            monkeypatch.setenv(f"{name}_API_KEY", "sk-secret-1")
        yield BothModels.from_environment(tmp_path / "votes.jsonl"), server


def test_both_answers_stream_with_time_and_cost(models):
    both, _ = models
    *_, answers = both.ask("me")
    assert [answer.text.strip() for answer in answers] == [
        f"{name}-m says hello to me" for name in ("inferior", "superior")
    ]
    assert all(answer.finished and answer.seconds > 0 for answer in answers)
    left, right = both.describe(answers, PRICES)
    assert left.startswith("inferior-m: ") and right.startswith("superior-m: ")
    answers[1].tokens = 2000
    assert "2,000 tokens, $0.02" in both.describe(answers, PRICES)[1]


def test_a_failure_is_one_line_without_the_key(models):
    both, _ = models
    *_, answers = both.ask("fail")
    assert not any(answer.finished for answer in answers)
    assert "status 500" in answers[0].error and "secret" not in answers[0].error and "\n" not in answers[0].error


def test_a_vote_is_an_outcome_row(models):
    both, _ = models
    assert "left is enough" in both.vote("a", "left is enough", None)
    both.vote("b", "right is clearly better", "alice")
    rows = list(read_rows(both.votes_file, Outcome))
    assert [(row.prompt, row.weak_score, row.strong_score) for row in rows] == [("a", 1, 1), ("b", 0, 1)]
    assert (rows[0].weak_model, rows[0].strong_model, rows[1].user) == ("inferior-m", "superior-m", "alice")


def test_without_models_in_the_environment_there_is_nothing_to_ask(monkeypatch, tmp_path):
    for name in ("INFERIOR_MODEL", "SUPERIOR_MODEL"):
        monkeypatch.setenv(name, "")
    assert BothModels.from_environment(tmp_path / "votes.jsonl") is None
    monkeypatch.setenv("INFERIOR_MODEL", "m")
    monkeypatch.setenv("INFERIOR_API_KEY", "k")
    with pytest.raises(InputError, match="SUPERIOR_MODEL"):
        BothModels.from_environment(tmp_path / "votes.jsonl")


def test_a_key_that_goes_to_another_machine_in_clear_is_warned_of(models, monkeypatch, tmp_path):
    monkeypatch.setenv("SUPERIOR_BASE_URL", "http://203.0.113.7/v1")
    with pytest.warns(UserWarning, match="SUPERIOR_BASE_URL is http on another machine") as caught:
        BothModels.from_environment(tmp_path / "votes.jsonl")
    assert len(caught) == 1 and "secret" not in str(caught[0].message)
