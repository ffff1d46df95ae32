"""An interrupted training resumes bit for bit, and divergence is reported."""

import dataclasses

import pytest
import torch
from interrupting import (
    Counting,
    aligned_with_everything,
    checkpoint_after_every_step,
    forget,
    interrupted_after,
    run_in_pieces,
    same_in_pieces,
    weights,
    write_state,
)

from study.core.lease import lease
from study.core.randomness import make_rng
from study.core.workspace import Diverged, Workspace
from study.plan.scales import SCALES, smoke
from study.plan.specs import FitGenerator, FitTokenizer, Phase
from study.plan.stage import TOKENIZER_WEIGHTS, Stage, snapshot_file, state_files
from study.stages import fit_generator, fit_tokenizer
from study.submit.jobs import run_stage
from study.train import checkpoint
from study.train.checkpoint import Position, restore
from study.train.loop import decayed_learning_rate, train


@pytest.mark.parametrize("kind", ["plain", "with everything"])
def test_a_tokenizer_interrupted_repeatedly_ends_with_the_same_bits(kind, tiny_plan, tiny_scale, monkeypatch):
    scale = tiny_scale if kind == "plain" else aligned_with_everything(tiny_scale)
    plan = tiny_plan(scale, 16 if kind == "plain" else 32)
    fits = [s for s in plan.stages if s.kind == "fit_tokenizer"]
    stage = fits[0] if kind == "plain" else next(s for s in fits if s.spec.foundation)
    whole = same_in_pieces(stage, monkeypatch, 16, 4)  # stopped at 16, 32 and 48 of 64 images
    assert list(whole) == [TOKENIZER_WEIGHTS] and not state_files(stage.folder)


def in_phases(scale, starts):
    """With all losses, and phases in which every VF setting changes; the discriminator starts with the first phase."""
    everything = aligned_with_everything(scale)
    settings = [{"vf_weight": 0.4}, {"vf_weight": 0.2, "vf_cosine_margin": 0.1, "vf_distance_margin": 0.0}]
    phases = tuple(Phase(from_images=start, **own) for start, own in zip(starts, settings, strict=False))
    recipe = dataclasses.replace(everything.tokenizer, gan_start_images=64, phases=phases)
    return dataclasses.replace(everything, tokenizer=recipe)


def aligned(plan):
    return next(s for s in plan.stages if s.kind == "fit_tokenizer" and s.spec.foundation)


def test_phases_interrupted_after_every_batch_end_with_the_same_bits(tiny_plan, tiny_scale, monkeypatch):
    stage = aligned(tiny_plan(in_phases(tiny_scale, (24, 40)), 32))
    same_in_pieces(stage, monkeypatch, 8, 8)  # before, at and after both starts


def test_a_phase_is_a_training_that_starts_from_the_weights_of_the_previous_one(tiny_plan, tiny_scale):
    """Including discriminator and projection, with new optimizers and the discriminator active at once, as in the
    released code with `init_weight` and `disc_start: 1`."""
    spec = aligned(tiny_plan(in_phases(tiny_scale, (24,)), 32)).spec
    plain = dataclasses.replace(spec.recipe, phases=())
    later = dataclasses.replace(
        plain, gan_start_images=0, **{k: v for k, v in vars(spec.recipe.phases[0]).items() if k != "from_images"}
    )

    def trained(recipe, starts, before=None):
        changed = dataclasses.replace(spec, recipe=recipe)
        networks = fit_tokenizer.build(changed)
        state = fit_tokenizer.training_state(changed, networks)
        modules = {name: value for name, value in state.items() if isinstance(value, torch.nn.Module)}
        for name, module in modules.items():
            if before:
                module.load_state_dict(before[name])
        step = fit_tokenizer.step_function(changed, networks, state)
        for images_seen in starts:
            step(images_seen)
        return {name: {k: v.clone() for k, v in module.state_dict().items()} for name, module in modules.items()}

    def same(a, b):
        return all(torch.equal(value, b[name][key]) for name, state in a.items() for key, value in state.items())

    first = trained(plain, (0, 8, 16))
    chained = trained(later, (24, 32), first)
    whole = trained(spec.recipe, (0, 8, 16, 24, 32))
    assert set(whole) == {"tokenizer", "linear_proj", "discriminator"}
    assert same(whole, chained)
    assert not same(whole, trained(plain, (0, 8, 16, 24, 32)))
    assert not same({"discriminator": first["discriminator"]}, whole)


def test_the_recipe_of_a_batch_is_that_of_its_phase():
    recipe = SCALES["imagenet256-system"]().tokenizer
    first, second = (phase.from_images for phase in recipe.phases)
    settings = [
        (now.vf_weight, now.vf_cosine_margin, now.vf_distance_margin)
        for now in map(recipe.at, (0, first - 256, first, second - 256, second, recipe.budget_images - 256))
    ]
    assert settings == [(0.5, 0, 0)] * 2 + [(0.1, 0, 0)] * 2 + [(0.1, 0.5, 0.25)] * 2  # as released
    assert recipe.at(0).gan_start_images == 640_256  # long before the first phase
    epoch = 1_281_167
    for start, epochs in ((first, 100), (second, 115), (recipe.budget_images, 130)):
        assert 0 <= start - epochs * epoch < recipe.batch_images


@pytest.mark.parametrize("changes", [{}, {"objective": "gaussian-diffusion"}, {"logit_normal_end_images": 40}])
def test_a_generator_interrupted_repeatedly_ends_with_the_same_bits(changes, tiny_plan, tiny_scale, monkeypatch):
    recipe = dataclasses.replace(tiny_scale.generator, **changes)
    plan = tiny_plan(dataclasses.replace(tiny_scale, generator=recipe))
    for stage in plan.jobs[0].stages:
        if stage.kind != "reconstruct":
            run_stage(stage)
    stage = plan.jobs[1].stages[0]
    run_stage(stage)
    whole = weights(stage.folder)
    assert len(whole) == 4  # EMA and raw weights at two marks
    forget(stage)
    interrupted_after(monkeypatch, 24)
    assert run_in_pieces(stage) == 3
    assert weights(stage.folder) == whole


def test_times_are_a_function_of_images_seen_and_logit_normal_until_its_end():
    """Between 0.35 and 0.65 lie 30% of uniform times, and of logit-normal ones P(|z| < logit 0.65) = 46.4%."""

    def times(images_seen, **fields):
        recipe = dataclasses.replace(smoke().generator, **fields)
        return fit_generator.training_times(recipe, images_seen, 20_000, make_rng(0, "generator step", images_seen))

    def middle(values):
        return ((values - 0.5).abs() < 0.15).float().mean().item()

    for fields in ({}, {"objective": "gaussian-diffusion"}):
        assert torch.equal(times(64, **fields), times(64, **fields))
        assert not torch.equal(times(64, **fields), times(96, **fields))
    for images_seen, share in ((0, 0.464), (63, 0.464), (64, 0.3), (640, 0.3)):
        assert middle(times(images_seen, logit_normal_end_images=64)) == pytest.approx(share, abs=0.015)
    timesteps = times(0, objective="gaussian-diffusion")
    assert timesteps.dtype == torch.long
    assert set(timesteps.tolist()) == set(range(1000))


def test_the_ema_differs_from_the_raw_weights_and_another_seed_from_both(tiny_plan, tiny_scale):
    plan = tiny_plan(dataclasses.replace(tiny_scale, seeds=(0, 1)))
    for stage in (*plan.jobs[0].stages, plan.jobs[1].stages[0], plan.jobs[2].stages[0]):
        if stage.kind != "reconstruct":
            run_stage(stage)
    first, second = (weights(plan.jobs[i].stages[0].folder) for i in (1, 2))
    marks = sorted(first)
    assert len({first[name] for name in marks} | {second[name] for name in marks}) == 8


def test_after_a_truncated_checkpoint_the_previous_one_is_used(tmp_path, caplog):
    layer = torch.nn.Linear(3, 2)
    write_state(tmp_path, {"layer": layer}, Position(8, 1.0))
    before = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight.add_(1)
    write_state(tmp_path, {"layer": layer}, Position(16, 2.0))
    newest = sorted(tmp_path.glob("checkpoint-*"))[-1]
    newest.write_bytes(newest.read_bytes()[:-7])
    assert restore(tmp_path, {"layer": layer}) == Position(8, 1.0)
    assert torch.equal(layer.weight, before)
    assert "falling back" in caplog.text


def test_a_checkpoint_with_any_altered_byte_is_never_accepted(tmp_path, caplog):
    """Flips one bit of every byte in turn: of the header, its metadata and the tensors."""
    state = {"layer": torch.nn.Linear(2, 1), "half": torch.nn.Linear(1, 1, bias=False).bfloat16()}
    write_state(tmp_path, state, Position(8, 1.0))
    before = {name: tensor.clone() for name, tensor in checkpoint.pack(state).items()}
    with torch.no_grad():
        state["layer"].weight.add_(1)
    write_state(tmp_path, state, Position(16, 2.0, 3))
    after = {name: tensor.clone() for name, tensor in checkpoint.pack(state).items()}
    newest = sorted(tmp_path.glob("checkpoint-*"))[-1]
    whole = newest.read_bytes()
    fell_back = 0
    for place in range(len(whole)):
        newest.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        position = restore(tmp_path, state)
        fell_back += position == Position(8, 1.0)
        assert position in (Position(8, 1.0), Position(16, 2.0, 3)), place
        expected = before if position.images_seen == 8 else after  # a flip may only alter the checksum's name
        assert all(torch.equal(t, expected[name]) for name, t in checkpoint.pack(state).items()), place
    assert fell_back > len(whole) - 30
    assert "the checksum differs" in caplog.text


def test_only_the_last_two_checkpoints_are_kept(tmp_path):
    for images in (8, 16, 24):
        write_state(tmp_path, {"layer": torch.nn.Linear(1, 1)}, Position(images, 0.0))
    assert [int(p.stem.split("-")[1]) for p in sorted(tmp_path.glob("*"))] == [16, 24]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_an_optimizer_comes_back_with_its_moments_in_the_layout_of_the_weights(tmp_path, layout):
    def trained(steps, restored_from=None):
        torch.manual_seed(0)
        layer = torch.nn.Conv2d(3, 4, 3).to(memory_format=layout)
        optimizer = torch.optim.AdamW(layer.parameters(), fused=True)
        state = {"layer": layer, "optimizer": optimizer}
        if restored_from:
            restore(restored_from, state)
        for _ in range(steps):
            optimizer.zero_grad()
            layer(torch.arange(75.0).view(1, 3, 5, 5)).square().sum().backward()
            optimizer.step()
        return state

    write_state(tmp_path, trained(3), Position(3, 0.0))
    assert torch.equal(trained(2, tmp_path)["layer"].weight, trained(5)["layer"].weight)


def test_a_step_whose_gradient_is_not_finite_changes_nothing_and_is_counted(tmp_path):
    counting = Counting(lambda seen, attempt: seen in (16, 80))
    assert counting.train(tmp_path)["skipped_steps"] == 2
    assert counting.weight.weight.item() == pytest.approx(18, rel=1e-5)
    assert "skipped_steps" not in Counting().train(tmp_path / "other")


def test_a_training_that_stays_not_finite_has_diverged_at_its_first_bad_step(tmp_path, monkeypatch):
    checkpoint_after_every_step(monkeypatch)
    counting = Counting(lambda seen, attempt: seen >= 40)
    with pytest.raises(Diverged, match="diverged at step 6: the loss or its gradient is not finite"):
        counting.train(tmp_path)
    assert counting.attempts[40] == 2  # once more from the checkpoint before
    assert restore(tmp_path, counting.state).images_seen == 40
    assert counting.weight.weight.isfinite().all()


def test_after_a_temporary_fault_the_training_continues_from_the_checkpoint(tmp_path, monkeypatch):
    checkpoint_after_every_step(monkeypatch)
    sound = Counting()
    sound.train(tmp_path / "sound")
    counting = Counting(lambda seen, attempt: 40 <= seen <= 64 and attempt == 1)
    assert counting.train(tmp_path / "faulty")["skipped_steps"] == 4
    assert torch.equal(counting.weight.weight, sound.weight.weight)


def test_learning_rate_warms_up_then_falls_to_its_final_share():
    rates = [decayed_learning_rate(n, peak=2.0, budget=100, warmup=10, final=0.1) for n in range(101)]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == rates[10] == 2.0
    assert rates[100] == pytest.approx(0.2)
    assert rates[55] == pytest.approx(1.1)
    assert decayed_learning_rate(70, peak=2.0, budget=100, warmup=0, final=1.0) == 2.0


def test_every_number_that_matters_moves_the_fingerprint_and_names_do_not(tiny_plan):
    plan = tiny_plan()
    fit, generator = plan.jobs[0].stages[0], plan.jobs[1].stages[0]

    def changed(stage, **fields):
        return Stage(stage.kind, dataclasses.replace(stage.spec, **fields), stage.inputs).fingerprint

    spec = fit.spec
    assert isinstance(spec, FitTokenizer)
    assert isinstance(generator.spec, FitGenerator)
    moved = {
        fit.fingerprint,
        changed(fit, seed=1),
        changed(fit, train_images=47),
        changed(fit, recipe=dataclasses.replace(spec.recipe, kl_weight=2e-6)),
        changed(fit, compute=dataclasses.replace(spec.compute, precision="bfloat16")),
        changed(fit, data=dataclasses.replace(spec.data, content="other")),
    }
    assert len(moved) == 6
    assert changed(fit, data=dataclasses.replace(spec.data, name="another folder")) == fit.fingerprint
    assert changed(fit, compute=dataclasses.replace(spec.compute, threads=2, device="cuda")) == fit.fingerprint
    other = Stage("fit_tokenizer", dataclasses.replace(spec, seed=1))
    encode = Stage("encode", generator.inputs["latents"].spec, {"tokenizer": other})
    assert Stage("fit_generator", generator.spec, {"latents": encode}).fingerprint != generator.fingerprint


def test_seconds_of_all_attempts_are_added(tmp_path):
    write_state(tmp_path, {}, Position(8, 100.0))
    with lease(tmp_path) as held:
        record = train(
            Workspace(tmp_path, held, "training", write_record=print), {}, lambda seen: torch.tensor(1.0),
            budget_images=16, batch_images=8, device="cpu",
        )  # fmt: skip
    assert 100 <= record["train_seconds"] < 101
    assert snapshot_file(tmp_path, "ema", 8).name == "ema-000000000008.safetensors"
