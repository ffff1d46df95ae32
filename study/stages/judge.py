"""Stage judge: samples or reconstructions, a judge, a reference -> gFID and further metrics, or rFID.

Pictures are read chunk by chunk, so that 50,000 of 256 px need no more memory than their features.
"""

from __future__ import annotations

from study.core.compute import apply
from study.core.distributed import on_rank_zero
from study.core.workspace import Record, Workspace, peak_memory_gib
from study.data.picture_chunks import pictures_of
from study.judge.judges import all_features, build_judge
from study.judge.metrics import comparable, generation_metrics, reconstruction_distance
from study.judge.references import dataset_reference, published_reference, with_radii
from study.plan.specs import Judge, Reconstruct, Sample
from study.plan.stage import Stage


def run(spec: Judge, inputs: dict[str, Stage], out: Workspace) -> Record:
    """Compare the pictures with the reference in the judge's features; one process does it."""
    return on_rank_zero(lambda: _judge(spec, inputs, out))


def _judge(spec: Judge, inputs: dict[str, Stage], out: Workspace) -> Record:
    apply(spec.compute)
    ((name, pictures),) = inputs.items()
    made, device = pictures.spec, spec.compute.device
    assert isinstance(made, (Reconstruct, Sample))
    out.preparing("reference")
    # of reconstructions, features of the same test images, computed once for all tokenizers
    split = "train" if name == "samples" else "test"
    if spec.reference is not None:
        target = published_reference(spec.judge, spec.reference, device)
    else:
        target = dataset_reference(spec.judge, spec.data, split, spec.reference_images, device)
    out.preparing("features")
    pooled, spatial = all_features(build_judge(spec.judge, spec.data, device), pictures_of(made, pictures.folder))
    out.preparing("metrics")
    if name == "samples":
        values = generation_metrics(pooled, with_radii(target), spatial)
    else:
        values = {"rfid": reconstruction_distance(pooled, target)}
    return {
        "metrics": {
            **values,
            "comparable": comparable(len(pooled), spec.judge.width),
            "reference": target.hash,
        },
        "cost": {"peak_memory_gib": round(peak_memory_gib(device), 3)},
    }
