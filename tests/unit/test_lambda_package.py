"""What the function's files may lean on: Lambda brings no more than Python and boto3, and Pillow only on request."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.lambda_zip import SOURCE

FILES = sorted(SOURCE.glob("*.py"))
OURS = {path.stem for path in FILES}


def imported(path: Path) -> Iterator[str]:
    """The packages that a file imports, those only for type checking aside."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[0] for name in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_files_lean_on_python_boto3_and_each_other(path: Path) -> None:
    allowed = set(sys.stdlib_module_names) | OURS
    extra = {"endpoint.py": {"botocore"}, "photos.py": {"PIL"}}.get(path.name, set())

    assert set(imported(path)) - allowed == extra


def test_no_file_hides_one_of_pythons_own() -> None:
    """Zipped flat, our files stand beside Python's on its path, and before them."""
    assert set(sys.stdlib_module_names) & OURS == set()


def test_the_document_names_every_code_of_an_error() -> None:
    """A code is the word after a status, or the first argument of what makes a time-out."""
    source = "\n".join(path.read_text(encoding="utf-8") for path in FILES)
    codes = set(re.findall(r'(?:\b[45]\d\d,|timed_out\()\s*"(\w+)"', source))
    document = (SOURCE.parent / "docs/lambda.md").read_text(encoding="utf-8")

    assert codes > {"throttled", "endpoint_timeout", "unreadable_photo", "bucket_not_allowed"}
    assert {code for code in codes if f"`{code}`" not in document} == set()


def test_what_ships_never_imports_what_does_not() -> None:
    assert [path.name for path in FILES if "local" in set(imported(path))] == []
