"""Labelled prompts of made-up words, which a tiny BERT can learn to tell apart."""

import random

from conftest import EASY, FILLER, HARD

from router_data import SUPERIOR, label_of


def made_up_rows(n: int, seed: int = 0) -> list[dict]:
    """Prompts of made-up words; those with a word of HARD have the soft label 0.9, the others 0.1."""
    draw = random.Random(seed)
    rows = []
    for i in range(n):
        soft_label = 0.9 if i % 2 else 0.1
        words = draw.choices(FILLER, k=6) + draw.choices(EASY, k=3) + [draw.choice(HARD if i % 2 else EASY), f"n{i}"]
        draw.shuffle(words)
        row = {"prompt": " ".join(words), "label": label_of(soft_label), "superior_probability": soft_label}
        rows.append({**row, "labelled_by": "test", "category": "made up"})
    return rows


def row_of(prompt: str, label: str = SUPERIOR, **more) -> dict:
    return {"prompt": prompt, "label": label, "labelled_by": "test", **more}
