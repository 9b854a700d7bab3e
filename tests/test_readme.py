"""Every command of the README is run, or, where it needs a key or a hub, parsed by its script."""

import importlib
import json
import os
import re
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT, random_bert, save_checkpoint

from router_data import INFERIOR, SUPERIOR, LabelledPrompt, probability_from_gain, read_rows, write_rows

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = [text for kind, text in re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.M | re.S) if kind in ("", "bash")]
INLINE = re.findall(r"`(python3 [^`]+|make \w+)`", README)
COMMANDS = [line.split("  #")[0].strip() for block in BLOCKS for line in block.splitlines()] + INLINE
DOCUMENTS = [
    *ROOT.glob("*.md"),
    *(path for folder in ("benchmarks", "docs", "final-datasets", "models") for path in (ROOT / folder).glob("*.md")),
    ROOT / "final-datasets" / "sample" / "README.md",
]
USERS_COMMANDS = (  # which this project was asked to answer to, word for word but for names
    "python3 -m pip install virtualenv && virtualenv router-venv && source router-venv/bin/activate",
    "python3 -m pip install -r requirements.txt",
    "cat final-datasets/router_dataset_labelled-openai_*.jsonl > router_dataset_all.jsonl",
    """grep '"ROUTE_TO_INFERIOR"' router_dataset_all.jsonl > router_dataset_inferior.jsonl""",
    """grep '"ROUTE_TO_SUPERIOR"' router_dataset_all.jsonl > router_dataset_superior.jsonl""",
    "python3 inference/run_gradio_model.py --model_save_dir "
    "./models/bert-base-uncased-router-finetuning-20240722T133228-save --hf_model_name bert-base-uncased",
    "deactivate",
)
SET_BY_OTHERS = {  # read, but nobody sets them for this project
    "GRADIO_ANALYTICS_ENABLED", "GRADIO_TEMP_DIR", "OMP_NUM_THREADS", "SSL_CERT_FILE", "WORLD_SIZE", "HTTPS_PROXY",
    "HTTP_PROXY", "ALL_PROXY", "NO_PROXY",
}  # fmt: skip
SCRIPTS = sorted(
    {command for command in COMMANDS if re.match(r"(python3|torchrun|accelerate) .*?\w+/\w+\.py", command)}
)
FREE = (  # tested otherwise, or by CI
    "make ",
    "cat final",
    "grep ",
    "deactivate",
    "cp .env",
    "python3 -m pip",
    "python3 -m venv",
)


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


def test_the_users_own_commands_stand_as_they_were():
    assert [command for command in USERS_COMMANDS if command not in COMMANDS] == []


def test_the_readme_is_short_and_explains_its_words_before_it_uses_them():
    assert len(README.splitlines()) <= 200
    text = " ".join(README.split())
    for word, explanation in (
        ("AUROC", "*AUROC*: how often"), ("APGR", "*APGR*: when prompts"), ("int8", "int8 (weights as 8-bit integers)")
    ):  # fmt: skip
        assert text.index(word) - text.index(explanation) in (0, 1), word


def test_the_row_of_the_readme_is_a_valid_one():
    (block,) = re.findall(r"```json\n(.*?)```", README, flags=re.S)
    row = LabelledPrompt.model_validate_json(block)
    assert row.soft_label == pytest.approx(
        probability_from_gain(row.superior_quality - row.inferior_quality), abs=0.001
    )


def test_the_python_of_the_readme_runs(trained_checkpoint, capsys):
    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    exec(re.sub(r'load\(".*?"\)', f"load({str(trained_checkpoint)!r})", block), {})
    documented = re.findall(r"^# (ROUTE_TO_\w+ \d\.\d\d)$", block, flags=re.M)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(documented) == 2
    assert all(re.fullmatch(r"ROUTE_TO_\w+ \d\.\d\d", line) for line in printed)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_pictures_exist(path):
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[\w-]*)?\)", text):
        assert target.startswith("https://") or (path.parent / target).exists(), target


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


@pytest.mark.slow
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


def test_env_example_has_each_variable_that_is_read_and_no_value():
    lines = (ROOT / ".env.example").read_text().splitlines()
    named = {line.lstrip("#").split("=")[0] for line in lines if re.match(r"#?[A-Z_]+=", line)}
    code = "".join(
        path.read_text(encoding="utf-8")
        for stage in ("create_dataset", "dataset_analysis", "finetuning_model", "inference")
        for path in (ROOT / stage).rglob("*.py")
    )
    read = set(re.findall(r"environ(?:\.get\(|\.pop\(|\[)\s*[\"']([A-Z_]+)", code))
    tiers = {f"{tier}_{what}" for tier in ("INFERIOR", "SUPERIOR") for what in "MODEL BASE_URL API_KEY".split()}
    assert sorted((read | tiers | {"HF_TOKEN"}) - named - SET_BY_OTHERS) == []
    assert not [line for line in lines if re.match(r"#?[A-Z_]+=.", line)]
    assert ".env" in (ROOT / ".gitignore").read_text().split()
