"""Processes of tests, forked from one that has loaded torch and the study: that takes seconds in each of them."""

import multiprocessing

KINDS = ("fit_tokenizer", "reconstruct", "encode", "fit_generator", "sample", "judge")
LATE = ("torch._dynamo", "timm", "torchmetrics.functional.image", "torch_fidelity", "PIL.Image")  # which those import

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "study.submit.jobs",
        "study.report.table_rows",
        "study.judge.judges",
        "study.judge.metrics",
        *(f"study.stages.{kind}" for kind in KINDS),
        *LATE,
    ]
)
