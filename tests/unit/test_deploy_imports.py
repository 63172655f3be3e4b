"""deploy/ never imports torch, and boto3 lives in one file of it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

DEPLOY = Path(__file__).parents[2] / "deploy"


def test_boto3_lives_in_one_file() -> None:
    named = re.compile(r"^\s*(import|from) (boto3|botocore)\b", re.MULTILINE)
    assert [path.name for path in DEPLOY.rglob("*.py") if named.search(path.read_text())] == ["aws.py"]


def test_the_command_line_never_imports_torch() -> None:
    program = "import sys, deploy.cli; print([name for name in ('torch', 'train', 'serve') if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=DEPLOY.parent, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
