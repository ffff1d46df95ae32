"""The files of a search: what is written is read back, and invalid content gives one clear error."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from results.searches import Candidate, Default, Parameter, Search, SearchError, Trial, found, load, write

PARAMETERS = {
    "sampling.guidance_scale": Parameter(label="guidance scale", low=1.0, high=8.0, log=True),
    "sampling.steps": Parameter(label="steps", low=5, high=50),
    "sampling.solver": Parameter(label="solver", choices=("euler", "heun", None)),
}
SEARCH = Search(
    space="sampling",
    question="Which sampling suits a trained generator?",
    study="desk",
    scale="desk",
    objectives=("gfid",),
    budget=4,
    parameters=PARAMETERS,
    trials=(
        Trial(
            trial=0,
            state="complete",
            run="ab12",
            seconds=3.5,
            images_seen=2560,
            values={"gfid": 512.25},
            params={"sampling.guidance_scale": 1.5, "sampling.steps": 5, "sampling.solver": None},
        ),
        Trial(trial=1, state="pruned", images_seen=640, values={"gfid": 900.0}, params={"sampling.steps": 7}),
        Trial(trial=2, state="failed", run="cd34"),
        Trial(trial=3, state="running", params={"sampling.solver": "heun"}),
    ),
    importances={"gfid": {"sampling.steps": 0.75, "sampling.guidance_scale": 0.25}},
    default=Default(params={"sampling.steps": 5}, scores={"gfid": (530.0, 540.5)}),
    candidates=(
        Candidate(
            trial=0,
            params={"sampling.steps": 5},
            chosen_on={"gfid": 512.25},
            scores={"gfid": (520.0, 515.0)},
        ),
    ),
    winner=0,
    beats_default=True,
    reason="its scores on two held-out seeds are all below the default's",
    protocol={"gfid": {"extractor": "efficientnet_lite2", "extractor_size": 64, "samples": 3000}},
)


def files(folder: Path) -> tuple[Path, Path]:
    return folder / "search/sampling.csv", folder / "search/sampling.json"


def test_what_is_written_is_read_back_with_its_types(tmp_path: Path) -> None:
    write(SEARCH, tmp_path)
    assert load(tmp_path, "sampling") == SEARCH
    assert found(tmp_path) == ["sampling"]
    assert files(tmp_path)[0].read_text().splitlines()[1] == "0,complete,ab12,3.5,2560,512.25,1.5,5,None"


def test_same_search_same_bytes_whatever_the_order_of_its_trials(tmp_path: Path) -> None:
    write(SEARCH, tmp_path)
    before = [path.read_bytes() for path in files(tmp_path)]
    write(replace(SEARCH, trials=SEARCH.trials[::-1]), tmp_path)
    assert [path.read_bytes() for path in files(tmp_path)] == before


def test_search_without_trials(tmp_path: Path) -> None:
    empty = Search(
        space="sampling", question="?", study="desk", scale="desk", objectives=("gfid", "rfid"), budget=3, parameters={}
    )
    write(empty, tmp_path)
    assert load(tmp_path, "sampling") == empty


@pytest.mark.parametrize("which", [0, 1])
def test_missing_file_is_named(tmp_path: Path, which: int) -> None:
    write(SEARCH, tmp_path)
    files(tmp_path)[which].unlink()
    assert found(tmp_path) == ["sampling"]
    with pytest.raises(SearchError, match=rf"no .*{files(tmp_path)[which].name}: python -m study.search sampling"):
        load(tmp_path, "sampling")


def test_no_search_at_all(tmp_path: Path) -> None:
    assert found(tmp_path) == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("complete", "finished", "trial 0 is 'finished'; valid are complete, pruned, diverged, failed, running"),
        ("512.25", "nan", "trial 0 has nan instead of a finite number"),
        ("512.25", "", "trial 0 is complete, but without gfid"),
        ("640", "many", "row 2: invalid literal"),
        (",heun", ",rk4", "row 4: solver is 'rk4'; its choices are euler, heun, None"),
        ("1,pruned", "0,pruned", "trial 0 occurs twice"),
        ("2,failed,cd34", "2,failed", "row 3: 8 cells for 9 columns"),
        ("0,complete", "5,complete", "candidate 0 is not a complete trial"),
        ("gfid", "rfid", "has the columns .*rfid"),
        ("cd34", '"cd34', "sampling.csv: "),
    ],
)
def test_trials_that_do_not_fit(tmp_path: Path, old: str, new: str, message: str) -> None:
    write(SEARCH, tmp_path)
    path = files(tmp_path)[0]
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(SearchError, match=message) as error:
        load(tmp_path, "sampling")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"winner": 1}, "the winner, trial 1, is not a candidate"),
        ({"winer": 1}, "unknown fields: winer"),
        ({"space": "generator"}, "is of the space 'generator'"),
        ({"objectives": ["loss"]}, "objectives are .*loss"),
        ({"parameters": []}, "sampling.json: "),
        ({"parameters": {"x": {"label": "x", "low": 0.0}}}, "x has neither choices nor both low and high"),
        ({"parameters": {"x": {"label": "x", "low": 0.0, "high": 1.0, "log": True}}}, "x goes from 0.0 to 1.0"),
        ({"importances": {"gfid": {"sampling.stepz": 1.0}}}, "sampling.stepz unknown"),
        ({"protocol": {"gfid": {"judge": "inception"}}}, "judge unknown; valid are samples"),
        ({"default": {"params": {}, "scores": {"gfid": ["low"]}}}, "the default has 'low'"),
        ({"beats_default": float("nan")}, "holds NaN"),
    ],
)
def test_json_that_does_not_fit(tmp_path: Path, change: dict[str, object], message: str) -> None:
    write(SEARCH, tmp_path)
    trials, about = files(tmp_path)
    about.write_text(json.dumps(json.loads(about.read_text()) | change))
    if "parameters" in change and isinstance(change["parameters"], dict):
        trials.write_text(",".join(["trial", "state", "run", "seconds", "images_seen", "gfid", "param.x"]) + "\n")
    with pytest.raises(SearchError, match=message):
        load(tmp_path, "sampling")


@pytest.mark.parametrize("text", ["", "[]", "{", "\x00"])
def test_json_that_is_none(tmp_path: Path, text: str) -> None:
    write(SEARCH, tmp_path)
    files(tmp_path)[1].write_text(text)
    with pytest.raises(SearchError, match=r"sampling\.json: "):
        load(tmp_path, "sampling")


def test_what_would_not_be_read_is_not_written(tmp_path: Path) -> None:
    wrong = replace(SEARCH, trials=(Trial(trial=0, state="complete", values={"gfid": float("inf")}),))
    with pytest.raises(SearchError, match="search sampling: trial 0 has inf"):
        write(wrong, tmp_path)
    assert not (tmp_path / "search").exists()
