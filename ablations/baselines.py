"""How do published tokenizers do under one generator: SD-VAE, MAR's VAE, and those of the paper itself?

The tokenizers of the paper's Table 3 and the released ones of its Table 2 (arXiv 2501.01423), at scale imagenet256.
Their weights are pretrained. A generator of the scale's smallest size is trained on each, always with 256 tokens per
picture: with patch size 2 on SD-VAE's 32 x 32 grid.

We would change our mind about a tokenizer if its gFID here did not agree with its rank in the paper.
"""

from models.configs import parse_tokenizer
from study.plan.runs import Pretrained, Run
from study.plan.scales import Scale

QUESTION = "How do published tokenizers do under one generator: SD-VAE, MAR's VAE and VA-VAE?"
SOURCE = "Tables 2 and 3"
FACTORS = {  # a published tokenizer comes whole
    "tokenizer": (
        "pretrained_tokenizer", "latent_channels", "foundation_model", "autoencoder.ch_mult", "tokenizer.budget_images",
        "patch",
    ),
}  # fmt: skip

EPOCH = 1_281_167  # images of ImageNet
PATCHED = 16  # pixels of a token's side
TOKENIZERS = {
    "sd-vae-f8d4": Pretrained(name="sd-vae-ft-ema", images_seen=313_198 * 192),  # its card, of the finetuning alone
    "mar-vae-f16d16": Pretrained(name="mar-vae-kl16", images_seen=50 * EPOCH),  # its author, LTH14/mar issue 90
    "va-vae": Pretrained(name="vavae-imagenet256-f16d32-dinov2", images_seen=130 * EPOCH),  # as in released.py
    **{
        name: Pretrained(name=f"{maker}-imagenet256-{name}-50ep", images_seen=50 * EPOCH)
        for maker, names in {
            "ldm": ("f16d16", "f16d32", "f16d64"),
            "vavae": ("f16d32-mae", "f16d32-dinov2", "f16d64-mae", "f16d64-dinov2"),
        }.items()
        for name in names
    },
}


def runs(scale: Scale) -> list[Run]:
    """Each tokenizer with the first generator, once per generator seed."""
    if scale.downsampling != PATCHED:
        raise ValueError(
            f"scale {scale.name} builds tokenizers that downsample {scale.downsampling} times, the published ones are "
            f"for pictures of 256 px and downsample {PATCHED} times: --scale imagenet256"
        )
    size = scale.generators[0].partition("/")[0]
    return [
        Run(
            tokenizer=name,
            generator=f"{size}/{PATCHED // parse_tokenizer(name).downsampling}",
            pretrained_tokenizer=given,
            seed=seed,
        )
        for seed in scale.seeds
        for name, given in TOKENIZERS.items()
    ]
