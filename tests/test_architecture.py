"""The rules of ARCHITECTURE.md, each an assertion."""

import ast
import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from pipeline.evaluation.study.files import ASKING_CODE
from pipeline.gan.job import STAGE2_KEYS
from pipeline.params import GanParams

ROOT = Path(__file__).parent.parent
MODULES = sorted(path for folder in ("pipeline", "stages") for path in (ROOT / folder).rglob("*.py"))
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]

# Package of ours -> the packages of ours that it may import. params holds only dataclasses; anyone may read them.
ALLOWED = {
    "params": set(),
    "allocation": set(),
    "tracking": set(),
    "storage": set(),
    "carrying": {"tracking"},
    "cluster": {"carrying", "storage"},
    "tracked": {"tracking"},
    "systems": set(),
    "data": {"data", "params"},
    "text": {"text", "data", "params"},
    "gan": {"gan", "data", "params", "allocation", "storage"},
    "evaluation": {"evaluation", "data", "text", "params", "allocation"},
    "paper_tables": {"params", "tracked", "systems", "evaluation"},
    "handover": {"tracking"},
    "jobs": set(),
    "registry": {"tracking"},
    "serving": {"data", "text", "gan"},
    "cluster_job": {"carrying", "cluster", "handover", "params", "registry", "storage", "tracking"},
    "submitting": {"data", "handover", "jobs", "tracking"},
    "submit_cli": {"data", "handover", "jobs", "submitting", "systems"},
    "study_cli": {"tracking", "data", "evaluation"},
    "generating": {"data", "text", "gan"},
    "cli": {"paper_tables", "registry", "study_cli", "submit_cli", "generating", "data"},
    "__main__": {"cli"},
}
DOCUMENTED = ast.Module | ast.FunctionDef | ast.ClassDef
HOMES = {
    "albumentations": {"pipeline/data/albumentations_release.py"},
    "ray": {"pipeline/cluster.py", "pipeline/carrying.py", "pipeline/jobs.py"},
    "pyarrow.fs": {"pipeline/storage.py"},
    "mlflow": {"pipeline/tracking.py", "pipeline/tracked.py", "pipeline/registry.py", "pipeline/serving.py"},
    "hydra": {"pipeline/systems.py"},
    "sqlalchemy": {"pipeline/evaluation/study/ballots.py"},
    "fastapi": {"pipeline/evaluation/study/web.py"},
    "uvicorn": {"pipeline/study_cli.py"},
    "itsdangerous": {"pipeline/evaluation/study/links.py"},
    "torch.distributed": {"pipeline/gan/workers.py"},
    "dvc": set(),
    "pickle": {"pipeline/data/released_pickles.py"},
}


def imports_of(path: Path) -> set[str]:
    """Return the dotted names of everything that a module imports, at its top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def module_file(name: str) -> Path | None:
    path = ROOT / (name.replace(".", "/") + ".py")
    return path if path.is_file() else None


def import_closure(path: Path) -> set[str]:
    """Return the files of ours that a module needs, itself included, less params.py and tracking.py."""
    found: set[Path] = set()
    waiting = [path]
    while waiting:
        path = waiting.pop()
        found.add(path)
        files = (module_file(name) for name in imports_of(path) if name.startswith(("pipeline", "stages")))
        waiting += [file for file in files if file and file not in found]
    names = {file.relative_to(ROOT).as_posix() for file in found}
    return names - {"pipeline/params.py", "pipeline/tracking.py"}


def package_of(name: str) -> str | None:
    match = re.match(r"pipeline\.(\w+)", name)
    return match[1] if match else None


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_flow_one_way(path: Path) -> None:
    names = imports_of(path)
    if path.is_relative_to(ROOT / "stages"):
        return
    own = package_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    assert not any(name.split(".")[0] == "stages" for name in names), f"{path} imports stages"
    if own is None or own == "__init__":
        return
    wrong = {package_of(name) for name in names} - ALLOWED[own] - {None}
    assert not wrong, f"{path} imports {wrong}"


@pytest.mark.parametrize("package", HOMES)
def test_a_heavy_package_has_one_home(package: str) -> None:
    users = {
        path.relative_to(ROOT).as_posix()
        for path in MODULES
        if any(name == package or name.startswith(f"{package}.") for name in imports_of(path))
    }
    assert users == HOMES[package]


def test_the_training_runs_without_ray_mlflow_and_dvc() -> None:
    files = import_closure(ROOT / "pipeline/gan/training.py")
    packages = {name.split(".")[0] for file in files for name in imports_of(ROOT / file)}
    assert not packages & {"ray", "mlflow", "dvc"}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_has_one_name(stage: str) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    source = (ROOT / "stages" / f"{stage}.py").read_text()
    assert stage in params, f"params.yaml has no section {stage}"
    assert stage in STAGES[stage]["params"]
    assert f'stage_run("{stage}")' in source
    assert STAGES[stage]["cmd"].startswith(f"python -m stages.{stage} ")


def test_stage1_depends_on_all_of_section_gan_but_what_is_stage2s_alone() -> None:
    keys = {field.name for field in fields(GanParams)} - set(STAGE2_KEYS)
    assert set(STAGES["train_stage1"]["params"]) == {"train_stage1", *(f"gan.{key}" for key in keys)}
    assert STAGES["train_stage2"]["params"] == ["train_stage2", "gan"]


def test_every_stage_file_is_a_stage() -> None:
    assert {path.stem for path in (ROOT / "stages").glob("*.py")} - {"__init__"} == set(STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_code_it_runs(stage: str) -> None:
    code = {dep for dep in STAGES[stage]["deps"] if dep.endswith((".py", ".j2", ".css", ".js"))}
    expected = import_closure(ROOT / "stages" / f"{stage}.py")
    if "pipeline/evaluation/report.py" in expected:
        expected |= {"pipeline/evaluation/report.html.j2", "pipeline/evaluation/page.css"}
    if "pipeline/evaluation/study/preparing.py" in expected:
        expected |= {f"pipeline/evaluation/study/{name}" for name in ASKING_CODE}
    assert code == expected


@pytest.mark.parametrize("stage", STAGES)
def test_hardware_is_no_dependency(stage: str) -> None:
    assert "hardware" not in STAGES[stage]["params"]


@pytest.mark.parametrize("path", sorted((ROOT / "stages").glob("*.py")), ids=lambda path: path.name)
def test_a_stage_file_only_wires(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 30
    tree = ast.parse(text)
    docs = {ast.get_docstring(node, clean=False) for node in ast.walk(tree) if isinstance(node, DOCUMENTED)}
    strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert not [string for string in strings - docs if "/" in string], "paths come from dvc.yaml"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_module_says_what_it_holds(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))
