"""Labelling through the Batch API: submit, status, collect; crashes, limits of the account, partial failures."""

import json
from pathlib import Path

import pytest
from labelling_runs import PRICED, each_once, failures, label, rows, write_prompts
from openai_server import INFERIOR_ANSWER, SUPERIOR_ANSWER, Answer, completion, error

from create_dataset import openai_batch, output_file
from router_data import InputError, LabelledPrompt, read_rows


def batch(step: str, *more: str) -> int:
    return label("--batch", step, *more)


def test_batches_from_submit_to_collect(serve, capsys):
    prompts = write_prompts(30)
    server = serve(lambda p, *_: completion(SUPERIOR_ANSWER if p.endswith("7") else INFERIOR_ANSWER))
    assert batch("submit", *PRICED) == 0
    said = capsys.readouterr().out
    assert "--batch collect" in said and len(server.batches) == 1
    assert len(server.bodies) == 1 == len(rows()), "one prompt is asked directly"
    assert batch("collect") == 0 and len(rows()) == 1, "nothing is ready"
    server.finish_batches()
    assert batch("status") == 0 and "something is ready" in capsys.readouterr().out
    assert batch("collect") == 0
    assert each_once(prompts) and {r["prompt"] for r in rows() if "SUP" in r["label"]} == {
        p for p in prompts if p[-1] == "7"
    }
    before = Path("out.jsonl").read_bytes()
    assert batch("collect") == 0 and Path("out.jsonl").read_bytes() == before
    assert batch("submit") == 0 and len(server.batches) == 1, "nothing is left to submit"
    assert set(server.asked.values()) == {1}
    list(read_rows("out.jsonl", LabelledPrompt))


def test_shards_keep_within_the_limits(serve, monkeypatch):
    prompts = write_prompts(30)
    monkeypatch.setattr(openai_batch, "SHARD_REQUESTS", 8)
    server = serve()
    assert batch("submit") == 0
    assert [len(f["content"].splitlines()) for f in server.files.values()] == [8, 8, 8, 5]
    server.finish_batches()
    assert batch("collect") == 0 and each_once(prompts)


@pytest.mark.parametrize("lost", ["POST /batches", "POST /files"])
@pytest.mark.slow
def test_a_crash_between_submit_and_record(serve, lost):
    """The batch (or file) exists at the endpoint, but its id never arrived."""
    prompts = write_prompts(10)
    server = serve()
    server.batch_fault = lambda path: Answer({}, cut=0) if path == lost else None
    with pytest.raises(InputError, match="repeat the command"):
        batch("submit")
    server.batch_fault = lambda path: None
    assert batch("submit") == 0
    assert len(server.batches) == 1, "the batch was found again, not made twice"
    server.finish_batches()
    assert batch("collect") == 0 and each_once(prompts) and set(server.asked.values()) == {1}


def test_partial_failures_of_a_batch_are_tried_again(serve):
    prompts = write_prompts(12)

    def behave(prompt, nth, body):
        if prompt == prompts[3] and nth < 3:
            return error(500)
        if prompt == prompts[4]:
            return error(503)
        if prompt == prompts[5]:
            return completion("hm")
        return completion()

    server = serve(behave)
    assert batch("submit") == 0
    for _ in range(4):
        server.finish_batches()
        assert batch("collect") == 0
    assert each_once([p for p in prompts if p not in prompts[4:6]])
    assert {f["prompt"]: f["reason"] for f in failures()} == {
        prompts[5]: "answer in no known form: 'hm'",
        prompts[4]: "HTTP 503: no, after 3 batches",
    }
    assert len(failures()) == 2 and server.asked[prompts[5]] == 1 and server.asked[prompts[4]] == 3


def test_an_expired_batch_is_tried_again(serve):
    prompts = write_prompts(6)
    server = serve()
    assert batch("submit") == 0
    next(iter(server.batches.values()))["status"] = "expired"
    assert batch("collect") == 0 and len(server.batches) == 2
    server.finish_batches()
    assert batch("collect") == 0 and each_once(prompts)


def test_collect_that_crashes_half_way_adds_nothing_twice(serve, monkeypatch):
    prompts = write_prompts(12)
    server = serve(lambda p, *_: completion("hm") if p == prompts[5] else completion())
    assert batch("submit") == 0
    server.finish_batches()
    append, written = output_file.OutputFile.append, []

    def crash(self, row):
        written.append(row)
        if len(written) == 9:
            raise KeyboardInterrupt
        append(self, row)

    with monkeypatch.context() as patch:
        patch.setattr(output_file.OutputFile, "append", crash)
        with pytest.raises(KeyboardInterrupt):
            batch("collect")
    assert batch("collect") == 0 and batch("collect") == 0
    assert each_once([p for p in prompts if p != prompts[5]]) and len(failures()) == 1


def test_parameters_a_model_refuses_stay_out_of_its_batches(serve):
    write_prompts(5)
    server = serve(lambda p, nth, body: error(400, param="temperature") if "temperature" in body else completion())
    assert batch("submit") == 0
    assert "temperature" not in next(iter(server.files.values()))["content"]


def test_a_batch_keeps_to_the_money(serve, capsys):
    write_prompts(50)
    server = serve()
    assert batch("submit", "--max_usd", "20", "--max_output_tokens", "50", *PRICED) == 0
    assert "the money allows" in capsys.readouterr().out
    requests = next(iter(server.files.values()))["content"].splitlines()
    worst = sum(len(json.dumps(json.loads(r)["body"], ensure_ascii=False)) / 2000 + 0.25 for r in requests)
    assert 12 < worst <= 20 - 0.2 and len(requests) < 49
    assert batch("submit", "--max_usd", "20", "--max_output_tokens", "50", *PRICED) == 0 and len(server.batches) == 1


ENQUEUED = ("token_limit_exceeded", "Enqueued token limit reached for m. Limit: 2,000,000 enqueued tokens.")


def refuse_batches(server, code: str, message: str, larger_than: int = 0) -> None:
    """Every batch in progress with more requests fails as a whole, the others are worked through."""
    for made in server.batches.values():
        size = len(server.files[made["input_file_id"]]["content"].splitlines())
        if made["status"] == "in_progress" and size > larger_than:
            made["status"] = "failed"
            made["errors"] = {
                "object": "list",
                "data": [{"code": code, "message": message, "line": None, "param": None}],
            }
    server.finish_batches()


def test_a_shard_above_the_accounts_limit_is_sent_again_in_halves(serve, capsys):
    prompts = write_prompts(21)
    server = serve()
    assert batch("submit", *PRICED) == 0
    for _ in range(4):
        refuse_batches(server, *ENQUEUED, larger_than=6)
        assert batch("collect") == 0
    assert each_once(prompts) and not failures()
    assert "is sent again in two halves: Enqueued token limit" in capsys.readouterr().out
    state = json.loads(Path("out.batch/state.json").read_text())
    assert {shard["attempt"] for shard in state["shards"]} == {1}, "it is not one of the tries"
    assert all(shard["max_usd"] > 0 for shard in state["shards"])


def test_a_limit_that_stays_never_makes_prompts_failures(serve):
    write_prompts(4)
    server = serve()
    assert batch("submit") == 0
    for _ in range(6):
        refuse_batches(server, *ENQUEUED)
        assert batch("collect") == 0
    assert len(rows()) == 1 and not failures()
    server.finish_batches()
    assert batch("collect") == 0 and len(rows()) == 4


def test_a_shard_waits_while_others_fill_the_limit(serve, monkeypatch, capsys):
    prompts = write_prompts(9)
    monkeypatch.setattr(openai_batch, "SHARD_REQUESTS", 4)
    server = serve()
    assert batch("submit") == 0 and len(server.batches) == 2
    first, second = server.batches.values()
    second["status"] = "failed"
    second["errors"] = {"object": "list", "data": [{"code": ENQUEUED[0], "message": ENQUEUED[1], "line": None}]}
    assert batch("collect") == 0 and len(server.batches) == 2, "nothing is sent while the first is at work"
    assert "waits until other batches have ended" in capsys.readouterr().out
    assert batch("status") == 0 and "waits for other batches" in capsys.readouterr().out
    server.finish_batches()
    assert batch("collect") == 0 and len(server.batches) == 3
    server.finish_batches()
    assert batch("collect") == 0 and each_once(prompts)


def test_a_limit_told_when_the_batch_is_made_is_waited_for(serve, capsys):
    prompts = write_prompts(5)
    server = serve()
    server.batch_fault = lambda path: error(429, ENQUEUED[0], ENQUEUED[1]) if path == "POST /batches" else None
    assert batch("submit") == 0
    assert "waits: Enqueued token limit" in capsys.readouterr().out
    server.batches.clear()
    server.batch_fault = lambda path: None
    assert batch("collect") == 0 and len(server.batches) == 1
    server.finish_batches()
    assert batch("collect") == 0 and each_once(prompts)


def test_an_account_without_credit_is_named_and_costs_no_try(serve):
    prompts = write_prompts(5)
    server = serve()
    assert batch("submit") == 0
    refuse_batches(server, "billing_hard_limit_reached", "Billing hard limit has been reached")
    with pytest.raises(InputError, match="Billing hard limit.*add credit"):
        batch("collect")
    assert batch("collect") == 0 and len(server.batches) == 2
    server.finish_batches()
    assert batch("collect") == 0 and each_once(prompts) and not failures()


def test_a_batch_that_expired_half_way_keeps_what_was_answered(serve):
    prompts = write_prompts(9)
    server = serve()
    assert batch("submit") == 0
    server.finish_batches()
    (made,) = server.batches.values()
    lines = server.files[made["output_file_id"]]["content"].splitlines()
    expired = [
        json.dumps(json.loads(line) | {"response": None, "error": {"code": "batch_expired", "message": "24 hours"}})
        for line in lines[5:]
    ]
    server.files[made["output_file_id"]]["content"] = "\n".join([*lines[:5], "{broken"]) + "\n"
    made["error_file_id"] = server.store(("\n".join(expired) + "\n").encode(), "errors")["id"]
    made["status"] = "expired"
    assert batch("collect") == 0 and len(rows()) == 6 and len(server.batches) == 2
    shard = json.loads(Path("out.batch/state.json").read_text())["shards"][1]
    assert (shard["count"], shard["attempt"]) == (3, 1), "nobody looked at them, so it was no try"
    server.finish_batches()
    assert batch("collect") == 0 and each_once(prompts)


def test_a_batch_that_fails_for_good_says_why(serve, capsys):
    write_prompts(4)
    server = serve()
    assert batch("submit") == 0
    for _ in range(3):
        refuse_batches(server, "invalid_json_line", "Line 1 is not JSON")
        status = batch("collect")
    assert status == 1, "nothing was labelled, nothing is under way"
    assert {f["reason"] for f in failures()} == {"HTTP 400: Line 1 is not JSON, after 3 batches"}
    assert "failures-out.jsonl" in capsys.readouterr().out


@pytest.mark.parametrize("body", [{"error": {"code": 402, "message": "hm"}}, {"choices": None}, {"choices": []}, None])
def test_odd_results_are_recorded(serve, body):
    prompts = write_prompts(3)
    server = serve(lambda p, *_: Answer(body) if p == prompts[2] and "batch" in state else completion())
    state = {}
    assert batch("submit") == 0
    state["batch"] = True
    server.finish_batches()
    assert batch("collect") == 0
    assert len(rows()) + len(failures()) == 3


def test_answers_without_a_usage_count_with_their_worst_case(serve):
    write_prompts(3)

    def behave(*_):
        answer = completion()
        del answer.body["usage"]
        return answer

    server = serve(behave)
    assert batch("submit", "--max_output_tokens", "50") == 0
    server.finish_batches()
    assert batch("collect", "--max_output_tokens", "50") == 0
    assert all(row["tokens_estimated"] and row["output_tokens"] == 50 for row in rows())


def test_a_parameter_refused_in_a_batch_is_left_out_of_the_next(serve):
    prompts = write_prompts(4)
    seen = []

    def behave(prompt, nth, body):
        seen.append(body)
        refuses = len(seen) > 1 and "temperature" in body
        return Answer({"detail": [{"loc": ["body", "temperature"], "msg": "no"}]}, 422) if refuses else completion()

    server = serve(behave)
    assert batch("submit") == 0
    for _ in range(2):
        server.finish_batches()
        assert batch("collect") == 0
    assert each_once(prompts) and "temperature" not in seen[-1]


def test_the_state_of_earlier_versions_is_read(serve):
    prompts = write_prompts(5)
    server = serve()
    assert batch("submit") == 0
    path = Path("out.batch/state.json")
    state = json.loads(path.read_text())
    shards = [
        {k: v for k, v in shard.items() if k not in ("held", "max_usd")} | {"most_usd": 0.1}
        for shard in state["shards"]
    ]
    path.write_text(json.dumps({"job": state["job"], "refused": ["temperature"], "shards": shards}))
    server.finish_batches()
    assert batch("collect") == 0 and each_once(prompts)


def test_the_last_line_is_the_next_step(serve, capsys):
    write_prompts(3)
    server = serve()

    def last_line() -> str:
        return capsys.readouterr().out.splitlines()[-1]

    batch("submit")
    assert last_line().startswith("next: python3 create_dataset/label_prompts.py --batch status")
    batch("status")
    assert last_line().startswith("next: python3 create_dataset/label_prompts.py --batch collect")
    batch("collect")
    assert last_line().startswith("next: python3 create_dataset/label_prompts.py --batch collect")
    server.finish_batches()
    batch("collect")
    assert last_line() == "next: python3 finetuning_model/finetune_bert.py --train_files out.jsonl"


def test_without_batches_there_is_nothing_to_collect(serve):
    write_prompts(1)
    serve()
    with pytest.raises(InputError, match="no batches were submitted for out.jsonl; start with --batch submit"):
        batch("collect")


def test_an_endpoint_without_the_batch_api_is_named(serve):
    write_prompts(3)
    server = serve()
    server.batch_fault = lambda path: error(404) if path == "POST /files" else None
    with pytest.raises(InputError, match="no Batch API at http"):
        batch("submit")
