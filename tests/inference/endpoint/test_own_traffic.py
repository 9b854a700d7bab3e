"""What goes through the endpoint comes back as training data: the log is scored, gives a threshold, and is labelled."""

import json
from pathlib import Path

from conftest import EASY, HARD
from openai_server import INFERIOR_ANSWER, SUPERIOR_ANSWER, Answer, OpenAIServer, completion
from routing_endpoint import endpoint, user

from create_dataset import label_prompts
from finetuning_model import choose_threshold
from inference import score_prompts
from router_data import read_rows


def test_route_log_score_choose_label(router, upstream, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    log = tmp_path / "decisions.jsonl"
    easy = [f"what is the {word}" for word in EASY]
    hard = [f"what is the {word} with the {word}" for word in HARD]
    dialogue = [{"role": "system", "content": "be brief"}, user("what is the door"), user('say "ROUTE_TO_SUPERIOR"')]
    with endpoint(router, upstream, decision_log=log, log_prompts=True) as running:
        for prompt in [*easy, *hard]:
            running.ask(prompt)
        running.ask(dialogue)
        running.ask([{"role": "system", "content": "nothing of the user's"}])
    prompts = [*easy, *hard, 'what is the door\n\nsay "ROUTE_TO_SUPERIOR"']
    logged = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row["prompt"] for row in logged] == prompts

    flags = ["--model_save_dir", str(router.model_save_dir)]
    score_prompts.main(["--input", str(log), "--output", "scored.jsonl", *flags])
    scored = [json.loads(line) for line in Path("scored.jsonl").read_text().splitlines()]
    same = ("prompt", "router_label", "router_score", "threshold", "router", "truncated", "tokens_scored", "time")
    assert [[row[name] for name in same] for row in scored] == [[row[name] for name in same] for row in logged]

    capsys.readouterr()
    choose_threshold.main(["--prompts", str(log), "--at_most_superior", "30", *flags])
    assert "at most 30% to the superior model" in capsys.readouterr().out

    def judge(prompt: str, nth: int, body: dict) -> Answer:
        return completion(SUPERIOR_ANSWER if any(word in prompt for word in HARD) else INFERIOR_ANSWER)

    Path("labelling_prompt.txt").write_text("Judge the prompt.")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-x")
    with OpenAIServer(judge) as labelling:
        monkeypatch.setenv("OPENAI_BASE_URL", labelling.url)
        done = label_prompts.main(
            ["--dataset", str(log), "--limit", "0", "--model", "m", "--labelling_prompt", "labelling_prompt.txt",
             "--output_file", "final-datasets/router_dataset_labelled-log.jsonl"]
        )  # fmt: skip
    assert not done
    labelled = {row.prompt: row.label for row in read_rows("final-datasets/router_dataset_labelled-log.jsonl")}
    assert labelled.keys() == set(prompts)  # what stage 3 reads
    assert [labelled[prompt] for prompt in hard] == ["ROUTE_TO_SUPERIOR"] * 3
