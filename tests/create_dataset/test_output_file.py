"""The file that a paid run appends to, and how it is resumed."""

from pathlib import Path

import pytest
from labelling_runs import each_once, label, rows, start, wait_for_rows, write_prompts
from openai_server import completion

from create_dataset.output_file import OutputFile
from router_data import InputError


def test_resume_asks_only_what_is_missing(serve):
    prompts = write_prompts(30)
    server = serve()
    assert label("--limit", "12") == 0
    assert label() == 0
    assert each_once(prompts) and set(server.asked.values()) == {1}
    before = Path("out.jsonl").read_bytes()
    assert label() == 0 and Path("out.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "torn", ['{"prompt": "question num', '{"prompt": "x", "label": "ROUTE_TO_INFERIOR"}', "\0" * 99]
)
def test_a_torn_last_line_is_cut_off(serve, torn):
    prompts = write_prompts(10)
    serve()
    label("--limit", "5")
    with open("out.jsonl", "a") as file:
        file.write(torn)
    assert label() == 0 and each_once(prompts)


@pytest.mark.parametrize("broken", ["broken", '{"label": "x"}', "[1]", '{"prompt": 7}'])
def test_a_broken_line_in_the_middle_is_named(serve, broken):
    write_prompts(2)
    serve()
    Path("out.jsonl").write_text(f'{{"prompt": "a"}}\n{broken}\n{{"prompt": "b"}}\n')
    with pytest.raises(InputError, match="line 2"):
        label()


def test_rows_of_another_model_or_prompt_are_not_taken_for_done(serve, capsys):
    prompts = write_prompts(3)
    serve()
    assert label("--model", "other") == 0 and label() == 0
    assert "note: 3 rows of out.jsonl are of another model or labelling prompt" in capsys.readouterr().out
    assert len(rows()) == 6 and {row["labelled_by"] for row in rows()} == {"openai_other", "openai_m"}
    assert {row["prompt"] for row in rows()} == set(prompts)


def test_a_byte_order_mark_is_no_part_of_the_labelling_prompt(serve):
    write_prompts(3)
    server = serve()
    assert label() == 0
    text = Path("labelling.txt").read_text()
    Path("labelling.txt").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode() + b"\r\n")
    assert label() == 0 and len(server.bodies) == 3, "nothing is asked and paid again"


@pytest.mark.slow
def test_a_second_run_on_the_same_file_refuses(serve):
    write_prompts(200)
    server = serve(delay=0.05)
    process = start("--max_in_flight", "2")
    wait_for_rows(1, process)
    asked = sum(server.asked.values())
    with pytest.raises(InputError, match="another run is writing to out.jsonl"):
        label()
    assert sum(server.asked.values()) - asked < 40
    process.terminate()
    process.communicate()
    assert label("--limit", "50", "--max_in_flight", "50") == 0, "the lock went with the process"


def test_a_folder_that_cannot_be_made_is_named(serve):
    write_prompts(1)
    serve()
    Path("file").write_text("")
    with pytest.raises(InputError, match="cannot write file/out.jsonl"):
        label("--output_file", "file/out.jsonl")


def test_what_rows_and_failures_used_is_counted_batches_at_half_the_price():
    Path("out.jsonl").write_text(
        '{"prompt": "a", "input_tokens": 100, "output_tokens": 10}\n'
        '{"prompt": "b", "input_tokens": 100, "output_tokens": 10, "batch": "x", "tokens_estimated": true}\n'
        '{"prompt": "c"}\n{"prompt": "d", "usage": {"judge": {"input_tokens": 7}}}\n'
    )
    Path("failures-out.jsonl").write_text('{"prompt": "e", "input_tokens": 50, "output_tokens": null}\n')
    with OutputFile("out.jsonl", "m", "p") as output:
        assert (output.usage.input_tokens, output.usage.output_tokens) == (200, 15)
        assert output.usage.estimated and output.usage_by_role["judge"].input_tokens == 7


def test_failures_leave_no_empty_file(serve):
    write_prompts(1)
    serve(lambda *_: completion())
    assert label() == 0 and not Path("failures-out.jsonl").exists()
