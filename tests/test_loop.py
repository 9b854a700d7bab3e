"""From own traffic to a router that pays: the README's six commands, against two models of known, different strengths.

The superior model answers everything well; the inferior one fails where a prompt speaks of a fish. The router at the
start sends everything to the inferior model; after one turn of the loop it sends such prompts, and no others, to the
superior one.
"""

import json
import os
import random
import re
import shlex
import signal
import string
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import torch
from conftest import EASY, FILLER, HARD, ROOT, random_bert, save_checkpoint
from openai_server import Answer, OpenAIServer, completion
from routing_endpoint import PATIENCE, wait_until

from router_data import near_duplicate_groups

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no such signal"),
]
SECTION = re.search(r"\n## Your own traffic\n(.*?)\n## ", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)[1]
COMMANDS = re.search(r"```\n(.*?)```", SECTION, re.S)[1].splitlines()
FAILS_ON = "fish"
MODELS = {
    "INFERIOR": "gpt-5-nano",
    "SUPERIOR": "gpt-6-sol",
}  # the defaults of label_outcomes.py, whose prices are known
MORE = {  # what a tiny router and a short test need beside what the README says
    "inference/serve_openai_api.py": "--port 0 --shadow_share 1 --shadow_max_requests 150",
    "finetuning_model/finetune_bert.py": "--learning_rate 3e-3 --num_train_epochs 20 --freeze_layers 0 --frame_share 0",
    "finetuning_model/evaluate_router.py": "--frames one_frame.txt",
}


def made_up_prompt(draw: random.Random, word: str) -> str:
    words = [*draw.sample(FILLER, 4), *draw.sample(EASY[:5], 2), word]
    return " ".join([*draw.sample(words, len(words)), "".join(draw.sample(string.ascii_lowercase, 14))])


def made_up_prompts(number: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [made_up_prompt(draw, FAILS_ON if i % 2 else draw.choice([*EASY[:5], *HARD])) for i in range(number)]


def behave(prompt: str, nth: int, body: dict) -> Answer:
    """Both models, and the judge, which is the superior one too."""
    if "response_format" in body:
        case = json.loads(prompt)
        names = body["response_format"]["json_schema"]["schema"]["required"]
        grades = {name: 2 if case[f"answer_{name[-1]}"] == "no idea" else 9 for name in names}
        return completion(json.dumps(grades))
    return completion("no idea" if body["model"] == MODELS["INFERIOR"] and FAILS_ON in prompt else "well said")


class Project:
    """A folder in which the loop runs, with the models behind one server."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ROUTER_API_KEY": ""}
        self.environment |= {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": "sk-x"}
        for tier, model in MODELS.items():
            self.environment |= {f"{tier}_MODEL": model, f"{tier}_BASE_URL": url, f"{tier}_API_KEY": "sk-x"}

    def command(self, line: str) -> list[str]:
        python, script, *flags = shlex.split(line)
        assert python == "python3"
        return [sys.executable, str(ROOT / script), *flags, *MORE.get(script, "").split()]

    def run(self, line: str) -> str:
        done = subprocess.run(
            self.command(line), cwd=self.folder, env=self.environment, capture_output=True, text=True
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    @contextmanager
    def served(self, line: str) -> Iterator[tuple[subprocess.Popen, str]]:
        with open(self.folder / "stderr.txt", "w") as stderr:
            pipes = {"stdout": subprocess.PIPE, "stderr": stderr, "text": True}
            process = subprocess.Popen(self.command(line), cwd=self.folder, env=self.environment, **pipes)
        try:
            yield process, re.search(r"http://[^/\s]+", process.stdout.readline())[0]
        finally:
            process.kill()
            process.communicate()


def sent_to_superior(address: str, prompts: list[str]) -> dict[str, bool]:
    """Where the endpoint sends each prompt."""
    found = {}
    with httpx.Client(trust_env=False, timeout=PATIENCE) as client:
        for prompt in prompts:
            body = {"model": "router", "messages": [{"role": "user", "content": prompt}]}
            answer = client.post(f"{address}/v1/chat/completions", json=body)
            found[prompt] = answer.headers["x-router-model"] == "superior"
    return found


def share_sent(found: dict[str, bool], fails: bool) -> float:
    of_kind = [sent for prompt, sent in found.items() if (FAILS_ON in prompt) == fails]
    return sum(of_kind) / len(of_kind)


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_prompts_are_no_near_duplicates():
    prompts = made_up_prompts(340, seed=0)
    assert len(set(near_duplicate_groups(prompts))) > 330


def save_first_router(folder: Path) -> None:
    """A router that knows nothing, and takes every prompt for an easy one."""
    model = random_bert()
    with torch.no_grad():
        model.classifier.bias.copy_(torch.tensor([1.0, -1.0]))
    save_checkpoint(folder, model=model, settings={"base_model": "tiny", "max_length": 64})


def test_after_one_turn_the_router_sends_the_kind_that_needs_it(tmp_path):
    serve, teach, judge, finetune, evaluate, choose = COMMANDS
    first = re.search(r"models/(\S+)", finetune)[1]
    save_first_router(tmp_path / "models" / first)
    (tmp_path / "one_frame.txt").write_text("Hi! $prompt")
    log = tmp_path / "decisions.jsonl"
    with OpenAIServer(behave) as server:
        project = Project(tmp_path, server.url)
        with project.served(serve) as (process, address):
            before = sent_to_superior(address, made_up_prompts(340, seed=0))
            assert not any(before.values())
            wait_until(lambda: sum("shadow" in row for row in rows_of(log)) == 150 and len(rows_of(log)) == 340)

            asked = len(server.bodies)
            project.run(judge)
            assert len(rows_of(tmp_path / "judge.jsonl")) == 150
            assert len(server.bodies) == asked + 300  # the judge alone, in both orders
            assert "(150 with both answers left out)" in project.run(teach)
            project.run(finetune)
            verdict = project.run(evaluate)
            assert "Routing pays" in verdict
            assert "guaranteed with 95% confidence" in project.run(choose)

            process.send_signal(signal.SIGHUP)
            health = f"{address}/health"
            wait_until(lambda: httpx.get(health, trust_env=False).json()["checkpoint"] != first)
            after = sent_to_superior(address, made_up_prompts(100, seed=1))
    assert share_sent(after, fails=False) < 0.1
    assert share_sent(after, fails=True) > 0.85  # 95% of the quality is kept where one in nine of them is missed
