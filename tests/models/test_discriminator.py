import pytest
import torch
from waves import wave

from models.discriminator import Discriminator, hinge_discriminator_loss, hinge_generator_loss, initialize


def test_layout_is_that_of_taming():
    names = {name: tuple(p.shape) for name, p in Discriminator(3).named_parameters()}
    assert names["main.0.weight"] == (64, 3, 4, 4)
    assert names["main.2.weight"] == (128, 64, 4, 4)
    assert names["main.8.weight"] == (512, 256, 4, 4)
    assert names["main.11.weight"] == (1, 512, 4, 4)
    assert "main.2.bias" not in names
    assert "main.11.bias" in names


def test_patches_and_gradients():
    discriminator = Discriminator(1, width=8, layers=2)
    pixels = wave(2, 1, 32, 32, k=0.2).requires_grad_()
    logits = discriminator(pixels)
    assert logits.shape == (2, 1, 6, 6)
    hinge_generator_loss(logits).backward()
    assert pixels.grad.abs().sum() > 0


def test_hinge_losses_by_hand():
    assert hinge_discriminator_loss(torch.tensor([2.0]), torch.tensor([-3.0])) == 0
    assert hinge_discriminator_loss(torch.tensor([0.0, 2.0]), torch.tensor([1.0])) == 0.5 * (0.5 + 2.0)
    assert hinge_generator_loss(torch.tensor([1.0, 3.0])) == -2


def test_initialisation_depends_on_its_seed_alone():
    values = []
    for seed in (1, 1, 2):
        discriminator = Discriminator(3, width=8, layers=1)
        initialize(discriminator, torch.Generator().manual_seed(seed))
        values.append(torch.cat([p.detach().flatten() for p in discriminator.parameters()]))
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])
    with pytest.raises(ValueError, match="at least one layer"):
        Discriminator(layers=0)
