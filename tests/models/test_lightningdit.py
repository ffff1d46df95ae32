import pytest
import torch
from waves import fill, wave

from models.configs import GeneratorConfig, generator_config
from models.lightningdit import LightningDiT, drop_labels, initialize, patchify, rotate, unpatchify

LIGHTNING = {"swiglu": True, "rope": True, "rms_norm": True, "qk_norm": False, "adaln_shift": True}
DIT = {"swiglu": False, "rope": False, "rms_norm": False, "qk_norm": False, "adaln_shift": True}
MIXED = {"swiglu": True, "rope": True, "rms_norm": False, "qk_norm": True, "adaln_shift": False}
OTHER = {"swiglu": False, "rope": True, "rms_norm": True, "qk_norm": True, "adaln_shift": False}


def small(patch: int = 1, **options) -> GeneratorConfig:
    sizes = {"grid": 4, "in_channels": 5, "num_classes": 7, "width": 48, "depth": 3, "heads": 4}
    return GeneratorConfig(name="small", patch=patch, **{**sizes, **options})


def inputs():
    return wave(2, 5, 4, 4, k=0.61), torch.tensor([0.2, 0.7]), torch.tensor([3, 7])


@pytest.mark.parametrize(
    ("options", "patch", "expected"),
    [
        (LIGHTNING, 1, [-0.033664, -0.019654, 0.092812, -0.019318]),
        (LIGHTNING, 2, [-0.033772, -0.026409, -0.023824, -0.068694]),
        (DIT, 1, [0.211233, 0.460655, 0.026316, 0.198341]),
        (DIT, 2, [0.210598, 0.238623, 0.375237, -0.006406]),
        (MIXED, 1, [0.23433, 0.30312, -0.14127, 0.211928]),
        (OTHER, 2, [-0.048949, -0.015785, -0.034405, -0.06622]),
    ],
)
def test_values_of_the_reference(options, patch, expected):
    """Recorded from the reference implementation with these weights; both agreed, gradients included, to
    1e-6."""
    generator = LightningDiT(small(patch, **options))
    fill(generator)
    assert generator(*inputs()).flatten()[[0, 17, 63, 100]].tolist() == pytest.approx(expected, abs=3e-6)


def test_names_of_released_weights():
    with torch.device("meta"):
        state = LightningDiT(
            generator_config("LightningDiT-B/1", grid=16, in_channels=32, num_classes=1000)
        ).state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    expected = {
        "pos_embed": (1, 256, 768),
        "x_embedder.proj.weight": (768, 32, 1, 1),
        "t_embedder.mlp.0.weight": (768, 256),
        "t_embedder.mlp.2.bias": (768,),
        "y_embedder.embedding_table.weight": (1001, 768),
        "feat_rope.freqs_cos": (256, 64),
        "feat_rope.freqs_sin": (256, 64),
        "blocks.11.norm1.weight": (768,),
        "blocks.11.attn.qkv.weight": (2304, 768),
        "blocks.11.attn.proj.bias": (768,),
        "blocks.11.mlp.w12.weight": (4096, 768),
        "blocks.11.mlp.w3.weight": (768, 2048),
        "blocks.11.adaLN_modulation.1.weight": (4608, 768),
        "final_layer.norm_final.weight": (768,),
        "final_layer.linear.weight": (32, 768),
        "final_layer.adaLN_modulation.1.bias": (1536,),
    }
    assert {name: shapes.get(name) for name in expected} == expected


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_every_patch_goes_back_where_it_came_from(patch):
    latent = wave(2, 3, 8, 8, k=0.3)
    tokens = patchify(latent, patch)  # channels first within a token, where unpatchify has them last
    swapped = tokens.unflatten(2, (3, patch * patch)).transpose(2, 3).flatten(2)
    assert torch.equal(unpatchify(swapped, 3, patch), latent)


def test_rotary_attention_sees_only_relative_positions():
    """The score of a query and a key is the same when both move by one row or one column."""
    rope = LightningDiT(small()).feat_rope
    q, k = wave(12, k=0.7), wave(12, k=0.2)
    both = torch.stack([q, k]).view(1, 1, 2, 1, 12).expand(1, 16, 2, 1, 12)
    turned = rotate(both, rope.rotation())[0, :, :, 0]  # (N, 2, E)
    scores = (turned[:, 0] @ turned[:, 1].T).view(4, 4, 4, 4)
    torch.testing.assert_close(scores[0, 0, 1, 2], scores[1, 0, 2, 2])
    torch.testing.assert_close(scores[0, 0, 1, 2], scores[0, 1, 1, 3])
    assert abs(scores[0, 0, 1, 2] - scores[0, 0, 2, 1]) > 1e-3


def test_compiled_blocks_give_the_same_but_for_rounding():
    """They are traced in real numbers, as inductor generates no code for complex ones; here none is generated."""

    def without_complex_numbers(graph, _inputs):
        values = [node.meta["example_value"] for node in graph.graph.nodes if "example_value" in node.meta]
        assert values and not any(isinstance(value, torch.Tensor) and value.is_complex() for value in values)
        return graph

    generator, compiled = LightningDiT(small()), LightningDiT(small())
    for network in (generator, compiled):
        fill(network)
    for block in compiled.blocks:
        block.compile(backend=without_complex_numbers, fullgraph=True)
    found, expected = compiled(*inputs()), generator(*inputs())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    gradients = [
        torch.autograd.grad(out.square().sum(), network.blocks[0].attn.qkv.weight)[0]
        for out, network in ((found, compiled), (expected, generator))
    ]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_a_fresh_generator_predicts_zero_and_learns_from_its_output_layer_first():
    generator = LightningDiT(small(), torch.Generator().manual_seed(0))
    velocity = generator(*inputs())
    assert torch.equal(velocity, torch.zeros_like(velocity))
    (velocity - 1).square().mean().backward()
    assert generator.final_layer.linear.weight.grad.abs().sum() > 0
    assert generator.blocks[0].attn.qkv.weight.grad.abs().sum() == 0
    assert generator.pos_embed.grad is None


def test_initialisation_depends_on_its_seed_alone():
    def values(global_seed: int, seed: int) -> torch.Tensor:
        torch.manual_seed(global_seed)
        generator = LightningDiT(small(), torch.Generator().manual_seed(seed))
        return torch.cat([p.detach().flatten() for p in generator.parameters()])

    assert torch.equal(values(0, 1), values(5, 1))
    assert not torch.equal(values(0, 1), values(0, 2))
    generator = LightningDiT(small(width=512, heads=8, depth=1), torch.Generator().manual_seed(0))
    initialize(generator, torch.Generator().manual_seed(3))
    assert generator.blocks[0].attn.proj.weight.std().item() == pytest.approx((2 / 1024) ** 0.5, rel=0.02)
    assert generator.t_embedder.mlp[2].weight.std().item() == pytest.approx(0.02, rel=0.02)


def test_an_image_does_not_see_its_batch():
    generator = LightningDiT(small())
    fill(generator)
    latent, t, labels = inputs()
    torch.testing.assert_close(generator(latent, t, labels)[1:], generator(latent[1:], t[1:], labels[1:]))


def test_time_and_label_matter():
    generator = LightningDiT(small())
    fill(generator)
    latent, t, labels = inputs()
    base = generator(latent, t, labels)
    for other in (generator(latent, t + 0.1, labels), generator(latent, t, labels - 1)):
        assert (other - base).flatten(1).abs().amax(1).min() > 1e-6  # each image; rounding is 1e-8 here


def test_checkpointing_changes_no_gradient():
    grads = []
    for checkpointing in (False, True):
        generator = LightningDiT(small(), checkpointing=checkpointing)
        fill(generator)
        generator(*inputs()).square().sum().backward()
        grads.append([p.grad for p in generator.parameters() if p.requires_grad])
    for plain, again in zip(*grads, strict=True):
        torch.testing.assert_close(plain, again)


@pytest.mark.parametrize("options", [LIGHTNING, DIT, MIXED])
def test_bfloat16_autocast_stays_close(options):
    generator = LightningDiT(small(**options))
    fill(generator)
    exact = generator(*inputs())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = generator(*inputs())
    rough.float().square().sum().backward()
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).norm() < 0.03 * exact.norm()


def test_labels_drop_where_the_mask_says():
    labels = torch.tensor([0, 1, 2])
    assert drop_labels(labels, torch.tensor([True, False, True]), 7).tolist() == [7, 1, 7]
    assert drop_labels(labels, torch.zeros(3, dtype=torch.bool), 7).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="boolean"):
        drop_labels(labels, torch.tensor([1, 0, 1]), 7)


def test_without_label_dropout_there_is_no_null_label():
    assert LightningDiT(small(label_dropout=0.0)).y_embedder.embedding_table.num_embeddings == 7
    assert LightningDiT(small()).y_embedder.embedding_table.num_embeddings == 8


def test_a_latent_of_another_shape_is_refused():
    latent, t, labels = inputs()
    with pytest.raises(ValueError, match=r"\(B, 5, 4, 4\)"):
        LightningDiT(small())(latent[:, :4], t, labels)
