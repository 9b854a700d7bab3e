"""Rules of the house that a reader relies on: who imports whom, and that no checkpoint's code ever runs."""

import ast
import json
import re
import sys
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from conftest import ROOT

STAGES = ("dataset_analysis", "create_dataset", "finetuning_model", "inference")
SOURCES = [path for folder in (*STAGES, "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]
SOURCES += [ROOT / "router_data.py", ROOT / "router_model.py", ROOT / "prompt_files.py", ROOT / "request_text.py"]
PROGRAM = "run_script(main)"
PLUG_INS = {"inference.litellm_router"}  # LiteLLM imports it
SHARED = {"inference.sessions"}  # how a conversation is routed, for whatever serves it


@cache
def nodes_of(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def places_where(is_fault) -> list[str]:
    """Where the sources hold a node that breaks a rule."""
    return [
        f"{path.relative_to(ROOT)}, line {node.lineno}" for path in SOURCES for node in nodes_of(path) if is_fault(node)
    ]


def names_in(*nodes: ast.AST) -> set[str]:
    """The names and attributes that stand in the nodes and below."""
    parts = [part for node in nodes for part in ast.walk(node)]
    return {name for part in parts if (name := getattr(part, "attr", getattr(part, "id", "")))}


def imported_modules(path: Path) -> set[str]:
    modules = set()
    for node in nodes_of(path):
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


def test_stages_meet_only_in_files_and_in_the_root_modules():
    for path in SOURCES:
        room = path.relative_to(ROOT).parts[0]
        others = {module.split(".")[0] for module in imported_modules(path)} & {*STAGES, "benchmarks"} - {room}
        assert room == "benchmarks" or not others, path


def test_the_rule_sees_every_kind_of_import(tmp_path):
    path = tmp_path / "program.py"
    path.write_text("def f():\n    from inference import page\n    import create_dataset.pricing as p\n")
    assert {"inference", "inference.page", "create_dataset.pricing"} <= imported_modules(path)


def test_no_library_is_imported_from_a_program_of_another_name():
    """A program's functions are its own; what two programs share lives in a library beside them."""
    programs = set(map(module_of, programs_of("*")))
    allowed = {"finetuning_model.export_onnx"}  # stage 3 exports what it saves
    for path in SOURCES:
        if path.relative_to(ROOT).parts[0] != "benchmarks" and path.name != "score_prompts_ray.py":
            assert not imported_modules(path) & programs - allowed, path


def test_loading_never_runs_code_of_a_checkpoint():
    def is_no(value: ast.expr | None) -> bool:
        return isinstance(value, ast.Constant) and value.value is False

    def may_run_code(node: ast.AST) -> bool:
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "from_pretrained":
            return not is_no({keyword.arg: keyword.value for keyword in node.keywords}.get("trust_remote_code"))
        return isinstance(node, ast.keyword) and node.arg == "trust_remote_code" and not is_no(node.value)

    assert places_where(may_run_code) == []


def test_rows_of_json_are_split_at_newlines_only():
    """`splitlines` also splits at U+2028 and its like, which JSON holds as they are: one prompt would end the file."""

    def splits_anywhere(node: ast.AST) -> bool:
        return isinstance(node, ast.ListComp | ast.GeneratorExp | ast.For) and {"splitlines", "loads"} <= names_in(node)

    assert places_where(splits_anywhere) == []


def test_json_nested_without_end_is_an_error_like_others():
    """A RecursionError is no ValueError: who catches the one must catch the other."""

    def forgets_it(node: ast.AST) -> bool:
        if not isinstance(node, ast.Try) or not {"loads", "raw_decode"} & names_in(*node.body):
            return False
        caught = names_in(*(handler.type or handler for handler in node.handlers))
        return bool({"ValueError", "JSONDecodeError"} & caught) and not {"RecursionError", "Exception"} & caught

    assert places_where(forgets_it) == []


LOCKS = {
    "lock.txt": ("../requirements.txt",), "lock-dev.txt": ("dev.txt", "ray.txt", "otel.txt"), "offline.txt": (),
    "offline-dev.txt": (), "lock-litellm.txt": ("litellm.txt",), "lock-clients.txt": ("clients.txt",),
}  # fmt: skip
PIN = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;]+)((?:\\\n|.)*)", re.MULTILINE)


def pins_of(name: str) -> dict[str, str]:
    """Each package with its version, and what follows: its hashes."""
    pins = PIN.findall((ROOT / "requirements" / name).read_text(encoding="utf-8"))
    return {f"{re.sub('[-_.]+', '-', package.lower())}=={version}": rest for package, version, rest in pins}


@pytest.mark.parametrize("lock", LOCKS)
def test_every_package_of_a_lock_has_its_hash_and_every_pin_is_in_a_lock(lock):
    locked = pins_of(lock)
    assert locked and all("--hash=sha256:" in rest for rest in locked.values())
    pinned = {pin for name in LOCKS[lock] for pin in pins_of(name) if not pin.startswith("torch==")}
    assert pinned <= locked.keys()


def test_make_installs_by_hash_alone_and_runs_no_script_of_a_package():
    lines = (ROOT / "Makefile").read_text(encoding="utf-8").splitlines()
    installs = [line for line in lines if line.startswith("\t") and re.search(r"\$\((PIP|INSTALL)\) ", line)]
    by_version = [line for line in installs if "--no-deps --require-hashes -r requirements/" not in line]
    assert len(installs) > 5 and len(by_version) == 2 and all("$(TORCH)" in line for line in by_version)
    assert not [line for line in lines if "pip install" in line and not line.startswith(("#", "INSTALL := "))]
    assert [line for line in lines if "npm" in line and "ci" in line.split()] == [
        line for line in lines if "npm ci --ignore-scripts" in line
    ]
    packages = json.loads((ROOT / "tests/inference/endpoint/clients/package-lock.json").read_text())["packages"]
    assert all("integrity" in package for name, package in packages.items() if name)


def test_ci_ends_what_it_started_and_nothing_by_name():
    assert not re.search(r"\b(pkill|killall)\b", (ROOT / ".ci" / "run").read_text(encoding="utf-8"))


def test_what_the_programs_import_is_pinned():
    def plain(name: str) -> str:
        return name.lower().replace("-", "_")

    files = [ROOT / "requirements.txt", *(ROOT / "requirements" / f"{name}.txt" for name in ("ray", "otel"))]
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    pinned = {plain(name[0]) for line in lines if (name := re.match(r"[\w-]+(?=[^=]*==)", line))}
    packages = packages_distributions()
    sources = [path for path in SOURCES if path.relative_to(ROOT).parts[0] != "benchmarks"]
    imported = {module.split(".")[0] for path in sources for module in imported_modules(path)}
    others = imported - sys.stdlib_module_names - {*STAGES, *(path.stem for path in SOURCES)}
    assert len(others) > 20
    unpinned = {module for module in others if not set(map(plain, packages.get(module, [module]))) & pinned}
    assert unpinned <= {"fastapi", "litellm"}  # which stand in LiteLLM's own environment


@pytest.mark.parametrize("stage", STAGES)
def test_a_library_with_users_in_one_room_only_lives_in_that_room(stage):
    files = {module_of(path): path for path in sorted((ROOT / stage).rglob("*.py"))}
    programs = set(map(module_of, programs_of(stage)))
    imports = {module: imported_modules(path) for module, path in files.items()}
    for module in set(files) - programs - PLUG_INS - SHARED:
        rooms = {room_of(user) for user in files if module in imports[user]}
        assert rooms, f"nothing uses {module}"
        assert room_of(module) or len(rooms) > 1 or rooms == {""}, f"{module} belongs in {stage}/{rooms.pop()}/"
