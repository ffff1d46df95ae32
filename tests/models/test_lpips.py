"""LPIPS against the package it follows, and its behaviour as a loss."""

import pytest
import torch
from waves import wave

from models.lpips import LPIPS, vgg16_blocks


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory):
    """Random weights in the layout of torchvision's file."""
    torch.manual_seed(0)
    layers = [layer for block in vgg16_blocks() for layer in block]
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    state = torch.nn.Sequential(*layers).state_dict()
    torch.save({f"features.{name}": value for name, value in state.items()}, path)
    return path


@pytest.mark.filterwarnings("ignore::UserWarning")  # of the package's call of torchvision
def test_values_are_those_of_the_package(vgg_file):
    """With the learned heads inside the package, and the same (random) VGG16 in both."""
    lpips = pytest.importorskip("lpips")
    theirs = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).eval()
    ours = LPIPS(vgg_file)
    blocks = [getattr(theirs.net, f"slice{i + 1}") for i in range(5)]
    own = [layer for block in ours.stages for layer in block if isinstance(layer, torch.nn.Conv2d)]
    for mine, other in zip(own, (x for b in blocks for x in b if isinstance(x, torch.nn.Conv2d)), strict=True):
        other.load_state_dict(mine.state_dict())
    a, b = wave(2, 3, 64, 64, k=0.3), wave(2, 3, 64, 64, k=0.7)
    expected = theirs(a, b).flatten()
    assert (expected > 0).all()
    torch.testing.assert_close(ours(a, b), expected, rtol=1e-5, atol=1e-7)


def test_it_is_a_distance_that_can_be_minimised():
    net = LPIPS(None)
    flat = torch.zeros(2, 1, 32, 32)  # grey, smaller than its input, and without any texture
    moved = (flat + 0.1 * wave(2, 1, 32, 32, k=0.5)).requires_grad_()
    assert net(flat, flat).tolist() == [0, 0]
    distance = net(flat, moved)
    assert distance.shape == (2,) and (distance > 0).all()
    distance.sum().backward()
    assert torch.isfinite(moved.grad).all() and moved.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in net.parameters())
    black = torch.full((1, 3, 64, 64), -1.0, requires_grad=True)
    net(black, torch.zeros(1, 3, 64, 64)).sum().backward()
    assert torch.isfinite(black.grad).all()
    with pytest.raises(ValueError, match="differ in shape"):
        net(flat, torch.zeros(2, 3, 32, 32))


def test_other_weights_are_refused(vgg_file, tmp_path):
    pytest.importorskip("lpips")
    state = torch.load(vgg_file, weights_only=True)
    state.pop("features.28.bias")
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth does not hold torchvision's VGG16.*features\.28\.bias"):
        LPIPS(tmp_path / "other.pth")
