"""Studies as they are committed. Tests take them out of git's index: in the working tree stands what a user has run."""

from __future__ import annotations

import subprocess
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
PLACES = ("results/", "figures/")
NONE = "no git checkout with committed results here: an unpacked archive, or there is no git"


def listed(checkout: Path = CHECKOUT) -> list[str]:
    """Files of results/ and figures/ in the index, by their place in the checkout; none where there is no index."""
    try:
        return [name for name in _git(checkout, "ls-files", "-z", *PLACES).split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        return []


def take_out(folder: Path, checkout: Path = CHECKOUT) -> Path:
    """Write these files below a folder, as the index has them."""
    _git(checkout, "checkout-index", "-z", "--stdin", f"--prefix={folder}/", input="\0".join(listed(checkout)))
    return folder


def _git(checkout: Path, *arguments: str, input: str | None = None) -> str:
    command = ["git", "-C", str(checkout), "--git-dir=.git", *arguments]  # no other repository that it may lie in
    return subprocess.run(command, input=input, capture_output=True, text=True, check=True).stdout
