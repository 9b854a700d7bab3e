"""The notebook: its commands run, its flags are the programs' own, and it holds no output."""

import json
import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT, random_bert, save_checkpoint
from made_up import made_up_rows

from finetuning_model import evaluate_router, finetune_bert
from router_data import write_rows

PROGRAMS = {
    "finetuning_model/finetune_bert.py": finetune_bert,
    "finetuning_model/evaluate_router.py": evaluate_router,
}


@pytest.fixture
def cells() -> list[dict]:
    return json.loads((ROOT / "finetuning_model" / "finetune_in_colab.ipynb").read_text(encoding="utf-8"))["cells"]


def lines_of(cell: dict) -> list[str]:
    return "".join(cell["source"]).replace("\\\n", " ").splitlines()


def run_cell(cell: dict, names: dict, run) -> None:
    """What Colab does with a cell: Python lines are executed, `!` lines are commands with {names} filled in."""
    python = []
    for line in lines_of(cell):
        if line.startswith("!"):
            exec("\n".join(python), names)
            python = []
            run(shlex.split(line[1:].format(**names)))
        else:
            python.append(line)
    exec("\n".join(python), names)


@pytest.mark.slow
def test_the_notebooks_commands_run_on_a_tiny_job(cells, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "rows.jsonl", made_up_rows(160, seed=9))
    (tmp_path / "frames.txt").write_text("Hi! $prompt")
    base = save_checkpoint(tmp_path / "tiny-bert", model=random_bert())
    commands, shown = [], []
    display = SimpleNamespace(display=shown.append, Markdown=str, Image=lambda path, width: Path(path).name)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(display=display, version_info=(9, 0)))
    monkeypatch.setitem(sys.modules, "IPython.display", display)

    def run(command: list[str]) -> None:
        assert command[0] == "python3"
        commands.append(command[1])
        frames = "--judging_frames" if "finetune" in Path(command[1]).stem else "--frames"
        PROGRAMS[command[1]].main([*command[2:], frames, "frames.txt"])

    names: dict = {}
    for cell in (cell for cell in cells if cell["cell_type"] == "code"):
        tags = cell["metadata"].get("tags", [])
        if "colab" in tags:
            continue
        run_cell(cell, names, run)
        if "parameters" in tags:
            tiny = {"TRAIN_FILES": "rows.jsonl", "HF_MODEL_NAME": str(base), "OUTPUT_DIR": "out"}
            assert set(tiny) < set(names)
            names |= tiny | {"MORE_FLAGS": "--max_steps 4 --max_length 32"}
    assert commands == list(PROGRAMS)
    assert shown[0].lstrip().startswith("# ") and {"training.png", "scores.png", "reliability.png"} <= set(shown[1:])
    assert (Path(names["MODEL_SAVE_DIR"]) / "evaluation" / "evaluation.md").exists()


def test_every_flag_of_the_notebook_is_one_of_the_programs(cells, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "final-datasets").mkdir()
    (tmp_path / "final-datasets" / "router_dataset_labelled-x.jsonl").write_text("")
    names: dict = {"MODEL_SAVE_DIR": "models/x-save"}
    parsed = []
    for cell in (cell for cell in cells if cell["cell_type"] == "code"):
        if "parameters" in cell["metadata"].get("tags", []):
            exec("".join(cell["source"]), names)
        for line in lines_of(cell):
            if line.startswith("!python3 finetuning_model/"):
                command = shlex.split(line[1:].format(**names))
                parsed.append(PROGRAMS[command[1]].parse_args(command[2:]))
    train, evaluate = parsed
    assert train.hf_model_name == "bert-base-uncased" and train.output_dir == Path("models")
    assert train.train_files == ["final-datasets/router_dataset_labelled-*.jsonl"]
    assert evaluate.model_save_dir == Path("models/x-save")


def test_the_notebook_holds_no_output_and_leaves_torch_to_colab(cells):
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in cells)
    install = next("".join(cell["source"]) for cell in cells if "pip install" in "".join(cell["source"]))
    pattern = re.search(r'grep -v "([^"]+)"', install)[1]
    kept = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not re.search(pattern, line)]
    pins = [line.split("==")[0] for line in kept if "==" in line and not line.startswith("#")]
    assert "torch" not in pins and {"transformers", "accelerate", "scikit-learn"} <= set(pins)


def test_without_rows_of_ones_own_the_sample_is_trained_on(cells, tmp_path, monkeypatch):
    fallback = next(cell for cell in cells if "glob(TRAIN_FILES)" in "".join(cell["source"]))
    parameters = next(cell for cell in cells if "parameters" in cell["metadata"].get("tags", []))
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec("".join(parameters["source"]) + "\n" + "".join(fallback["source"]), names)
    assert (ROOT / names["TRAIN_FILES"]).exists()
    own = tmp_path / "final-datasets" / "router_dataset_labelled-openai_m-1.jsonl"
    write_rows(own, [])
    exec("".join(parameters["source"]) + "\n" + "".join(fallback["source"]), names)
    assert list(tmp_path.glob(names["TRAIN_FILES"])) == [own]


def test_the_badge_and_the_cell_name_the_same_repository(cells):
    text = "".join("".join(cell["source"]) for cell in cells)
    (badge,) = re.findall(r"colab\.research\.google\.com/github/([\w.-]+/[\w.-]+)/blob/main/(\S+?)\"", text)
    assert re.findall(r'REPOSITORY = "https://github\.com/([\w.-]+/[\w.-]+?)\.git"', text) == [badge[0]]
    assert (ROOT / badge[1]).exists()
