"""Downloads of published data sets and weights."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

from study.plan.weight_files import FILES, checked_hash, keep_hashes, require_weights, weights_folder

TIMEOUT_SECONDS = 10.0  # of waiting for an answer; a whole download may take longer


def download(url: str, path: Path) -> None:
    """Fetch `url` into `path` through torchvision. Raises OSError without an answer in TIMEOUT_SECONDS."""
    from torchvision.datasets.utils import download_url

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_SECONDS)
    try:
        download_url(url, str(path.parent), path.name)
    except RuntimeError as error:  # torchvision raises it for a broken file
        raise OSError(str(error)) from error
    finally:
        socket.setdefaulttimeout(before)


def run_command(command: list[str], folder: Path) -> None:
    """Run a command in a folder. Raises ValueError with its last line of output when it fails, or is not installed."""
    if shutil.which(command[0]) is None:
        raise ValueError(f"{command[0]} is not installed")
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"{' '.join(command[:1])} took more than {error.timeout:.0f} s") from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise ValueError(f"{command[0]} failed: {lines[-1] if lines else f'exit {done.returncode}'}")


def fetch_weights(name: str) -> Path:
    """Download the file called `name` to the weights folder; if no hash is stated for it, its own hash is recorded.

    Raises:
        OSError: no answer, or a broken transfer.
        ValueError: the downloaded file is not the stated one, or no URL is known for it.
    """
    if name not in FILES:
        return require_weights(name)
    weight, folder = FILES[name], weights_folder()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / weight.file
    if path.is_file():
        checked_hash(path, weight)
    else:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as temporary:
            fetched = Path(temporary) / weight.file
            download(weight.url, fetched)
            checked_hash(fetched, weight)
            os.replace(fetched, path)
    keep_hashes()
    return path
