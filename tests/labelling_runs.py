"""What the tests of stage 2 share: prompts to label, a run of label_prompts.py, and the rows that it wrote."""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

from conftest import ROOT

from create_dataset import label_prompts

SCRIPT = ROOT / "create_dataset" / "label_prompts.py"
LABELLING_PROMPT = "Judge the prompt in the JSON object."
PRICED = ("--price_input", "1000", "--price_output", "10000")


def write_prompts(count: int, path: str = "prompts.jsonl") -> list[str]:
    prompts = [f"question number {i}" for i in range(count)]
    Path(path).write_text("".join(json.dumps({"id": f"p{i}", "prompt": p}) + "\n" for i, p in enumerate(prompts)))
    return prompts


def arguments(*more: str) -> list[str]:
    fixed = "--dataset prompts.jsonl --labelling_prompt labelling.txt --output_file out.jsonl --model m"
    return [*fixed.split(), *map(str, more)]


def label(*more: str) -> int:
    """Run stage 2 in this process; returns its exit status."""
    return label_prompts.main(arguments(*more))


def start(*more: str, limit_file_size: int | None = None) -> subprocess.Popen:
    """Run stage 2 in a process of its own."""

    def limit() -> None:
        if limit_file_size:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_file_size, limit_file_size))

    command = [sys.executable, str(SCRIPT), *arguments(*more)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=limit)


def wait_for_rows(count: int, process: subprocess.Popen, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not Path("out.jsonl").exists() or Path("out.jsonl").read_bytes().count(b"\n") < count:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.005)


def rows(path: str = "out.jsonl") -> list[dict]:
    text = Path(path).read_bytes() if Path(path).exists() else b""
    assert not text or text.endswith(b"\n")
    return [json.loads(line) for line in text.splitlines()]


def whole_rows() -> list[dict]:
    """The whole lines of a file that may end in half a line."""
    data = Path("out.jsonl").read_bytes() if Path("out.jsonl").exists() else b""
    return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]


def failures() -> list[dict]:
    return rows("failures-out.jsonl")


def each_once(prompts: list[str]) -> bool:
    return sorted(row["prompt"] for row in rows()) == sorted(prompts)


def question(number: int, wins: tuple[int, int, int], shown: bool = False) -> dict:
    """A labelled question of MT-Bench; wins of the superior and of the inferior models, and ties."""
    superior, inferior, ties = wins
    ratio = (inferior + ties / 2) / sum(wins)
    return {
        "prompt": f"mt question {number}", "label": "ROUTE_TO_SUPERIOR" if ratio < 0.3 else "ROUTE_TO_INFERIOR",
        "question_id": number, "category": "c", "turns": [f"mt question {number}", "more"], "superior_wins": superior,
        "inferior_wins": inferior, "ties": ties, "inferior_ratio": ratio, "inferior_ratio_low": 0.0,
        "inferior_ratio_high": 1.0, "difficulty_rank": 1, "in_labelling_prompt": shown,
    }  # fmt: skip
