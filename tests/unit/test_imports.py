"""Imports run one way (ARCHITECTURE.md)."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STANDARD_LIBRARY_ONLY = ("container/cgroup.py", "container/contract.py", "container/errors.py")
PHOTOS_AND_ARTIFACT = tuple(
    f"container/{name}.py" for name in ("preprocessing", "artifact", "heatmap", "probabilities")
)


def imported(path: Path) -> set[str]:
    """Top-level names of every import in a file, those inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


def files(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found, f"{folder}/ holds no Python"
    return found


@pytest.mark.parametrize("name", STANDARD_LIBRARY_ONLY)
def test_these_need_the_standard_library_alone(name: str) -> None:
    assert imported(ROOT / name) <= sys.stdlib_module_names


@pytest.mark.parametrize("name", PHOTOS_AND_ARTIFACT)
def test_photos_and_artifact_add_pillow_and_numpy(name: str) -> None:
    assert imported(ROOT / name) - sys.stdlib_module_names <= {"PIL", "container", "numpy"}


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("container", {"train", "serve", "selftest", "deploy"}),
        ("train", {"serve", "selftest", "deploy", "boto3"}),
        ("serve", {"train", "selftest", "deploy", "boto3", "sagemaker_inference"}),
        ("selftest", {"deploy", "boto3"}),
        ("deploy", {"train", "serve", "selftest", "torch", "torchvision"}),
    ],
)
def test_a_part_knows_only_what_is_below_it(folder: str, forbidden: set[str]) -> None:
    for path in files(folder):
        assert not imported(path) & (forbidden | {"lambda", "pickle"}), path


@pytest.mark.parametrize(
    ("module", "folder", "owner"),
    [
        ("sagemaker_training", "train", {"train/toolkit.py"}),
        ("boto3", "deploy", {"deploy/aws.py"}),
    ],
)
def test_a_foreign_api_lives_in_one_file(module: str, folder: str, owner: set[str]) -> None:
    users = {str(path.relative_to(ROOT)) for path in files(folder) if module in imported(path)}
    assert users <= owner


def test_serving_imports_torch_in_its_torch_engine_alone() -> None:
    users = {path.name for path in files("serve") if "torch" in imported(path)}
    assert users <= {"torch_engine.py"}
