"""Fixtures that several kinds of tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# As `train` sets it for itself, and for the same reason: before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Where it is set, rich keeps the width that it finds when it is imported; tests set one of their own.
os.environ.pop("COLUMNS", None)

from tests.containers import IMAGE, Engine, find_engine


@pytest.fixture(scope="session")
def engine() -> Engine:
    """The real engine with the built image, or a skip that names what is missing."""
    command = find_engine()
    if command is None:
        pytest.skip("no container engine answers here")
    engine = Engine(command)
    if engine("image", "inspect", IMAGE, check=False).returncode != 0:
        pytest.skip(f"{IMAGE} is not built; run: make image")
    return engine


@pytest.fixture(scope="session")
def real_photos() -> Path:
    """A folder of real photos, in folders per class, that KENNEL_PHOTOS names."""
    folder = os.environ.get("KENNEL_PHOTOS")
    if not folder:
        pytest.skip("KENNEL_PHOTOS names no folder of real photos")
    path = Path(folder)
    assert path.is_dir(), f"KENNEL_PHOTOS={folder} is no folder"
    return path


def pytest_report_header() -> str:
    return f"real photos: {os.environ.get('KENNEL_PHOTOS') or 'none (KENNEL_PHOTOS names no folder)'}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what tests have recorded to be shown, such as a table of what they measured."""
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport) and report.when == "call":
                for text in (value for name, value in report.user_properties if name == "shown"):
                    terminalreporter.write_line(f"\n{text}")
