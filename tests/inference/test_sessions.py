"""The route of a conversation: the highest score over its prefixes, remembered without its text."""

import asyncio
import gc
import json
import threading
import types
from dataclasses import replace

import pytest
from conftest import ROOT

from inference import sessions
from inference.sessions import Sessions
from router_data import INFERIOR, SUPERIOR
from router_model import Router, UserTurns, user_turns

EASY_TURN, HARD_TURN = "what is the apple", "what is the zorp with the quix"


@pytest.fixture(scope="module")
def router(trained_checkpoint):
    return Router.load(trained_checkpoint)


@pytest.fixture
def scored(router, monkeypatch):
    """The prompts that were scored."""
    prompts, decide = [], router.decide
    monkeypatch.setattr(router, "decide", lambda given: prompts.extend(map(list, given)) or decide(given))
    return prompts


def route(of: Sessions, *turns: str, threshold: float = 0.5, inline: bool = True) -> sessions.Route:
    return asyncio.run(of.route(UserTurns(turns), threshold, inline))


def test_a_conversation_that_needed_the_superior_model_stays_there(router):
    ends_easily = [f"and the {word} and the egg and the door" for word in ("apple", "bread", "chair", "fish")]
    easy_ends = [HARD_TURN, *ends_easily]
    sticky, free = Sessions(router), Sessions(router, sticky=False)
    labels = [route(sticky, *easy_ends[: i + 1]).decision.router_label for i in range(5)]
    assert labels == [SUPERIOR] * 5
    assert route(sticky, *easy_ends).turn == 1
    whole = route(free, *easy_ends)
    assert whole.turn == 5
    assert whole.decision.router_score == pytest.approx(router.score([UserTurns(easy_ends)])[0])
    assert route(sticky, EASY_TURN).decision.router_label == INFERIOR
    assert route(sticky, EASY_TURN, HARD_TURN).decision.router_label == SUPERIOR


def test_a_fresh_replica_finds_the_same_route(router):
    turns = [EASY_TURN, HARD_TURN, "and the door", EASY_TURN]
    old = Sessions(router)
    for i in range(len(turns)):
        last = route(old, *turns[: i + 1])
    fresh = route(Sessions(router), *turns)
    assert fresh.turn == last.turn and fresh.decision.router_score == pytest.approx(last.decision.router_score)


def test_the_decision_is_that_of_the_deciding_prefix_at_the_threshold_asked_for(router):
    of = Sessions(router)
    score = router.score([HARD_TURN])[0]
    for threshold, label in ((0.5, SUPERIOR), (1.0, INFERIOR), (0.0, SUPERIOR)):
        decision = route(of, HARD_TURN, EASY_TURN, threshold=threshold).decision
        assert (decision.router_label, decision.threshold) == (label, threshold)
        assert decision.router_score >= score - 1e-6
        assert decision.characters_received == len(HARD_TURN) + 2 + len(EASY_TURN)


def test_clients_are_told_what_is_unusual_about_a_decision(router):
    (decision,) = router.decide([EASY_TURN])
    usual = sessions.decision_headers(decision)
    assert set(usual) == {"label", "score", "threshold", "truncated"}
    for name in ("framed", "unfamiliar"):
        assert sessions.decision_headers(replace(decision, **{name: True})) == usual | {name: "true"}


def test_each_prefix_is_scored_once(router, scored):
    of = Sessions(router)
    found = [
        route(of, *turns, threshold=threshold).remembered
        for turns in ([EASY_TURN], [EASY_TURN, "go on"], ["go on"])
        for threshold in (0.4, 0.6)
    ]
    assert found == [False, True] * 3
    assert scored == [[EASY_TURN], [EASY_TURN, "go on"], ["go on"]]


def test_calls_at_once_on_one_turn_wait_for_one_score(router, scored, monkeypatch):
    entered, release = threading.Event(), threading.Event()
    decide = router.decide

    def slow(prompts):
        entered.set()
        assert release.wait(30)
        return decide(prompts)

    monkeypatch.setattr(router, "decide", slow)

    async def ask_many() -> list:
        of = Sessions(router)
        calls = [asyncio.create_task(of.route(UserTurns([EASY_TURN]), 0.5)) for _ in range(30)]
        await asyncio.to_thread(entered.wait, 30)
        calls[0].cancel()  # its client leaves; the others must have their score
        release.set()
        return await asyncio.gather(*calls, return_exceptions=True)

    first, *others = asyncio.run(ask_many())
    assert isinstance(first, asyncio.CancelledError) and len({other.decision.router_score for other in others}) == 1
    assert scored == [[EASY_TURN]]


def test_a_fault_while_scoring_is_not_remembered(router, monkeypatch):
    def fail(prompts):
        raise RuntimeError("broken")

    of = Sessions(router)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(router, "decide", fail)
        route(of, EASY_TURN, inline=False)
    assert route(of, EASY_TURN, inline=False).decision.router_label == INFERIOR


def texts_reachable_from(value: object) -> set[str]:
    """Every text that an object keeps alive, modules and classes left out."""
    seen, texts, pending = set(), set(), [value]
    while pending:
        item = pending.pop()
        if id(item) in seen or isinstance(item, type | types.ModuleType | types.FunctionType | Router):
            continue
        seen.add(id(item))
        if isinstance(item, str):
            texts.add(item)
        pending += gc.get_referents(item)
    return texts


def test_what_is_remembered_is_bounded_and_holds_no_text(router, scored, monkeypatch):
    monkeypatch.setattr(sessions, "MAX_REMEMBERED", 10)
    of = Sessions(router)
    for i in range(30):
        route(of, f"what is the secret number {i}")
    assert not any("secret" in text for text in texts_reachable_from(of))
    assert [route(of, f"what is the secret number {i}").remembered for i in (29, 21, 3)] == [True, True, False]


def test_a_very_long_conversation_costs_a_bounded_number_of_scores_and_keeps_its_route(router, scored, monkeypatch):
    monkeypatch.setattr(sessions, "MAX_SCORED_TURNS", 4)
    of = Sessions(router)
    assert route(of, *[EASY_TURN] * 20, HARD_TURN).decision.router_label == INFERIOR
    assert len(scored) == 4


def test_the_dialogues_switch_less_and_never_back(router):
    """On the dialogues of the tests: no conversation goes back to the inferior model when sticky."""
    rows = [json.loads(line) for line in (ROOT / "tests" / "data" / "dialogues.jsonl").read_text().splitlines()]
    of = Sessions(router)
    for row in rows:
        messages = next(value for value in row.values() if isinstance(value, list))
        turns = user_turns(messages)
        labels = [route(of, *turns[: i + 1]).decision.router_label for i in range(len(turns))]
        assert labels == sorted(labels)  # INFERIOR sorts before SUPERIOR
