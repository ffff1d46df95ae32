import numpy as np
import torch

from study.core.randomness import batch_indices, derive_seed, make_rng


def test_every_epoch_shows_every_image_once_and_in_another_order():
    order = np.concatenate([batch_indices(3, 10, seen, 4) for seen in range(0, 20, 4)])
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
    assert list(order[:10]) != list(order[10:])


def test_a_batch_depends_on_the_images_seen_and_not_on_the_batches_before():
    one_by_one = np.concatenate([batch_indices(0, 7, seen, 1) for seen in range(21)])
    assert np.array_equal(one_by_one, batch_indices(0, 7, 0, 21))
    assert np.array_equal(batch_indices(0, 7, 5, 9), one_by_one[5:14])


def test_seeds_purposes_and_positions_do_not_share_noise():
    seeds = {derive_seed(s, p, i) for s in range(5) for p in ("noise", "label") for i in range(5)}
    assert len(seeds) == 50
    a, b = (torch.randn(4, generator=make_rng(0, "noise", i)) for i in (0, 1))
    assert not torch.equal(a, b)
    assert torch.equal(a, torch.randn(4, generator=make_rng(0, "noise", 0)))
