"""The four stages in a row, as a user runs them, each reading what the one before wrote."""

import json
import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from conftest import ROOT, random_bert, save_checkpoint
from judgments import TIERS, gpt4_votes, human_votes
from openai_server import INFERIOR_ANSWER, SUPERIOR_ANSWER, OpenAIServer, completion

from router_data import SUPERIOR, LabelledQuestion, read_rows, write_rows
from router_model import Router

pytestmark = pytest.mark.slow

EASY, HARD = "apple bread chair door egg fish".split(), "zorp quix vlam".split()


def run(folder: Path, script: str, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, ROOT / script, *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A folder in which the four stages ran."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "judgments").mkdir()
    human_votes().to_parquet(folder / "judgments" / "human.parquet")
    gpt4_votes().to_parquet(folder / "judgments" / "gpt4_pair.parquet")
    run(folder, "dataset_analysis/analyse_human_judgments.py", "--dataset", "judgments", *TIERS)

    questions = list(read_rows(folder / "final-datasets" / "mt_bench_questions_labelled.jsonl", LabelledQuestion))
    prompts = [f"{HARD[i % 3] if i % 2 else EASY[i % 6]} {EASY[i % 5]} number n{i} {i * 37}" for i in range(200)]
    write_rows(folder / "prompts.jsonl", [{"prompt": text} for text in [*prompts, questions[0].prompt]])

    def behave(prompt: str, nth: int, body: dict):
        return completion(SUPERIOR_ANSWER if any(word in prompt for word in HARD) else INFERIOR_ANSWER)

    with OpenAIServer(behave) as server:
        run(
            folder,
            "create_dataset/label_prompts.py",
            *("--dataset", "prompts.jsonl", "--limit", "0", "--model", "org/m"),
            OPENAI_API_KEY="sk-secret",
            OPENAI_BASE_URL=server.url,
        )
        assert {body["messages"][0]["content"] for body in server.bodies} == {
            (folder / "final-datasets" / "labelling_prompt.txt").read_text().strip()
        }
    base = save_checkpoint(folder / "tiny-bert", model=random_bert())
    run(folder, "finetuning_model/finetune_bert.py", "--hf_model_name", base, "--learning_rate", "5e-4",
        "--num_train_epochs", "16", "--early_stopping_patience", "16", "--freeze_layers", "0")  # fmt: skip
    return folder


def test_stage_2_labels_with_the_prompt_of_stage_1_and_leaves_the_questions_out(project):
    (labelled,) = (project / "final-datasets").glob("router_dataset_labelled-openai_org-m-*.jsonl")
    rows = list(read_rows(labelled))
    assert len(rows) == 200
    assert all((row.label == SUPERIOR) == any(word in row.prompt for word in HARD) for row in rows)
    assert {row.labelled_by for row in rows} == {"openai_org/m"}
    assert "sk-secret" not in labelled.read_text()


def test_stage_3_finds_the_files_and_judges_on_the_questions(project):
    (saved,) = (project / "models").glob("*-save")
    metrics = json.loads((saved / "metrics.json").read_text())
    questions = read_rows(project / "final-datasets" / "mt_bench_questions_labelled.jsonl", LabelledQuestion)
    assert metrics["questions"]["rows"] == sum(not question.in_labelling_prompt for question in questions)
    assert metrics["test"]["figures"]["this router"]["AUROC"]["value"] > 0.8


def test_the_newest_checkpoint_serves_the_page(project):
    (saved,) = (project / "models").glob("*-save")
    easy, hard = Router.load(saved).score(["apple bread number n3", "zorp bread number n3"])
    assert easy < hard
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    page = subprocess.Popen(
        [sys.executable, ROOT / "inference" / "run_gradio_model.py", "--server_port", str(port)],
        cwd=project,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        last_line = next(line for line in page.stdout if f"http://127.0.0.1:{port}" in line)
        assert saved.name in last_line
        with urllib.request.urlopen(f"http://127.0.0.1:{port}") as answer:
            assert answer.status == 200
    finally:
        page.kill()
        page.wait()
        page.stdout.close()
