"""README, CONTRIBUTING and the pages of docs/, with the blocks and the commands that they show."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in CHECKOUT.glob("docs/*.md")))
DOCUMENTS = {page: (CHECKOUT / page).read_text() for page in PAGES}
ALL = "\n".join(DOCUMENTS.values())
EXAMPLES = {"parts", "width", "dinov2_small"}  # CONTRIBUTING makes them up
COMMANDS = sorted(set(re.findall(r"python -m (study\.\w+)", ALL)))


def blocks(text: str, language: str = "") -> list[str]:
    """The fenced blocks of a document in one language."""
    return [body for tag, body in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S) if tag == language]


def shell_lines(block: str) -> list[str]:
    """The lines of a block that a shell reads: whole, with the variables that the block assigns in their place, and
    what `--wrap "..."` or `torchrun` runs as a line of its own."""
    whole = block.replace("\\\n", " ")
    assigned = dict(re.findall(r'^(\w+)="([^"]*)"$', whole, re.M))
    for name, value in assigned.items():
        whole = re.sub(rf"\${name}\b", value, whole)
    lines = [re.sub(r"^torchrun .*?-m ", "python -m ", line) for line in whole.splitlines()]
    return [wrapped[1] if (wrapped := re.search(r'--wrap "(.*)"', line)) else line for line in lines]


def commands(text: str) -> list[tuple[str, tuple[str, ...]]]:
    """Module and arguments of every call of ours that a document shows, in blocks and between backquotes, where a bare
    name is no call, nor one with a part in brackets, which stands for others."""
    found = []
    shown = [line for block in blocks(text) for line in shell_lines(block)]
    for line in [*shown, *re.findall(r"`(python -m study\.\w+ [^`\n]+)`", text)]:
        words = shlex.split(line, comments=True) if "-m study." in line else []
        if "-m" in words and not any("[" in word for word in words):
            module, *arguments = words[words.index("-m") + 1 :]
            found.append((module, tuple(arguments)))
    return found
