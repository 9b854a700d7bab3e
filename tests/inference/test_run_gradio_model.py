"""The program: its flags, how it starts, and who gets in."""

import os
import re
import socket
import subprocess
import sys
import urllib.request
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import ROOT, save_checkpoint, tiny_tokenizer

from inference import run_gradio_model
from router_data import INFERIOR, SUPERIOR, InputError

SCRIPT = ROOT / "inference" / "run_gradio_model.py"
DOCUMENTED_NAME = "bert-base-uncased-router-finetuning-20240722T133228-save"


@contextmanager
def running(arguments: list[str], folder: Path, **environment: str):
    """The script as a user starts it; yields its last line and what it wrote to stderr by then."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "ROUTER_PAGE_AUTH": "", **environment}
    with open(folder / "stderr.txt", "w") as stderr:
        command = [sys.executable, str(SCRIPT), *arguments]
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=stderr, text=True)
    try:
        line = process.stdout.readline()
        yield line, (folder / "stderr.txt").read_text()
    finally:
        process.terminate()
        process.communicate()


def fetch(line: str) -> str:
    url = re.search(r"http://127\.0\.0\.1:\d+", line)[0]
    return urllib.request.urlopen(url, timeout=30).read().decode()


DOCUMENTED = ["--model_save_dir", f"./models/{DOCUMENTED_NAME}", "--hf_model_name", "bert-base-uncased"]


@pytest.mark.slow
def test_documented_command_on_a_checkpoint_of_stage_3(tmp_path):
    settings = {"base_model": "bert-base-uncased", "max_length": 64}
    save_checkpoint(tmp_path / "models" / DOCUMENTED_NAME, settings=settings)
    with running(DOCUMENTED, tmp_path) as (line, stderr):
        assert DOCUMENTED_NAME in line and "torch" in line
        assert DOCUMENTED_NAME in fetch(line)
    assert "warning" not in stderr and "Traceback" not in stderr


@pytest.mark.slow
def test_documented_command_on_a_plain_checkpoint_without_tokenizer(tmp_path):
    save_checkpoint(tmp_path / "models" / DOCUMENTED_NAME, labels=None, tokenizer=False)
    assert not list((tmp_path / "models" / DOCUMENTED_NAME).glob("*token*"))
    cache = tmp_path / "hub" / "models--bert-base-uncased"  # as a download of bert-base-uncased leaves it
    snapshot = cache / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    tiny_tokenizer(["what", "is", "door"]).save_pretrained(snapshot)
    (snapshot / "config.json").write_text('{"model_type": "bert"}')
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(snapshot.name)
    with running(DOCUMENTED, tmp_path, HF_HUB_CACHE=str(tmp_path / "hub")) as (line, stderr):
        assert DOCUMENTED_NAME in fetch(line)
    assert stderr.count("warning") == 1 and "no router.json" in stderr


@pytest.mark.slow
def test_without_flags_the_newest_checkpoint_opens(tmp_path):
    for day in (1, 3, 2):
        folder = tmp_path / "models" / f"tiny-router-finetuning-2026010{day}T000000-save"
        save_checkpoint(folder, settings={"max_length": 64})
    with running([], tmp_path) as (line, _):
        assert "tiny-router-finetuning-20260103T000000-save" in line
        assert "tiny-router-finetuning-20260103T000000-save" in fetch(line)


def test_missing_model_folder_ends_in_one_line(tmp_path):
    done = subprocess.run([sys.executable, SCRIPT, *DOCUMENTED], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert DOCUMENTED_NAME in done.stderr and "finetune_bert.py" in done.stderr


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        (("EASY", "MIDDLE", "HARD"), "3 labels"),
        (("NEGATIVE", "POSITIVE"), "NEGATIVE"),
        ((SUPERIOR, INFERIOR), "not a router"),
    ],
)
def test_other_classifiers_are_refused(tmp_path, labels, named):
    save_checkpoint(tmp_path / "model", labels=labels)
    with pytest.raises(InputError, match=named):
        run_gradio_model.main(["--model_save_dir", str(tmp_path / "model")])


def test_a_checkpoint_without_tokenizer_asks_for_its_base(tmp_path):
    save_checkpoint(tmp_path / "model", tokenizer=False, settings={})
    with pytest.raises(InputError, match="--hf_model_name bert-base-uncased"):
        run_gradio_model.main(["--model_save_dir", str(tmp_path / "model")])


def test_a_taken_port_is_named_before_anything_is_loaded(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} .*--server_port"):
            run_gradio_model.main(["--model_save_dir", str(tmp_path / "none"), "--server_port", str(port)])


def test_a_threshold_beyond_1_is_refused():
    with pytest.raises(InputError, match=r"--threshold 1\.5"):
        run_gradio_model.main(["--threshold", "1.5"])


@pytest.mark.parametrize("value", ["alice", "alice:", ":secret"])
def test_a_malformed_login_is_refused_and_not_repeated(monkeypatch, value):
    monkeypatch.setenv("ROUTER_PAGE_AUTH", value)
    with pytest.raises(InputError) as error:
        run_gradio_model.main([])
    assert "user:password" in str(error.value)
    assert "secret" not in str(error.value) and "alice" not in str(error.value)


@pytest.fixture
def launched(monkeypatch):
    """What `main` would have served, with nothing served."""
    given = {}

    class Blocks:
        def block_thread(self):
            pass

    def launch(services, server_name, server_port, share, auth, hosts):
        given.update(services=services, server_name=server_name, share=share, auth=auth, hosts=hosts)
        given["uploads"] = uploads = Path(os.environ["GRADIO_TEMP_DIR"])
        given["uploads_mode"] = uploads.stat().st_mode & 0o777
        return Blocks(), f"http://{server_name}:7860/", None

    monkeypatch.setattr(run_gradio_model, "launch", launch)
    monkeypatch.setattr(run_gradio_model, "index_later", lambda services: None)
    for name in ("ROUTER_PAGE_AUTH", "INFERIOR_MODEL", "SUPERIOR_MODEL"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    return given


def test_localhost_takes_feedback_and_does_not_warn(launched, trained_checkpoint, capsys):
    run_gradio_model.main(["--model_save_dir", str(trained_checkpoint)])
    services = launched["services"]
    assert launched["server_name"] == "127.0.0.1" and launched["auth"] is None
    assert services.may_take_feedback and services.feedback is None and services.both_models is None
    page = services.checkpoints.first
    assert page.feedback_file.match("final-datasets/router_dataset_labelled-*.jsonl") and page.threshold == 0.5
    assert set(launched["hosts"]) == {"127.0.0.1", "localhost", "::1"}
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "http://127.0.0.1:7860/" in captured.out.splitlines()[-1]
    assert launched["uploads_mode"] == 0o700 and not launched["uploads"].exists()  # it goes with the page


def test_another_loopback_address_is_this_machine_too(launched, trained_checkpoint, capsys):
    run_gradio_model.main(["--model_save_dir", str(trained_checkpoint), "--server_name", "127.0.0.2"])
    assert set(launched["hosts"]) == {"127.0.0.1", "localhost", "::1", "127.0.0.2"}
    assert launched["services"].is_local and capsys.readouterr().err == ""


@pytest.mark.parametrize("flags", [["--server_name", "0.0.0.0"], ["--share"]])
def test_beyond_localhost_there_is_no_feedback_and_a_warning(launched, trained_checkpoint, flags):
    with pytest.warns(UserWarning, match="ROUTER_PAGE_AUTH"):
        run_gradio_model.main(["--model_save_dir", str(trained_checkpoint), "--threshold", "0.3", *flags])
    assert not launched["services"].may_take_feedback and launched["hosts"] is None
    assert launched["services"].checkpoints.first.threshold == 0.3


def test_names_behind_a_proxy_are_allowed_by_a_flag(launched, trained_checkpoint):
    run_gradio_model.main(["--model_save_dir", str(trained_checkpoint), "--allowed_hosts", "page.example"])
    assert "page.example" in launched["hosts"] and "localhost" in launched["hosts"]


def test_a_login_from_the_environment_silences_the_warning(launched, trained_checkpoint, capsys, monkeypatch):
    monkeypatch.setenv("ROUTER_PAGE_AUTH", "alice:pass:word")
    run_gradio_model.main(["--model_save_dir", str(trained_checkpoint), "--server_name", "0.0.0.0", "--feedback"])
    assert launched["auth"] == ("alice", "pass:word")
    assert launched["services"].may_take_feedback
    captured = capsys.readouterr()
    assert captured.err == "" and "pass:word" not in captured.out


def test_with_a_login_feedback_needs_its_flag(launched, trained_checkpoint, monkeypatch):
    monkeypatch.setenv("ROUTER_PAGE_AUTH", "alice:password")
    run_gradio_model.main(["--model_save_dir", str(trained_checkpoint)])
    assert not launched["services"].may_take_feedback


def test_both_models_are_asked_only_on_localhost_or_behind_a_login(launched, trained_checkpoint, monkeypatch):
    for name in ("INFERIOR", "SUPERIOR"):
        monkeypatch.setenv(f"{name}_MODEL", "m")
        monkeypatch.setenv(f"{name}_API_KEY", "k")
    run_gradio_model.main(["--model_save_dir", str(trained_checkpoint)])
    assert launched["services"].both_models
    with pytest.warns(UserWarning, match="ROUTER_PAGE_AUTH"):
        run_gradio_model.main(["--model_save_dir", str(trained_checkpoint), "--server_name", "0.0.0.0"])
    assert launched["services"].both_models is None
    monkeypatch.setenv("ROUTER_PAGE_AUTH", "alice:password")
    run_gradio_model.main(["--model_save_dir", str(trained_checkpoint), "--server_name", "0.0.0.0"])
    assert launched["services"].both_models
