"""What a machine is and has: asked here, and of a cluster's node by a job."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import shutil
import socket
import time
from pathlib import Path

from study.core.cards import Card, cards, no_card_because
from study.core.compute import cores, no_compiler_because, processor
from study.core.files import read_json, write_json
from study.core.paths import study_root
from study.core.provenance import PACKAGES
from study.plan.runs import Plan
from study.plan.weight_files import weights_folder

ASKED = "asked.json"  # a file under the study root that a node must see as it was written
REQUIRED = (*PACKAGES, "torchvision", "submitit", "safetensors", "pandas", "scipy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answers:
    """What a machine answers.

    Args:
        packages: versions by name; "" where one is missing.
        cards: its GPUs; none: `no_card` says why.
        no_compiler: what torch.compile lacks there for the plan's device; "": nothing.
        free_gb: of the file system of the study root.
        root_is_shared: whether the study root holds what this command wrote there.
        weights: whether the folder of weight files is there.
    """

    host: str
    python: str
    packages: dict[str, str]
    processor: str
    cores: int
    cards: tuple[Card, ...]
    no_card: str
    no_compiler: str
    free_gb: float
    root_is_shared: bool
    weights: bool


def ask(token: str, device: str) -> Answers:
    """The answers of this machine. Args: token: what `leave_token` returned; device: of the plan."""
    return Answers(
        host=socket.gethostname(),
        python=platform.python_version(),
        packages={name: _version(name) for name in REQUIRED},
        processor=processor(),
        cores=cores(),
        cards=cards(),
        no_card=no_card_because(),
        no_compiler=no_compiler_because(device),
        free_gb=_free_gb(study_root()),
        root_is_shared=(read_json(study_root() / "doctor" / ASKED) or {}).get("token") == token,
        weights=weights_folder().is_dir(),
    )


def leave_token() -> str:
    """Write a new word under the study root, by which a node shows that it sees the same folder."""
    token = f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}"
    write_json(study_root() / "doctor" / ASKED, {"token": token})
    return token


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _free_gb(folder: Path) -> float:
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(nearest).free / 1e9


def lacks_of(answers: Answers, plan: Plan, needed_gb: float) -> list[str]:
    """What a machine lacks for a plan, beside what `plan.missing` names, a line each.

    Args:
        needed_gb: disk that the plan's results and data take.
    """
    lines = [f"the package {name} (pip install {name})" for name, version in answers.packages.items() if not version]
    if answers.free_gb < needed_gb:
        lines.append(
            f"disk: {study_root()} has {answers.free_gb:,.1f} GB free, and the plan takes {needed_gb:,.1f}: set "
            "STUDY_ROOT to a larger one"
        )
    slow = [card.name for card in answers.cards if not card.bfloat16 and plan.compute.device == "cuda"]
    for field in ("precision", "tokenizer_precision"):
        if slow and getattr(plan.scale, field) == "bfloat16":
            lines.append(
                f"bfloat16: {slow[0]} does not multiply in it, and emulates it slowly (--set {field}=float32, which is "
                "another study)"
            )
    return lines


def differences(node: Answers, here: Answers, plan: Plan) -> list[str]:
    """What makes a cluster's node unfit for jobs that are planned here, a line each."""
    lines = []
    if not node.root_is_shared:
        lines.append(f"the node {node.host} does not see {study_root()} as this machine does: set STUDY_ROOT to a "
                     "folder that both share")  # fmt: skip
    if node.python != here.python:
        lines.append(f"the node {node.host} runs Python {node.python}, this machine {here.python}")
    for name, version in here.packages.items():
        if node.packages[name] != version:
            lines.append(f"the node {node.host} has {name} {node.packages[name] or '(none)'}, this machine {version}")
    if plan.compute.device == "cuda" and not node.cards:
        lines.append(f"the node {node.host} gives its job no GPU: {node.no_card}")
    if node.no_compiler and any(stage.spec.compute.compile for stage in plan.stages):
        lines.append(f"the node {node.host} cannot compile blocks without {node.no_compiler} (--set "
                     "execution.compile=False)")  # fmt: skip
    if here.weights and not node.weights:
        lines.append(f"the node {node.host} does not see the weights in {weights_folder()}")
    return lines


def described(answers: Answers, plan: Plan) -> list[tuple[str, str]]:
    """What a machine has, in lines of two cells."""
    packages = [f"{name} {version}" for name, version in answers.packages.items() if version]
    names = [f"{card.name}, {card.memory_gib:.0f} GiB" for card in answers.cards]
    several = f"{len(names)} x " if len(set(names)) == 1 and len(names) > 1 else ""
    gpu = several + "; ".join(dict.fromkeys(names)) if names else f"none: {answers.no_card}"
    tf32 = "" if all(card.bfloat16 for card in answers.cards) else ", which this GPU computes as float32"
    tokenizers = plan.scale.tokenizer_precision + (tf32 if plan.scale.tokenizer_precision == "tf32" else "")
    return [
        ("interpreter", f"Python {answers.python}, {', '.join(packages)}"),
        ("processor", f"{answers.processor}, {answers.cores} cores"),
        ("GPU", gpu),
        ("precision", f"generators {plan.scale.precision}, tokenizers {tokenizers}"),
        ("disk", f"{answers.free_gb:,.1f} GB free under {study_root()}"),
    ]
