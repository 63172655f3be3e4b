"""Programs whose packages do not fit beside the project's own: each in an environment of its own, or absent."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_INSTALLS = {
    ".venv-sam": "aws-sam-cli",  # pins other versions of pydantic and boto3
    ".venv-sdk": "'sagemaker<3'",
    ".venv-sdk3": "'sagemaker-core>=2'",
}


def tool(environment: str, program: str) -> Path:
    """A program of one of these environments; a skip that says how to install it where it is absent."""
    path = ROOT / environment / "bin" / program
    if not path.exists():
        install = f"python -m venv {environment} && {environment}/bin/pip install {_INSTALLS[environment]}"
        pytest.skip(f"needs {environment}: {install}")
    return path


def on_path(program: str, package: str) -> Path:
    """A program on PATH, or a skip that names its package."""
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"needs `{program}` on PATH (package {package})")
    return Path(found)
