"""The documents, as tests read them: pages, their fenced blocks, and the commands in those."""

from __future__ import annotations

import ast
import itertools
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs/walkthrough.ipynb"
PAGES = (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")))
SHELL = ("sh", "bash")

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_SETTING = re.compile(r"[A-Z_]+=\S*")


@dataclass(frozen=True)
class Block:
    """A fenced block; `language` is the word behind the fence."""

    page: str
    language: str
    text: str


@dataclass(frozen=True)
class Command:
    """One command, without the variables that are set before it."""

    page: str
    words: tuple[str, ...]
    settings: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.words)[:60]}"


def blocks() -> list[Block]:
    return [
        Block(path.name, language, re.sub(rf"^{indent}", "", text, flags=re.MULTILINE))
        for path in PAGES
        for indent, language, text in _FENCE.findall(path.read_text(encoding="utf-8"))
    ]


def prose(path: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", path.read_text(encoding="utf-8"))


def commands() -> list[Command]:
    """Those of every shell block, of the text, and of the notebook."""
    texts = [(block.page, block.text) for block in blocks() if block.language in SHELL]
    inline = [(path.name, text) for path in PAGES for text in re.findall(r"`([^`\n]+)`", prose(path))]
    begins = ("python -m ", "make ", "docker run ", "kennel ", "./build_and_push.sh ")
    texts += [(page, text) for page, text in inline if text.startswith(begins)]
    texts += [(NOTEBOOK.name, text) for text in notebook_commands()]
    return [command for page, text in texts for command in parsed(page, text)]


def notebook_commands() -> list[str]:
    """What the notebook's cells hand to sh(…), with the settings of its first cell filled in."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    values: dict[str, object] = {}
    exec(sources[0], values)  # noqa: S102  the cell is ours, and has assignments alone
    calls = [node for source in sources for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    texts = [call.args[0] for call in calls if isinstance(call.func, ast.Name) and call.func.id == "sh"]
    return [str(eval(compile(ast.Expression(text), "cell", "eval"), values)) for text in texts]  # noqa: S307


def parsed(page: str, text: str) -> list[Command]:
    """The commands of a text, a line each; what stands behind a pipe or && is a command of its own."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), "|"]:
            if word not in ("|", "&&", ";", ">"):
                words.append(word)
                continue
            settings = tuple(itertools.takewhile(_SETTING.fullmatch, words))
            if len(words) > len(settings):
                found.append(Command(page, tuple(words[len(settings) :]), settings))
            words = []
            if word == ">":
                break
    return found
