"""Do the published checkpoints give the published numbers under the published protocol?

The tokenizer and the two LightningDiT-XL/1 of `hustvl/LightningDiT` (arXiv 2501.01423, Table 3: FID 5.14 and 2.17
without guidance, 2.11 and 1.35 with), at scale imagenet256. Nothing is trained. Protocol as in its
configs/reproductions: Euler on 250 grid points, timestep shift 0.3, 50,000 random labels, guidance on the first three
latent channels and off before t = 0.10 or 0.125.

We would doubt our sampling or our judge if a number differed.
"""

from study.plan.runs import Pretrained, Run
from study.plan.scales import Scale

QUESTION = "Do the published checkpoints give the published numbers under the published protocol?"
SOURCE = "Table 3"
FACTORS = {
    "guidance": ("sampling.guidance_scale", "sampling.guidance_interval", "sampling.guidance_channels"),
    "checkpoint": ("pretrained_generator", "generator.budget_images", "generator.snapshot_images"),
}

DOWNSAMPLING = 16
EPOCH = 1_281_167  # images of ImageNet
VAVAE = "vavae-imagenet256-f16d32-dinov2"
TOKENIZER = Pretrained(name=VAVAE, images_seen=130 * EPOCH)  # 100, 15 and 15 epochs by its config; 125 by its author
GENERATORS = {  # scale and start of guidance
    Pretrained(name="lightningdit-xl-imagenet256-64ep", images_seen=64 * EPOCH): (10.0, 0.10),
    Pretrained(name="lightningdit-xl-imagenet256-800ep", images_seen=800 * EPOCH): (6.7, 0.125),
}
PROTOCOL = {
    "sampling.solver": "euler",
    "sampling.steps": 249,  # between 250 grid points
    "sampling.timestep_shift": 0.3,
    "sampling.samples": 50_000,
    "sampling.label_scheme": "random",
}


def runs(scale: Scale) -> list[Run]:
    """Each generator without guidance and with its released guidance."""
    if scale.downsampling != DOWNSAMPLING:
        raise ValueError(
            f"scale {scale.name} builds tokenizers that downsample {scale.downsampling} times, the released one "
            f"downsamples {DOWNSAMPLING} times: --scale imagenet256"
        )
    return [
        Run(
            tokenizer="f16d32-dinov2",
            generator="LightningDiT-XL/1",
            pretrained_tokenizer=TOKENIZER,
            pretrained_generator=generator,
            pretrained_statistics=f"{VAVAE}-statistics",
            changes={**PROTOCOL, **changes},
        )
        for generator, (guidance, start) in GENERATORS.items()
        for changes in (
            {},
            {
                "sampling.guidance_scale": guidance,
                "sampling.guidance_interval": (start, 1.0),
                "sampling.guidance_channels": 3,
            },
        )
    ]
