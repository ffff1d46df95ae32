"""Figures of searches: drawn from their files, with notes on what is missing, comparing only equal protocols."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from made_searches import generator, protocol_of, sampling, tokenizer
from made_tables import study
from matplotlib.text import Text

from figures import pareto, search
from figures.drawing import Drawing, NotAsked, NothingToDraw
from figures.parallel import of_objective, of_parameter
from figures.render import render
from results import table as results
from results.searches import Parameter, Trial, write
from results.table import ProtocolError

NO_TABLE = pd.DataFrame()


def texts(drawing: Drawing) -> str:
    return " ".join(text.get_text() for text in drawing.figure.findobj(Text)).replace("\n", " ")


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return study(judges=(("efficientnet_lite2", 96),))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, table: pd.DataFrame) -> Path:
    made = tmp_path_factory.mktemp("study")
    results.write(table, made / "table.csv")
    write(sampling(), made)
    write(tokenizer(protocol_of(table)), made)
    return made


def test_every_space_is_drawn_with_the_same_bytes_twice(folder: Path, tmp_path: Path) -> None:
    names = ["search-sampling", "search-tokenizer", "pareto-tokenizer"]
    first, second = (render(folder, tmp_path / run, names) for run in "ab")
    assert first.skipped == first.refused == {}
    assert [path.name for path in first.written] == [f"{name}.{end}" for name in names for end in ("png", "pdf", "csv")]
    for a, b in zip(first.written, second.written, strict=True):
        assert a.read_bytes() == b.read_bytes(), a.name


def test_searches_come_with_the_other_figures_and_go_with_their_files(table: pd.DataFrame, tmp_path: Path) -> None:
    results.write(table.iloc[:0], tmp_path / "table.csv")
    write(generator(), tmp_path)
    out = tmp_path / "out"
    assert {path.stem for path in render(tmp_path, out).written} == {"search-generator"}
    for path in (tmp_path / "search").iterdir():
        path.unlink()
    gone = render(tmp_path, out)
    assert not list(out.iterdir())
    assert "search-generator" not in {*gone.skipped, *gone.refused}


def test_a_malformed_search_is_refused_and_the_other_is_drawn(folder: Path, tmp_path: Path) -> None:
    write(generator(), tmp_path)
    (tmp_path / "table.csv").write_bytes((folder / "table.csv").read_bytes())
    write(sampling(3, failed=0), tmp_path)
    (tmp_path / "search/generator.json").write_text("{")
    drawn = render(tmp_path, tmp_path / "out", ["search-generator", "search-sampling"])
    assert {path.stem for path in drawn.written} == {"search-sampling"}
    assert "generator.json" in drawn.refused["search-generator"]


def test_a_search_without_a_complete_trial_says_what_became_of_them() -> None:
    lost = (Trial(trial=0, state="failed"), Trial(trial=1, state="failed"), Trial(trial=2, state="running"))
    nothing = replace(generator(), trials=lost, importances={})
    with pytest.raises(NothingToDraw, match="no trial is complete: 0 of 24 trials: 2 failed, 1 running"):
        search.draw(nothing, NO_TABLE)
    with pytest.raises(NothingToDraw, match="it has no trials yet"):
        search.draw(replace(nothing, trials=()), NO_TABLE)
    with pytest.raises(NothingToDraw, match="it has no trials yet"):
        pareto.draw(replace(tokenizer(), trials=(), candidates=()), NO_TABLE)


def test_one_trial_is_enough_to_draw_but_not_to_tell_what_matters() -> None:
    drawing = search.draw(sampling(1, failed=0), NO_TABLE)
    assert "too few trials to tell which settings matter" in texts(drawing)
    assert len(drawing.data[drawing.data["part"] == "trial"]) == 1


def test_the_verdict_counts_and_axis_are_said() -> None:
    found = texts(search.draw(sampling(), NO_TABLE))
    assert "38 of 40 trials: 38 complete, 2 failed" in found
    assert "beats the default: on 3 held-out seeds" in found
    assert "gFID-3K (↓ lower is better) EfficientNet-Lite2 @ 64 px" in found
    undecided = replace(sampling(), winner=None, beats_default=None, reason="the judges disagree")
    assert "Whether a trial beats the default is undecided: the judges disagree." in texts(
        search.draw(undecided, NO_TABLE)
    )
    worse = replace(sampling(), winner=None, beats_default=False, reason="none is below it")
    assert "No trial is shown to beat the default: none is below it." in texts(search.draw(worse, NO_TABLE))


def test_a_pruned_trial_has_no_place_among_the_values_nor_in_the_best_so_far() -> None:
    made = generator()
    early = tuple(replace(t, values={"gfid": 1.0}) if t.state == "pruned" else t for t in made.trials)
    drawing = search.draw(replace(made, trials=early), NO_TABLE)
    low, high = drawing.figure.axes[0].get_ylim()
    assert low > 400
    assert high < 800
    assert drawing.data["best_gfid"].min() == min(t.values["gfid"] for t in made.trials if t.state == "complete")
    assert "Grey: pruned" in texts(drawing)


def test_plotted_numbers_are_kept() -> None:
    made = sampling()
    data = search.draw(made, NO_TABLE).data
    kept = data[data["part"] == "candidate"].groupby("trial")["gfid"].apply(tuple).to_dict()
    assert kept == {c.trial: c.scores["gfid"] for c in made.candidates}
    assert data.loc[data["part"] == "importance", "importance"].tolist() == list(made.importances["gfid"].values())


def test_axes_of_ranges_choices_and_objectives() -> None:
    rate = of_parameter(Parameter(label="learning rate", low=1e-4, high=1e-2, log=True))
    assert rate.place(1e-3) == pytest.approx(0.5)
    assert {(round(place, 6), text) for place, text in rate.ticks} >= {(0.0, "1e−4"), (0.5, "0.001"), (1.0, "0.01")}
    assert of_parameter(Parameter(label="steps", low=10, high=30)).place(15) == pytest.approx(0.25)
    choice = of_parameter(Parameter(label="solver", choices=("euler", "heun")))
    assert [(place, text) for place, text in choice.ticks] == [(0.25, "euler"), (0.75, "heun")]
    assert choice.place("heun") == 0.75
    assert of_objective("gFID", [500.0, 700.0, 600.0]).place(500.0) == 0
    assert of_objective("gFID", [10.0, 1000.0, 100.0]).place(100.0) == pytest.approx(0.5)
    assert of_objective("gFID", [500.0]).place(500.0) == 0.5


def test_the_front_stands_over_the_studys_frontier(table: pd.DataFrame) -> None:
    drawing = pareto.draw(tokenizer(protocol_of(table)), table)
    grey = drawing.data[drawing.data["part"] == "study"]
    assert set(grey["name"]) == {"f4d4", "f4d16", "f4d4-lite0", "f4d16-lite0"}
    assert "the study's frontier" in texts(drawing)


@pytest.mark.parametrize(
    ("objective", "change", "field"),
    [
        ("gfid", {"steps": 7}, "steps: 7 and 50"),
        ("rfid", {"samples": 10}, "samples: 10 and"),
        ("gfid", {"weights": None}, "weights: empty and ema"),
    ],
)
def test_a_frontier_measured_otherwise_is_refused_by_the_field(
    table: pd.DataFrame, objective: str, change: dict[str, object], field: str
) -> None:
    protocol = protocol_of(table)
    protocol[objective] |= change  # type: ignore[operator]
    with pytest.raises(ProtocolError, match=f"the search over tokenizer and the study's frontier differ in {field}"):
        pareto.draw(tokenizer(protocol), table)


def test_a_study_with_nothing_to_compare_is_said_to_have_none(table: pd.DataFrame) -> None:
    protocol = protocol_of(table)
    protocol["gfid"] |= {"images_seen": 999}
    found = texts(pareto.draw(tokenizer(protocol), table))
    assert "nothing like the trials to compare with (LightningDiT-XXS/2, efficientnet_lite2, 999 images seen)" in found
    bare = pareto.draw(tokenizer(protocol), table.iloc[:0])
    assert "The study has no frontier to compare with" in texts(bare)
    assert set(bare.data["part"]) == {"front", "trial", "held-out", "default"}


def test_one_objective_has_no_front() -> None:
    with pytest.raises(NotAsked):
        pareto.draw(sampling(), NO_TABLE)
