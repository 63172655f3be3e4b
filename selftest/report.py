"""What a check found, and how that is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum


class Verdict(Enum):
    """`FAILED` is what makes training or serving impossible; a `WARNING` makes it slower, or one of the two."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True)
class Finding:
    """One line of the report; `advice` says what to do about a verdict that is not OK."""

    verdict: Verdict
    name: str
    what: str
    advice: str = ""

    def text(self) -> str:
        line = f"{self.verdict.value:<8} {self.name:<14} {self.what}"
        return f"{line}\n{'':<8} {'':<14} -> {self.advice}" if self.advice else line


def ok(name: str, what: str) -> Finding:
    return Finding(Verdict.OK, name, what)


def warning(name: str, what: str, advice: str) -> Finding:
    return Finding(Verdict.WARNING, name, what, advice)


def failed(name: str, what: str, advice: str) -> Finding:
    return Finding(Verdict.FAILED, name, what, advice)


Check = Callable[[], Iterable[Finding]]


def findings(checks: Iterable[Check]) -> Iterator[Finding]:
    """What the checks find, one after the other; a check that breaks is a finding too."""
    for check in checks:
        try:
            yield from check()
        except Exception as error:
            yield failed(check.__name__, f"the check broke: {type(error).__name__}: {error}", "please report this")


def summary(found: list[Finding]) -> str:
    """The last line."""
    counts = {verdict: sum(finding.verdict is verdict for finding in found) for verdict in Verdict}
    return ", ".join(f"{count} {verdict.value}" for verdict, count in counts.items())
