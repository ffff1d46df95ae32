"""The table keeps numbers exactly, refuses invalid rows, and is replaced atomically."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from results import table as results
from results.schema import COLUMNS, FOREIGN, NAMES, PUBLISHED, Label, Row, Source, describe

TOKENIZER = {
    "ablations": ("frontier",), "kind": "tokenizer", "run": "f4d4", "fingerprint": "a" * 16, "tokenizer": "f4d4",
    "foundation_model": "none", "latent_channels": 4, "tokenizer_seed": 0, "seed": 0,
    "tokenizer_fingerprint": "a" * 16, "images_seen": 1000, "protocol": "p1", "state": "done",
    "rfid": 0.1 + 0.2, "psnr": 1e-320, "samples": 5000, "extractor": "efficientnet_lite2",
    "comparable": False, "parameters": 2**53 + 1,
}  # fmt: skip


def rows(*changes: dict) -> pd.DataFrame:
    return results.table_of(Row(**{**TOKENIZER, **change}) for change in changes)


def test_what_was_written_is_read_exactly(tmp_path: Path) -> None:
    failed = {"state": "failed", "rfid": None, "reason": 'out of memory, "12 GiB"', "comparable": None}
    table = rows(
        {"rfid": 1 / 3},
        {"images_seen": 2000, **failed},
        {"images_seen": 3000, "rfid": np.nextafter(253.0, 300), "parameters": None, "reason": "nan"},
    )
    results.write(table, tmp_path / "table.csv")
    read = results.load(tmp_path / "table.csv")
    pd.testing.assert_frame_equal(read, table, check_exact=True)
    assert read["parameters"].tolist() == [2**53 + 1, 2**53 + 1, pd.NA]
    assert math.isnan(read["rfid"][1])  # missing, not 0
    assert read["reason"][2] == "nan"  # text is text
    assert read["comparable"].isna().tolist() == [False, True, False]


def test_same_rows_in_another_order_are_the_same_bytes(tmp_path: Path) -> None:
    table = rows({}, {"images_seen": 2000}, {"fingerprint": "0" * 16})
    results.write(table, tmp_path / "a.csv")
    results.write(table.iloc[::-1, ::-1], tmp_path / "b.csv")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_an_empty_table_is_a_table(tmp_path: Path) -> None:
    results.write(results.table_of([]), tmp_path / "table.csv")
    assert len(results.load(tmp_path / "table.csv")) == 0
    assert len(results.merge(results.load(tmp_path / "table.csv"), rows({}))) == 1


def test_a_failed_write_leaves_the_old_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "table.csv"
    results.write(rows({}), path)
    before = path.read_bytes()

    def stop(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(results, "_text", stop)
    with pytest.raises(KeyboardInterrupt):
        results.write(rows({"rfid": 5.0}), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_result_replaces_its_pending_row_and_keeps_the_others() -> None:
    old = rows({"state": "pending", "rfid": None}, {"images_seen": 2000})
    merged = results.merge(old, rows({"rfid": 9.0}))
    assert merged["state"].tolist() == ["done", "done"]
    assert merged["rfid"].tolist() == [9.0, TOKENIZER["rfid"]]
    assert old["state"].tolist() == ["pending", "done"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rfid": math.nan}, "rfid is nan"),
        ({"rfid": math.inf}, "rfid is inf"),
        ({"rfid": None}, "done, but rfid"),
        ({"protocol": ""}, "protocol is empty"),
        ({"state": "finished"}, "state is 'finished'; valid are done, pending"),
        ({"kind": "decoder"}, "valid are tokenizer, generator"),
        ({"samples": 2.5}, "samples should be int, found 2.5"),
        ({"ablations": "frontier"}, "ablations should be JSON, found 'frontier'"),
    ],
)
def test_a_bad_record_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rows(change)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_not_written(tmp_path: Path, value: float) -> None:
    table = rows({})
    table.loc[0, "rfid"] = value
    with pytest.raises(ValueError, match="rfid is"):
        results.write(table, tmp_path / "table.csv")
    assert not list(tmp_path.iterdir())


def test_duplicate_keys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="share the key"):
        rows({}, {"run": "other"})
    path = tmp_path / "table.csv"
    results.write(rows({}), path)
    path.write_text(path.read_text() + path.read_text().splitlines()[1] + "\n")
    with pytest.raises(ValueError, match=r"table\.csv: two rows share the key"):
        results.load(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("psnr,", "pnsr,", "unknown columns pnsr; nearest: psnr"),
        ("psnr,", "", "lacks the columns psnr"),
        ("psnr,", "ssim,", "lacks the columns psnr"),
        ("5000", "many", "row 1: samples should be int, found 'many'"),
        ("False", "no", "comparable should be bool, found 'no'"),
        ("0.30000000000000004", "nan", "row 1: rfid should be float, found 'nan'"),
        ('"[""frontier""]"', "frontier", "ablations should be JSON of its form, found 'frontier'"),
        ("done", "done,done", f"row 1: {len(NAMES) + 1} cells for {len(NAMES)} columns"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "table.csv"
    results.write(rows({}), path)
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        results.load(path)


def test_what_is_no_number_and_no_text_is_read_as_it_was(tmp_path: Path) -> None:
    label = Label(ablation="recipe", place=3, text='+ a; "b" [c]', changed=("x, y", "z"))
    changes = {
        "generator.betas": (0.9, 0.999),
        "label_dropout": 1e-05,
        "phases": ({"from": 1},),
        "name": "None",
        "no": None,
    }
    source = (Source(publication="arXiv 1", table="Table 2"), Source(publication="b; c"))
    published = {"fingerprint": f"{PUBLISHED}x", "source": source, "labels": (label,), "changes": changes}
    results.write(rows({}, published), tmp_path / "table.csv")
    first, second = results.rows_in(results.load(tmp_path / "table.csv"))
    assert (first.ablations, first.labels, first.changes, first.source) == (("frontier",), (), {}, ())
    assert (second.labels, second.changes, second.source) == ((label,), changes, source)
    assert str(label) == 'recipe 3: + a; "b" [c] [x, y, z]'


def test_a_name_that_is_no_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="tokeniser"):
        rows({"tokeniser": "f4d4"})
    with pytest.raises(ValueError, match="unknown columns tokeniser; nearest: tokenizer"):
        results.write(rows({}).assign(tokeniser="f4d4"), tmp_path / "table.csv")


def test_only_pictures_made_elsewhere_may_have_seen_who_knows_what(tmp_path: Path) -> None:
    foreign = {"fingerprint": FOREIGN + "0" * 16, "kind": "generator", "gfid": 9.0, "images_seen": None}
    with pytest.raises(ValueError, match="images_seen is empty"):
        rows({"images_seen": None})
    with pytest.raises(ValueError, match="protocol is empty"):
        rows({**foreign, "protocol": ""})
    path = tmp_path / "table.csv"
    results.write(rows({}, foreign, {**foreign, "protocol": "p2"}), path)
    table = results.load(path)
    assert table["images_seen"].tolist() == [1000, pd.NA, pd.NA]
    merged = results.merge(table, rows({**foreign, "gfid": 8.0}, {"images_seen": 2000}))  # found again by its key
    assert merged["gfid"].dropna().tolist() == [8.0, 9.0]
    with pytest.raises(ValueError, match="share the key"):
        rows(foreign, foreign)


def test_mixed_protocol_names_field_and_values() -> None:
    table = rows({"steps": 50}, {"images_seen": 2000, "steps": 250}, {"images_seen": 3000, "steps": None})
    with pytest.raises(results.ProtocolError, match="differ in steps: 50, 250, empty"):
        results.check_protocol(table)
    results.check_protocol(table, {"steps"})
    with pytest.raises(ValueError, match="seeds is no protocol field"):
        results.check_protocol(table, {"seeds"})


def test_equal_data_under_two_names_is_one_reference() -> None:
    archive = {"reference": "cifar10 train, 50 images", "reference_hash": "abc"}
    folder = {"images_seen": 2000, "reference": "pictures train, 50 images", "reference_hash": "abc"}
    results.check_protocol(rows(archive, folder))
    for unlike in ({**folder, "reference_hash": "abd"}, {**folder, "reference_hash": ""}):
        with pytest.raises(results.ProtocolError, match="differ in reference: cifar10 train, 50 images, pictures"):
            results.check_protocol(rows(archive, unlike))
    unstated = [{**one, "reference_hash": ""} for one in (archive, folder)]
    with pytest.raises(results.ProtocolError, match="differ in reference"):
        results.check_protocol(rows(*unstated))


def test_only_done_rows_must_share_a_protocol() -> None:
    results.check_protocol(rows({"steps": 50}, {"images_seen": 2000, "steps": 9, "state": "pending", "rfid": None}))


def test_mixed_provenance_is_named() -> None:
    table = rows({"commit": "1a", "seed": 0}, {"images_seen": 2000, "commit": "2b", "seed": 10})
    assert results.mixed_provenance(table) == ["commit: 1a, 2b", "seed: 0, 10"]


def test_the_precisions_of_tokenizers_and_of_generators_are_mixed_only_within_a_kind() -> None:
    generator = {"kind": "generator", "gfid": 9.0, "generator": "LightningDiT-B/1", "train_precision": "bfloat16"}
    planned = rows({"train_precision": "tf32"}, {**generator, "protocol": "a"})
    assert not [text for text in results.mixed_provenance(planned) if text.startswith("train_precision")]
    mixed = rows({"train_precision": "tf32"}, {"images_seen": 2000, "train_precision": "float32"})
    assert "train_precision: float32, tf32" in results.mixed_provenance(mixed)


def test_columns_are_declared_once_and_described() -> None:
    assert len(set(NAMES)) == len(NAMES)
    assert all(f"| {column.name} | {column.type} |" in describe() for column in COLUMNS)


def test_tokenizers_without_a_sampling_seed_do_not_make_it_mixed() -> None:
    generator = {"kind": "generator", "gfid": 9.0, "generator": "LightningDiT-B/1", "sampling_seed": 0}
    mixed = rows({}, {**generator, "protocol": "a"})
    assert not [text for text in results.mixed_provenance(mixed) if "sampling_seed" in text]
    two = rows({**generator, "protocol": "a"}, {**generator, "protocol": "b", "sampling_seed": 1})
    assert "sampling_seed: 0, 1" in results.mixed_provenance(two)
