"""Many at a time and an orderly end: signals, kills, a full disk, a run in which everything fails."""

import random
import signal
import time
from pathlib import Path

import pytest
from labelling_runs import each_once, failures, label, rows, start, wait_for_rows, whole_rows, write_prompts
from openai_server import Answer, completion, error

from create_dataset import worker_pool


def test_many_at_a_time_but_no_more_than_allowed(serve):
    write_prompts(40)
    server = serve(delay=0.02)
    assert label("--max_in_flight", "7") == 0
    assert server.most_in_flight == 7


def test_many_failures_in_a_row_stop_the_run(serve, capsys, monkeypatch):
    monkeypatch.setattr(worker_pool, "MAX_FAILURES_IN_A_ROW", 20)
    write_prompts(100)
    server = serve(lambda *_: completion("no"))
    assert label("--max_in_flight", "4") == 1
    assert 20 <= len(server.bodies) <= 24 and "20 failures in a row" in capsys.readouterr().err


def test_a_run_in_which_everything_failed_fails_and_says_why(serve, capsys):
    write_prompts(5)
    answers = {3: completion("I can't judge this."), 4: error(400, None, "too long")}
    serve(lambda prompt, *_: answers.get(int(prompt[-1]), completion("Well, ...")))
    assert label() == 1
    last = capsys.readouterr().out.splitlines()
    assert last[-2].startswith("0 labelled, 0 skipped (labelled before), 5 failed, 0 left")
    assert last[-1].startswith("most failures (4 of 5): answer in no known form: ")
    assert last[-1].endswith("all are in failures-out.jsonl") and len(failures()) == 5


def test_a_run_that_adds_nothing_fails_though_rows_were_there_before(serve):
    write_prompts(4)
    ill = False
    serve(lambda *_: completion("hm") if ill else completion())
    assert label("--limit", "2") == 0
    ill = True
    assert label() == 1
    ill = False
    assert label() == 0 and len(rows()) == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_signals_wait_for_what_is_in_flight(serve, name):
    prompts = write_prompts(300)
    server = serve(delay=0.1)
    process = start("--max_in_flight", "8")
    wait_for_rows(16, process)
    process.send_signal(getattr(signal, name))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + getattr(signal, name)
    assert "Traceback" not in err and f"interrupted by {name}" in err
    asked = sum(server.asked.values())
    assert len(rows()) == asked < 300, "every answer that was asked for is on disk"
    assert f"{asked} labelled" in out and not failures()
    assert label() == 0 and each_once(prompts) and set(server.asked.values()) == {1}


@pytest.mark.slow
def test_a_second_signal_does_not_wait_and_what_may_be_charged_is_noted(serve):
    prompts = write_prompts(20)
    hang = True
    server = serve(lambda *_: Answer(completion().body, delay=60 if hang and len(rows()) >= 3 else 0))
    process = start("--max_in_flight", "4")
    wait_for_rows(3, process)
    while server.in_flight < 4:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    cut_short = failures()
    assert len(cut_short) == 4 and {f["reason"] for f in cut_short} == {"stopped before its answer came"}
    assert all(f["tokens_estimated"] and f["output_tokens"] == 256 for f in cut_short)
    hang = False
    assert label() == 0 and each_once(prompts)


@pytest.mark.slow
def test_kill_at_twenty_random_moments(serve):
    """A kill loses at most what is in flight or being written; nothing is ever there twice."""
    prompts = write_prompts(1500)
    server = serve(delay=0.03)
    chance = random.Random(0)
    in_flight = 8
    for _ in range(20):
        process = start("--max_in_flight", str(in_flight))
        wait_for_rows(len(whole_rows()) + 1, process)
        time.sleep(chance.uniform(0, 0.15))
        process.kill()
        process.communicate()
        texts = [row["prompt"] for row in whole_rows()]
        assert len(texts) == len(set(texts))
    before = len(whole_rows())
    assert 20 <= before < 1500
    assert label() == 0 and each_once(prompts) and not failures()
    paid_twice = sum(server.asked.values()) - len(prompts)
    assert paid_twice <= 20 * in_flight


@pytest.mark.slow
def test_a_full_disk_stops_the_run_with_whole_rows(serve):
    prompts = write_prompts(400)
    server = serve()
    process = start("--max_in_flight", "4", limit_file_size=50_000)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1 and "Traceback" not in err and "cannot write out.jsonl" in err
    assert 49_000 < Path("out.jsonl").stat().st_size <= 50_000
    assert sum(server.asked.values()) - len(rows()) <= 4, "what was in flight, at most"
    assert label() == 0 and each_once(prompts)


@pytest.mark.slow
def test_without_a_terminal_a_line_says_how_far_it_is(serve, monkeypatch):
    write_prompts(60)
    serve(delay=0.12)
    process = start("--max_in_flight", "1")
    _, err = process.communicate(timeout=60)
    assert "labelling prompts: " in err and " of 60, 0 failed" in err and "\r" not in err
