"""Every command of the README is run, or, where it needs a key or a hub, parsed by its script."""

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, random_bert, save_checkpoint

from router_data import INFERIOR, SUPERIOR, read_rows, write_rows

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(?:bash|sh)?\n(.*?)^```", README, flags=re.M | re.S)
INLINE = re.findall(r"`(python3 [^`]+|make \w+)`", README)
COMMANDS = [line.split("  #")[0].strip() for block in BLOCKS for line in block.splitlines()] + INLINE
SCRIPTS = sorted(
    {command for command in COMMANDS if re.match(r"(python3|torchrun|accelerate) .*?\w+/\w+\.py", command)}
)
FREE = ("make ", "cat final", "grep ", "deactivate", "cp .env", "python3 -m pip", "pip ")  # tested otherwise, or by CI


def test_every_command_is_of_a_kind_that_is_tested():
    assert len(COMMANDS) > 12
    for command in filter(None, COMMANDS):
        assert command in SCRIPTS or command.startswith(FREE), command


@pytest.mark.parametrize("command", SCRIPTS)
def test_script_commands_parse(command, tmp_path, monkeypatch):
    script, *arguments = shlex.split(re.search(r"\w+/\w+\.py.*", command).group())
    assert (ROOT / script).exists(), script
    module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "final-datasets" / "router_dataset_labelled-openai_x.jsonl", [])
    module.parse_args(arguments)


def test_links_and_pictures_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for command in COMMANDS:
        if command.startswith("make "):
            assert re.search(rf"^{command.split()[1]}:", makefile, flags=re.M), command


def test_the_small_torch_of_the_readme_is_the_pinned_one():
    pinned = re.search(r"^torch==\S+", (ROOT / "requirements.txt").read_text(), flags=re.M).group()
    for text in (README, (ROOT / "Makefile").read_text()):
        assert set(re.findall(r"torch==[\d.]+\d", text)) == {pinned}


def documented(start: str) -> list[str]:
    lines = [command for command in COMMANDS if command.startswith(start)]
    assert lines, start
    return lines


def test_cat_and_grep_as_documented_leave_files_that_stage_3_trains_on(tmp_path):
    folder = tmp_path / "final-datasets"
    easy, hard = "apple bread chair door".split(), "zorp quix vlam zorp".split()
    rows = [
        {"prompt": f"{(hard if i % 2 else easy)[i % 4]} n{i} {i * 7}", "label": SUPERIOR if i % 2 else INFERIOR}
        for i in range(120)
    ]
    rows += [{"prompt": SUPERIOR, "label": INFERIOR}, {"prompt": f'say "{INFERIOR}"', "label": SUPERIOR}]
    write_rows(folder / "router_dataset_labelled-openai_m-1.jsonl", rows[:60])
    write_rows(folder / "router_dataset_labelled-openai_m-2.jsonl", rows[60:])
    (folder / "failures-router_dataset_labelled-openai_m-2.jsonl").write_text('{"prompt": "no label"}\n')
    for command in documented("cat final-datasets") + documented("grep "):
        subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    for label in (INFERIOR, SUPERIOR):
        found = read_rows(tmp_path / f"router_dataset_{label[9:].lower()}.jsonl")
        assert [row.prompt for row in found] == [row["prompt"] for row in rows if row["label"] == label]

    base = save_checkpoint(tmp_path / "tiny-bert", model=random_bert())
    more = ["--train_files", "router_dataset_inferior.jsonl", "router_dataset_superior.jsonl", "--max_steps", "2"]
    done = subprocess.run(
        [sys.executable, ROOT / "finetuning_model" / "finetune_bert.py", "--hf_model_name", base, *more],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-1500:]
    (saved,) = (tmp_path / "models").glob("tiny-bert-router-finetuning-*-save")
    assert json.loads((saved / "run.json").read_text())["rows"]["rows_read"] == 122


def test_env_example_says_what_each_variable_is_for():
    lines = (ROOT / ".env.example").read_text().splitlines()
    names = {line.lstrip("#").split("=")[0] for line in lines if re.match(r"#?[A-Z_]+=", line)}
    assert {"OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_MODEL", "HF_TOKEN", "ROUTER_PAGE_AUTH"} <= names
    assert all("=" not in line or not line.split("=")[1].strip() for line in lines if re.match(r"#?[A-Z_]+=", line))
    assert ".env" in Path(ROOT / ".gitignore").read_text().split()
