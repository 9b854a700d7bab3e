"""What the router of `make demo` says of plain cases; run on the newest such checkpoint, where one was made."""

import pytest
from conftest import ROOT

from router_model import Router

CHECKPOINTS = sorted((ROOT / "models").glob("all-MiniLM-L6-v2-router-finetuning-*-save"))

TRIVIAL_AND_HARD = [
    (
        "What is the capital of France?",
        "Prove that every continuous function on a compact metric space is uniformly continuous, then give a "
        "counterexample without compactness.",
    ),
    ("hey, good morning!", "Design a lock-free multi-producer queue in C++20 and prove its memory orders sufficient."),
    (
        "How many days are in a week?",
        "Derive the asymptotic variance of the two-step GMM estimator with clustered data.",
    ),
    ("Translate 'good night' into Spanish.", "Translate this sonnet into German, keeping its metre and rhyme scheme."),
    ("What colour is a ripe banana?", "Prove or disprove: every finite group of odd order at most 100 is metabelian."),
    (
        "thanks, that's all",
        "Find the race condition in a double-checked locking singleton and prove your fix is minimal.",
    ),
    ("What does CPU stand for?", "Write a villanelle about entropy in which no line contains the letter e."),
    (
        "What is 7 plus 5?",
        "Prove that the sum of the reciprocals of the primes diverges, without using the zeta function.",
    ),
    ("Who wrote Hamlet?", "Prove that a bounded monotone net in a reflexive Banach lattice converges in norm."),
    (
        "Say hello in French.",
        "Give a constructive proof, with explicit constants, of a quantitative Borel-Cantelli lemma.",
    ),
    (
        "what's the past tense of go",
        "Derive the Feynman rules of scalar QED and the one-loop vacuum polarisation from them.",
    ),
]


@pytest.fixture(scope="module")
def router() -> Router:
    if not CHECKPOINTS:
        pytest.skip("needs a checkpoint of the demo: make demo")
    return Router.load(CHECKPOINTS[-1])


@pytest.mark.parametrize(("trivial", "hard"), TRIVIAL_AND_HARD)
def test_trivial_prompts_are_cheap_and_hard_ones_are_not(router, trivial, hard):
    low, high = router.score([trivial, hard])
    assert low <= 0.3 and high >= 0.7, (low, high)
