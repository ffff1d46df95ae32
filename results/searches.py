"""The outcome of a search in files: results/<study>/search/<space>.csv (trials) and <space>.json (the rest).

Objectives are metrics of the results table, and all are minimised. A missing number is an empty cell, never 0.
"""

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from results.files import atomic
from results.schema import METRICS, PROTOCOL

State = Literal["complete", "pruned", "diverged", "failed", "running"]  # failed: another trial takes its place
Value = bool | int | float | str | None  # None only as one of a parameter's choices

STATES: tuple[State, ...] = get_args(State)
FOLDER = "search"  # inside results/<study>
COLUMNS = ("trial", "state", "run", "seconds", "images_seen")
PARAM = "param."  # prefix of a parameter's column
SHARED = (*PROTOCOL, "generator", "images_seen")  # columns of the results table that an objective's protocol may have
PRINTED = {"rfid": "rFID", "gfid": "gFID", "sfid": "sFID", "kid": "KID"}


def printed(objective: str) -> str:
    """The readable name of an objective."""
    return PRINTED.get(objective, objective)


class SearchError(ValueError):
    """The files of a search are missing or invalid."""


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One dimension of the space: a range (`low` to `high`, ends included; of integers if both are) or choices."""

    label: str  # readable name, e.g. 'guidance scale'
    low: float | None = None
    high: float | None = None
    log: bool = False  # sampled, and drawn, on a logarithmic scale
    choices: tuple[Value, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One trial. Its values are those at its last `images_seen`; for a pruned trial, where it was pruned."""

    trial: int
    state: State
    run: str = ""  # fingerprint, as in the results table
    seconds: float | None = None
    images_seen: int | None = None
    values: Mapping[str, float] = field(default_factory=dict)  # by objective; a complete trial has all
    params: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Default:
    """The study's own settings, scored on the held-out seeds: values by objective, one per seed."""

    params: Mapping[str, Value] = field(default_factory=dict)
    scores: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A trial that was repeated with other seeds; a mapping is empty if its repeats were not run.

    chosen_on: its value in the search. again: values on new seeds; their mean chooses the winner. scores: values on the
    held-out seeds that also score the default, and that took no part in the choice.
    """

    trial: int
    params: Mapping[str, Value]
    chosen_on: Mapping[str, float]
    again: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    scores: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Search:
    """One search. Mappings are by objective or by parameter name; trials are in the order of their numbers."""

    space: str
    question: str
    study: str
    scale: str
    objectives: tuple[str, ...]
    budget: int  # total number of trials
    parameters: Mapping[str, Parameter]
    trials: tuple[Trial, ...] = ()
    importances: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # empty with too few trials
    default: Default = field(default_factory=Default)
    candidates: tuple[Candidate, ...] = ()
    winner: int | None = None  # number of its trial; None with two objectives
    beats_default: bool | None = None  # None: undecided, or not run
    reason: str = ""  # the reason for `beats_default`, in one line
    protocol: Mapping[str, Mapping[str, Value]] = field(default_factory=dict)  # objective: {column of the table: value}


def found(folder: Path) -> list[str]:
    """The names of the spaces that results/<study> (`folder`) has a search of."""
    return sorted({path.stem for suffix in ("csv", "json") for path in (folder / FOLDER).glob(f"[!.]*.{suffix}")})


def load(folder: Path, space: str) -> Search:
    """The search of a space in results/<study> (`folder`); SearchError if a file is missing or invalid."""
    csv_path, json_path = (folder / FOLDER / f"{space}.{suffix}" for suffix in ("csv", "json"))
    path = json_path
    try:
        content = json.loads(json_path.read_text(encoding="utf-8"), parse_constant=_refuse)
        search = _search(content)
        if search.space != space:
            raise ValueError(f"is of the space {search.space!r}")
        _check_space(search)
        path = csv_path
        with open(csv_path, newline="", encoding="utf-8") as file:
            lines = list(csv.reader(file, strict=True))
        search = replace(search, trials=_trials(lines, search))
        _check(search)
    except FileNotFoundError:
        raise SearchError(f"no {path}: python -m study.search {space} writes it") from None
    except (ValueError, TypeError, AttributeError, KeyError, csv.Error) as error:
        raise SearchError(f"{path}: {error}") from None
    return search


def write(search: Search, folder: Path) -> None:
    """Write both files into results/<study>, each atomically; the same search always gives the same bytes.

    Raises SearchError for a search that `load` would refuse.
    """
    try:
        _check(search)
    except ValueError as error:
        raise SearchError(f"search {search.space}: {error}") from None
    fields_ = {name: value for name, value in asdict(search).items() if name != "trials"}
    text = json.dumps(fields_, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    names = [*COLUMNS, *search.objectives, *(f"{PARAM}{name}" for name in search.parameters)]
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(names)
    for trial in sorted(search.trials, key=lambda trial: trial.trial):
        seconds = None if trial.seconds is None else float(trial.seconds)
        cells: list[Any] = [trial.trial, trial.state, trial.run, seconds, trial.images_seen]
        cells += [float(trial.values[name]) if name in trial.values else None for name in search.objectives]
        cells += [str(trial.params[name]) if name in trial.params else None for name in search.parameters]
        writer.writerow(cells)
    for suffix, content in (
        ("csv", table.getvalue()),
        ("json", text),
    ):  # trials first, because candidates refer to them
        with atomic(folder / FOLDER / f"{search.space}.{suffix}") as temporary:
            temporary.write_text(content, encoding="utf-8", newline="")


def _search(content: dict[str, Any]) -> Search:
    """The search of a JSON file, without its trials; raises ValueError or a similar error if the content is invalid."""
    if not isinstance(content, dict):
        raise ValueError("holds no search")
    names = {f.name for f in fields(Search)} - {"trials"}
    if set(content) != names:
        missing, unknown = sorted(names - set(content)), sorted(set(content) - names)
        raise ValueError(
            f"missing fields: {', '.join(missing) or 'none'}; unknown fields: {', '.join(unknown) or 'none'}"
        )
    parameters = {
        name: Parameter(**{**parameter, "choices": tuple(parameter.get("choices", ()))})
        for name, parameter in content["parameters"].items()
    }
    candidates = tuple(
        Candidate(**{**candidate, "again": _scores(candidate, "again"), "scores": _scores(candidate)})
        for candidate in content["candidates"]
    )
    default = Default(**{**content["default"], "scores": _scores(content["default"])})
    converted = {"objectives": tuple(content["objectives"]), "parameters": parameters, "candidates": candidates}
    return Search(**{**content, **converted, "default": default})


def _scores(fields_: dict[str, Any], name: str = "scores") -> dict[str, tuple[float, ...]]:
    return {objective: tuple(values) for objective, values in fields_.get(name, {}).items()}


def _trials(lines: list[list[str]], search: Search) -> tuple[Trial, ...]:
    names = [*COLUMNS, *search.objectives, *(f"{PARAM}{name}" for name in search.parameters)]
    if not lines or lines[0] != names:
        raise ValueError(f"has the columns {', '.join(lines[0]) if lines else '(none)'}, not {', '.join(names)}")
    trials = []
    for row, cells in enumerate(lines[1:], start=1):
        if len(cells) != len(names):
            raise ValueError(f"row {row}: {len(cells)} cells for {len(names)} columns")
        cell = dict(zip(names, cells, strict=True))
        try:
            params = {name: (parameter, cell[f"{PARAM}{name}"]) for name, parameter in search.parameters.items()}
            trials.append(
                Trial(
                    trial=int(cell["trial"]),
                    state=cell["state"],  # type: ignore[arg-type]  # checked below
                    run=cell["run"],
                    seconds=float(cell["seconds"]) if cell["seconds"] else None,
                    images_seen=int(cell["images_seen"]) if cell["images_seen"] else None,
                    values={name: float(cell[name]) for name in search.objectives if cell[name]},
                    params={name: _value(parameter, text) for name, (parameter, text) in params.items() if text},
                )
            )
        except ValueError as error:
            raise ValueError(f"row {row}: {error}") from None
    return tuple(trials)


def _value(parameter: Parameter, text: str) -> Value:
    if parameter.choices:
        by_text = {str(choice): choice for choice in parameter.choices}
        if text not in by_text:
            raise ValueError(f"{parameter.label} is {text!r}; its choices are {', '.join(by_text)}")
        return by_text[text]
    return int(text) if _whole(parameter) else float(text)


def _whole(parameter: Parameter) -> bool:
    return isinstance(parameter.low, int) and isinstance(parameter.high, int)


def _refuse(constant: str) -> float:
    raise ValueError(f"holds {constant}; leave out what is missing")


def _check_space(search: Search) -> None:
    """Raise ValueError if an objective is not a metric, or a parameter is neither a range nor choices."""
    if not search.objectives or set(search.objectives) - set(METRICS):
        raise ValueError(f"objectives are {', '.join(search.objectives) or 'none'}; valid are {', '.join(METRICS)}")
    for name, parameter in search.parameters.items():
        _check_parameter(name, parameter)


def _check(search: Search) -> None:
    """Raise ValueError if the search is inconsistent."""
    _check_space(search)
    seen: dict[int, Trial] = {}
    for trial in search.trials:
        where = f"trial {trial.trial}"
        if trial.trial in seen:
            raise ValueError(f"{where} occurs twice")
        seen[trial.trial] = trial
        if trial.state not in STATES:
            raise ValueError(f"{where} is {trial.state!r}; valid are {', '.join(STATES)}")
        _known(where, trial.values, search.objectives)
        _known(where, trial.params, search.parameters)
        _numbers(where, trial.values.values())
        _numbers(where, [trial.seconds] if trial.seconds is not None else [])
        if trial.state == "complete" and set(trial.values) != set(search.objectives):
            raise ValueError(f"{where} is complete, but without {' and '.join(search.objectives)}")
        for name, value in trial.params.items():
            _check_value(f"{where}: {name}", search.parameters[name], value)
    for candidate in search.candidates:
        where = f"candidate {candidate.trial}"
        if candidate.trial not in seen or seen[candidate.trial].state != "complete":
            raise ValueError(f"{where} is not a complete trial")
        _known(where, candidate.params, search.parameters)
        _known(where, {**candidate.chosen_on, **candidate.again, **candidate.scores}, search.objectives)
        repeats = (*candidate.again.values(), *candidate.scores.values())
        _numbers(where, [*candidate.chosen_on.values(), *(value for values in repeats for value in values)])
    _known("the default", search.default.scores, search.objectives)
    _numbers("the default", [value for values in search.default.scores.values() for value in values])
    if search.winner is not None and search.winner not in {candidate.trial for candidate in search.candidates}:
        raise ValueError(f"the winner, trial {search.winner}, is not a candidate")
    _known("importances", search.importances, search.objectives)
    for shares in search.importances.values():
        _known("importances", shares, search.parameters)
        _numbers("importances", shares.values())
    _known("protocol", search.protocol, search.objectives)
    for columns in search.protocol.values():
        _known("protocol", columns, SHARED)


def _check_parameter(name: str, parameter: Parameter) -> None:
    if parameter.choices:
        texts = [str(choice) for choice in parameter.choices]
        if len(set(texts)) < len(texts) or "" in texts:
            raise ValueError(f"parameter {name}: choices must differ as text, found {', '.join(map(repr, texts))}")
        return
    if parameter.low is None or parameter.high is None:
        raise ValueError(f"parameter {name} has neither choices nor both low and high")
    _numbers(f"parameter {name}", (parameter.low, parameter.high))
    if not parameter.low < parameter.high or (parameter.log and parameter.low <= 0):
        raise ValueError(f"parameter {name} goes from {parameter.low} to {parameter.high}, log {parameter.log}")


def _check_value(where: str, parameter: Parameter, value: Value) -> None:
    if parameter.choices:
        if str(value) not in {str(choice) for choice in parameter.choices}:
            raise ValueError(f"{where} is {value!r}; its choices are {', '.join(map(str, parameter.choices))}")
        return
    _numbers(where, [value])
    if _whole(parameter) and not isinstance(value, int):
        raise ValueError(f"{where} is {value!r}, which is not an integer")


def _known(where: str, names: Any, valid: Any) -> None:
    unknown = sorted(set(names) - set(valid))
    if unknown:
        raise ValueError(f"{where}: {', '.join(unknown)} unknown; valid are {', '.join(valid)}")


def _numbers(where: str, values: Any) -> None:
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"{where} has {value!r} instead of a finite number")
