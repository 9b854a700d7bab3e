"""Rules of the house that a reader relies on: who imports whom, and that no checkpoint's code ever runs."""

import ast
from pathlib import Path

import pytest
from conftest import ROOT

STAGES = ("dataset_analysis", "create_dataset", "finetuning_model", "inference")
SOURCES = [path for folder in (*STAGES, "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]
SOURCES += [ROOT / "router_data.py", ROOT / "router_model.py", ROOT / "prompt_files.py", ROOT / "request_text.py"]
PROGRAM = "run_script(main)"
PLUG_INS = {"inference.litellm_router"}  # LiteLLM imports it
SHARED = {"inference.sessions"}  # how a conversation is routed, for whatever serves it


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported_modules(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return modules


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def room_of(module: str) -> str:
    """The folder inside its stage; empty at the top level."""
    return module.split(".")[1] if module.count(".") > 1 else ""


def programs_of(stage: str) -> list[Path]:
    return [path for path in sorted(ROOT.glob(f"{stage}/*.py")) if PROGRAM in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_stages_meet_only_in_files_and_in_the_root_modules(path):
    room = path.relative_to(ROOT).parts[0]
    others = {module.split(".")[0] for module in imported_modules(path)} & {*STAGES, "benchmarks"} - {room}
    assert room == "benchmarks" or not others


def test_the_rule_sees_every_kind_of_import(tmp_path):
    path = tmp_path / "program.py"
    path.write_text("def f():\n    from inference import page\n    import create_dataset.pricing as p\n")
    assert {"inference", "inference.page", "create_dataset.pricing"} <= imported_modules(path)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_library_is_imported_from_a_program_of_another_name(path):
    """A program's functions are its own; what two programs share lives in a library beside them."""
    programs = set(map(module_of, programs_of("*")))
    allowed = {"finetuning_model.export_onnx"}  # stage 3 exports what it saves
    if path.relative_to(ROOT).parts[0] == "benchmarks" or path.name == "score_prompts_ray.py":
        return
    assert not imported_modules(path) & programs - allowed


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_loading_never_runs_code_of_a_checkpoint(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "from_pretrained":
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            assert "trust_remote_code" in given, f"line {node.lineno} may ask to run a checkpoint's code"
            assert isinstance(given["trust_remote_code"], ast.Constant) and given["trust_remote_code"].value is False
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            assert isinstance(node.value, ast.Constant) and node.value.value is False


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_rows_of_json_are_split_at_newlines_only(path):
    """`splitlines` also splits at U+2028 and its like, which JSON holds as they are: one prompt would end the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ListComp | ast.GeneratorExp | ast.For):
            names = {getattr(part, "attr", "") for part in ast.walk(node)}
            assert not {"splitlines", "loads"} <= names, f"line {node.lineno}: split at newlines"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_json_nested_without_end_is_an_error_like_others(path):
    """A RecursionError is no ValueError: who catches the one must catch the other."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Try):
            called = {getattr(part, "attr", "") for line in node.body for part in ast.walk(line)}
            caught = {
                getattr(part, "id", "") for handler in node.handlers for part in ast.walk(handler.type or handler)
            }
            if {"loads", "raw_decode"} & called and {"ValueError", "JSONDecodeError"} & caught:
                assert {"RecursionError", "Exception"} & caught, f"line {node.lineno}"


@pytest.mark.parametrize("stage", STAGES)
def test_a_library_with_users_in_one_room_only_lives_in_that_room(stage):
    files = {module_of(path): path for path in sorted((ROOT / stage).rglob("*.py"))}
    programs = set(map(module_of, programs_of(stage)))
    imports = {module: imported_modules(path) for module, path in files.items()}
    for module in set(files) - programs - PLUG_INS - SHARED:
        rooms = {room_of(user) for user in files if module in imports[user]}
        assert rooms, f"nothing uses {module}"
        assert room_of(module) or len(rooms) > 1 or rooms == {""}, f"{module} belongs in {stage}/{rooms.pop()}/"
