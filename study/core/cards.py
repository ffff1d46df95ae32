"""The GPUs that this process may use, found wherever torch finds one, without torch or CUDA in this process.

Torch itself is asked, in a process of its own: so drivers of all kinds (also under WSL2, AMD's, those of a sandbox),
slices of a GPU, and every form of the variables that hide GPUs count as they will in the jobs. Importing torch takes
seconds, so it is asked only where there is a device file of a GPU.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEVICES = Path("/dev")
# NVIDIA's driver, the same of a Jetson, Windows' under WSL2, and AMD's
DEVICE_FILES = ("nvidiactl", "nvidia[0-9]*", "nvhost-gpu", "nvgpu", "dxg", "kfd")
VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
ASK_SECONDS = 120
ASK = """
import json, torch, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
cards = []
for index in range(count):
    about = torch.cuda.get_device_properties(index)
    with torch.cuda.device(index):
        halves = torch.cuda.is_bf16_supported(including_emulation=False)
    cards.append([about.name, about.total_memory / 2**30, halves])
built, hip = torch.version.cuda or torch.version.hip, torch.version.hip is not None
print(json.dumps({"cards": cards, "hip": hip, "built": built is not None, "said": [str(w.message) for w in caught]}))
"""


@dataclass(frozen=True, kw_only=True)
class Card:
    """A GPU, or a slice of one.

    Args:
        visible: what CUDA_VISIBLE_DEVICES calls it: an index, a UUID, or the name of a slice.
        name: as torch has it, such as `NVIDIA H100 80GB HBM3`.
        bfloat16: whether it multiplies matrices of bfloat16 itself, as NVIDIA's do since Ampere.
        variable: the name of that variable, another one for AMD's.
    """

    visible: str
    name: str
    memory_gib: float
    bfloat16: bool
    variable: str = "CUDA_VISIBLE_DEVICES"


def cards() -> tuple[Card, ...]:
    """The GPUs that torch can use in processes with this environment, in its order."""
    return _found()[0]


def no_card_because() -> str:
    """Why torch finds no GPU here, in a clause; empty where it finds one."""
    return _found()[1]


def on_cards(own: Sequence[Card], function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a process that sees these GPUs alone. For processes that have not used one yet."""
    for variable in {"CUDA_VISIBLE_DEVICES", own[0].variable} if own else ():  # AMD's runtime knows both
        os.environ[variable] = ",".join(card.visible for card in own)
    return function(*arguments)


@functools.cache
def _found() -> tuple[tuple[Card, ...], str]:
    files = sorted(path.name for pattern in DEVICE_FILES for path in DEVICES.glob(pattern))
    if not files:
        return (), "there is no device file of one"
    command = [sys.executable, "-P", "-c", ASK]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ASK_SECONDS, check=True)
        answer = json.loads(done.stdout.splitlines()[-1])
    except subprocess.CalledProcessError as error:
        return (), f"torch failed when it looked for one: {(error.stderr.strip().splitlines() or ['no message'])[-1]}"
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError) as error:
        return (), f"torch did not answer when it was asked for one ({type(error).__name__})"
    if answer["cards"]:
        # AMD's runtime reads CUDA's variable where its own is not set; what ROCR_VISIBLE_DEVICES hides, neither counts
        own = "HIP_VISIBLE_DEVICES" if answer["hip"] else "CUDA_VISIBLE_DEVICES"
        listed = os.environ.get(own) or os.environ.get("CUDA_VISIBLE_DEVICES")
        names = [name.strip() for name in listed.split(",")] if listed else map(str, range(len(answer["cards"])))
        return tuple(
            Card(visible=visible, name=name, memory_gib=gib, bfloat16=halves, variable=own)
            for visible, (name, gib, halves) in zip(names, answer["cards"], strict=False)  # CUDA ignores what follows
        ), ""
    found = f"there is {files[0]} in {DEVICES}, but "
    if not answer["built"]:
        return (), found + "this torch is built for processors alone"
    hidden = [f"{name} is {os.environ[name]!r}" for name in VISIBLE if name in os.environ]
    return (), found + "; ".join(["torch finds none", *hidden, *answer["said"]])
