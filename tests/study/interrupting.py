"""Trainings that are cut off again and again, and small ones to cut off."""

import dataclasses

import torch

from study.core.lease import lease
from study.core.stopping import Interrupted, stop_requested
from study.core.workspace import Workspace
from study.plan.stage import state_files
from study.submit.jobs import run_stage
from study.train import checkpoint
from study.train.loop import gradient_norm, train, update


def interrupted_after(monkeypatch, images):
    """Ask every training to stop once it has seen this many images in one attempt."""
    original = Workspace.progress

    def progress(self, done, total, unit="images", note=""):
        original(self, done, total, unit, note)
        if done % images == 0 and done < total:
            stop_requested.set()

    monkeypatch.setattr(Workspace, "progress", progress)


def checkpoint_after_every_step(monkeypatch):
    """Every training writes a checkpoint after each step, before the next."""
    save = checkpoint.Writer.save

    def save_and_wait(self, *arguments, **options):
        save(self, *arguments, **options)
        self.wait()

    monkeypatch.setattr(checkpoint.Writer, "due", True)
    monkeypatch.setattr(checkpoint.Writer, "save", save_and_wait)


def write_state(folder, state, position):
    checkpoint.write(folder, checkpoint.host_copy(state), position)


def run_in_pieces(stage):
    """Run a stage again and again until it is done, each time from what the last attempt left."""
    attempts = 0
    while True:
        attempts += 1
        stop_requested.clear()
        try:
            run_stage(stage)
        except Interrupted:
            continue
        return attempts


def weights(folder):
    """The weights that a training left, without its states."""
    states = state_files(folder).values()
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors") if path not in states}


def forget(stage):
    """Delete all that a training has left, so that it runs again."""
    for path in (*stage.folder.glob("record*.json"), *stage.folder.glob("*.safetensors")):
        path.unlink()


def aligned_with_everything(scale):
    """VF loss on the real foundation model, perceptual term, discriminator: every state that must survive."""
    return dataclasses.replace(
        scale,
        foundation_models=("lite0",),
        foundation=dataclasses.replace(scale.foundation, input_size=32, stride=8),
        tokenizer=dataclasses.replace(
            scale.tokenizer, perceptual_weight=0.1, gan_weight=0.5, gan_start_images=24, gan_width=8
        ),
    )


class Counting:
    """A training of one weight, which each step raises by 1; `bad(images seen, attempts at it)` spoils the gradient."""

    def __init__(self, bad=lambda seen, attempt: False):
        self.weight = torch.nn.Linear(1, 1, bias=False)
        self.weight.weight.data.zero_()
        self.optimizer = torch.optim.AdamW(self.weight.parameters(), lr=1.0, weight_decay=0.0, fused=True)
        self.state = {"weight": self.weight, "optimizer": self.optimizer}
        self.bad, self.attempts = bad, {}

    def step(self, seen):
        attempt = self.attempts[seen] = self.attempts.get(seen, 0) + 1
        self.weight.weight.grad = torch.full((1, 1), float("nan") if self.bad(seen, attempt) else -1.0)
        norm = gradient_norm(self.optimizer)
        update(self.optimizer, norm)
        return torch.tensor(1.0) + 0 * norm

    def train(self, folder, steps=20):
        with lease(folder) as held:
            out = Workspace(folder, held, "training", write_record=print)
            return train(out, self.state, self.step, budget_images=8 * steps, batch_images=8, device="cpu")


def same_in_pieces(stage, monkeypatch, images, attempts):
    """Train a stage whole, then again, stopped after every `images`: both must end with the same weights, returned."""
    run_stage(stage)
    whole = weights(stage.folder)
    forget(stage)
    interrupted_after(monkeypatch, images)
    assert run_in_pieces(stage) == attempts
    assert weights(stage.folder) == whole
    return whole
