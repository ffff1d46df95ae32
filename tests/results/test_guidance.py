"""'none' and 'best': the scale is chosen on one seed and scored on another; missing numbers are empty, not guessed."""

import pandas as pd
import pytest

from results import table as results
from results.guidance import choices
from results.schema import SELECTION_SEED, Row

# by scale: gFID of the choosing and of the scoring samples; scale 1.5 scores better than the chosen one, by chance
GFID = {1.0: (20.0, 21.0), 1.5: (15.0, 11.0), 2.0: (14.0, 14.5), 4.0: (30.0, 31.0)}


def swept(**changed) -> pd.DataFrame:
    row = {
        "ablations": ("guidance",), "kind": "generator", "fingerprint": "g", "tokenizer": "f4d4", "latent_channels": 4,
        "generator": "LightningDiT-B/1", "images_seen": 512, "state": "done", "solver": "euler", "samples": 10_000,
        "extractor": "inception", "extractor_size": 299,
    }  # fmt: skip
    return results.table_of(
        Row(**{
            **row, "run": f"g at {scale:g}", "protocol": f"{scale}-{seed}", "guidance_scale": scale,
            "sampling_seed": seed, "gfid": gfid, **changed,
        })
        for scale, both in GFID.items()
        for seed, gfid in zip((SELECTION_SEED, 0), both, strict=True)
    )  # fmt: skip


def only(table: pd.DataFrame):
    (choice,) = choices(table)
    return choice


def test_the_best_is_chosen_on_other_samples_than_it_is_scored_on():
    choice = only(swept())
    assert (choice.run, choice.none, choice.scale, choice.best) == ("g at 1", 21.0, 2.0, 14.5)


def test_equally_good_scales_are_answered_by_the_smallest():
    table = swept()
    table.loc[(table["guidance_scale"] == 1.5) & (table["sampling_seed"] > 0), "gfid"] = 14.0
    assert (only(table).scale, only(table).best) == (1.5, 11.0)


def test_what_is_not_measured_is_empty():
    table = swept()
    lost = (table["guidance_scale"] == 4) & (table["sampling_seed"] == SELECTION_SEED)
    table.loc[lost, "gfid"], table.loc[lost, "state"] = float("nan"), "pending"
    assert (only(table).none, only(table).best, only(table).scale) == (21.0, None, None)  # it might be the lowest
    table = swept()
    lost = (table["guidance_scale"] == 2) & (table["sampling_seed"] == 0)
    table.loc[lost, "gfid"], table.loc[lost, "state"] = float("nan"), "failed"
    assert (only(table).none, only(table).best, only(table).scale) == (21.0, None, 2.0)


def test_every_judge_chooses_for_itself():
    other = swept(extractor="classifier", extractor_size=32)
    other["protocol"] += "c"
    other.loc[(other["guidance_scale"] == 4) & (other["sampling_seed"] > 0), "gfid"] = 1.0
    found = {choice.extractor: choice for choice in choices(results.merge(swept(), other))}
    assert (found["inception"].best, found["classifier"].best, found["classifier"].none) == (14.5, 31.0, 21.0)


def test_rows_that_the_ablation_does_not_ask_for_are_not_looked_at():
    assert choices(swept(ablations=("frontier",))) == []
    table = swept()
    asked = table["guidance_scale"] != 2  # 2 is of an earlier choice of scales
    table["ablations"] = [("guidance",) if yes else () for yes in asked]
    assert (only(table).scale, only(table).best) == (1.5, 11.0)


def test_more_samples_may_score_than_choose_and_nothing_else_may_differ():
    table = swept()
    table.loc[table["sampling_seed"] == 0, "samples"] = 50_000
    assert only(table).best == 14.5
    table.loc[table["sampling_seed"] == 0, "solver"] = "heun"
    with pytest.raises(results.ProtocolError, match="differ in solver"):
        choices(table)
