"""Model, key, address and proxy from the environment: what can't work is refused in one line that names the mend."""

import os
import shutil
import subprocess
import sys
import warnings

import pytest
from conftest import ROOT
from labelling_runs import each_once, label, write_prompts

from create_dataset import api_settings
from router_data import InputError


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("“sk-curly”", "left double quotation mark"),
        ('"sk-straight"', "quotation mark"),
        ("'sk-single'", "apostrophe"),
        ("sk-in two", "space"),
        ("sk-broken\nline", "line break"),
        ("Bearer sk-x", "space"),
        ("sk-\u200bzero", "zero width space"),
        ("sk-schlüssel", "latin small letter u with diaeresis"),
        ("sk-\ufeffmark", "zero width no-break space"),
    ],
)
def test_characters_that_no_key_has_are_named_and_the_key_is_not_shown(monkeypatch, key, what):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    write_prompts(1)
    with pytest.raises(InputError) as error:
        label()
    line = str(error.value)
    assert "OPENAI_API_KEY" in line and what in line and "\n" not in line
    assert "sk-" not in line and "schlüssel" not in line


@pytest.mark.parametrize("key", ["sk-x\n", " sk-x", "\tsk-x\r\n"])
def test_white_space_around_a_key_is_no_part_of_it(serve, monkeypatch, key):
    prompts = write_prompts(2)
    server = serve()
    monkeypatch.setenv("OPENAI_API_KEY", key)
    assert label() == 0 and each_once(prompts)
    assert "authorization: bearer sk-x\r\n" in server.headers[-1].lower()


@pytest.mark.parametrize("key", ["", "  \n"])
def test_no_key_is_said_before_anything_is_read(monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(InputError, match=r"no OPENAI_API_KEY.*\.env"):
        label()


@pytest.mark.parametrize(
    "ending", ["/", "/chat/completions", "/chat/completions/", "/completions", "/models", "/responses"]
)
def test_an_address_with_a_route_or_a_slash_behind_it_is_mended(serve, monkeypatch, capsys, ending):
    prompts = write_prompts(2)
    server = serve()
    monkeypatch.setenv("OPENAI_BASE_URL", f" {server.url}{ending}\n")
    assert label() == 0 and each_once(prompts)
    assert f"endpoint: {server.url}\n" in capsys.readouterr().out
    assert {path for path in server.paths if "chat" in path} == {"/v1/chat/completions"}


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:8000/v1", "no http:// or https:// before it; write http://127.0.0.1:8000/v1"),
        ("ftp://127.0.0.1/v1", "is not an address such as http://"),
        ("http:///v1", "is not an address such as http://"),
        ("http://127.0.0.1:80000/v1", "is not an address such as http://"),
        ("http://127.0.0.1 :8000", "holds a space"),
        ('"http://127.0.0.1:8000/v1"', "holds a quotation mark"),
        ("http://user:word@127.0.0.1:port/v1", "is not an address such as http://"),
    ],
)
def test_what_is_no_address_is_refused(monkeypatch, address, message):
    monkeypatch.setenv("OPENAI_BASE_URL", address)
    with pytest.raises(InputError) as error:
        api_settings.base_address()
    assert message in str(error.value) and "word" not in str(error.value)


def test_the_default_address_and_one_of_azure():
    assert api_settings.base_address() == "https://api.openai.com/v1"
    azure = "https://resource.openai.azure.com/openai/v1"
    os.environ["OPENAI_BASE_URL"] = f"{azure}/"
    assert api_settings.base_address() == azure


def test_a_password_in_the_address_is_not_printed():
    assert api_settings.printable_address("http://user:word@host:8000/v1") == "http://host:8000/v1"


def test_a_key_in_a_message_is_masked(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret\n")
    assert api_settings.without_key("wrong key\n  sk-very-secret given") == "wrong key *** given"
    assert api_settings.without_key("no \x1b[2J\x9b1A") == "no \\x1b[2J\\x9b1A"
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    assert api_settings.without_key("exact text") == "exact text", "a word for a local server is no secret"


@pytest.mark.parametrize(
    ("address", "is_here"),
    [
        ("http://127.0.0.1:8000/v1", True),
        ("http://localhost:11434/v1", True),
        ("http://api.localhost", True),
        ("http://[::1]:8000/v1", True),
        ("http://0.0.0.0:8000/v1", True),
        ("http://192.168.1.2:8000/v1", False),
        ("https://api.openai.com/v1", False),
        ("http://localhost.example.com/v1", False),
        ("http://127.example.com/v1", False),
    ],
)
def test_servers_on_this_machine_are_known(address, is_here):
    assert api_settings.is_this_machine(address) == is_here


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9", "127.0.0.1:9"])
def test_a_server_on_this_machine_is_asked_past_the_proxy(serve, monkeypatch, proxy):
    prompts = write_prompts(2)
    serve()
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy)
    assert label() == 0 and each_once(prompts)


def test_a_socks_proxy_without_its_package_is_named_with_the_mend(monkeypatch):
    monkeypatch.setitem(sys.modules, "socksio", None)
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    with pytest.raises(InputError) as error:
        label()
    assert "ALL_PROXY names a SOCKS proxy" in str(error.value) and "pip install socksio" in str(error.value)


@pytest.mark.parametrize(("name", "value"), [("HTTPS_PROXY", "foo://127.0.0.1:9"), ("SSL_CERT_FILE", "/nowhere.pem")])
def test_other_settings_of_connections_are_named(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"cannot set up connections.*check.*{name}"):
        label()


def test_an_endpoint_behind_a_proxy_that_is_away_names_both(monkeypatch, capsys):
    write_prompts(1)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://provider.invalid/v1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with pytest.warns(UserWarning, match="in clear"):
        assert label() == 1
    said = capsys.readouterr().err
    assert "http://provider.invalid/v1 through the proxy of HTTP_PROXY" in said and "check OPENAI_BASE_URL" in said


@pytest.mark.parametrize(
    ("address", "warned"),
    [
        ("http://203.0.113.7/v1", True), ("http://models.example.com/v1", True), ("https://api.openai.com/v1", False),
        ("http://127.0.0.1:8000/v1", False), ("http://localhost/v1", False), ("http://[::1]:8000/v1", False),
    ],
)  # fmt: skip
def test_a_key_that_goes_to_another_machine_in_clear_is_warned_of(monkeypatch, address, warned):
    monkeypatch.setenv("OPENAI_BASE_URL", address)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-the-secret-key")
    with warnings.catch_warnings(record=True, action="always") as said:
        api_settings.make_client(timeout=1, max_retries=0, is_async=False)
    about_it = [str(warning.message) for warning in said if "in clear" in str(warning.message)]
    assert bool(about_it) == warned and "sk-the-secret-key" not in "".join(about_it)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoding", "works"), [("utf-16", False), ("utf-16-le", False), ("utf-8-sig", True), ("utf-8", True)]
)
def test_the_encoding_of_env(serve, tmp_path, encoding, works):
    """What PowerShell and Notepad write; `.env` lies beside router_data.py, so the project is copied."""
    prompts = write_prompts(2)
    server = serve()
    copy = tmp_path / "project"
    shutil.copytree(ROOT / "create_dataset", copy / "create_dataset", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("router_data.py", "prompt_files.py"):
        shutil.copy(ROOT / name, copy)
    lines = f"OPENAI_API_KEY=sk-from-the-file\nOPENAI_BASE_URL={server.url}\nOPENAI_MODEL=m2\n"
    (copy / ".env").write_bytes(lines.encode(encoding))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI")}
    words = "--dataset prompts.jsonl --labelling_prompt labelling.txt --output_file out.jsonl".split()
    command = [sys.executable, str(copy / "create_dataset" / "label_prompts.py"), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if works:
        assert done.returncode == 0 and each_once(prompts) and server.bodies[0]["model"] == "m2"
        assert "sk-from-the-file" in server.headers[-1]
    else:
        assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1
        assert ".env is not UTF-8" in done.stderr and "save it as UTF-8" in done.stderr
