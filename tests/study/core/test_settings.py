from dataclasses import dataclass

import pytest

from study.core.settings import added_later, change, identity, outside_identity, rebuild


@dataclass(frozen=True)
class Part:
    start: int
    rate: float = 0.1


@dataclass(frozen=True)
class Inner:
    rate: float = 1.0
    steps: int = 2
    betas: tuple[float, float] = (0.5, 0.9)
    name: str = "x"
    on: bool = False
    marks: tuple[int, ...] = (1,)
    judges: tuple[tuple[str, int], ...] = ()
    limit: int | None = None
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Outer:
    inner: Inner = Inner()


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("rate", "3", 3.0),
        ("rate", "1e-3", 1e-3),
        ("steps", "1e5", 100_000),
        ("betas", "0.5,0.99", (0.5, 0.99)),
        ("name", "17", "17"),
        ("on", "True", True),
        ("marks", "5", (5,)),
        ("marks", "5,6", (5, 6)),
        ("judges", "('a', 96),", (("a", 96),)),
        ("limit", "None", None),
        ("parts", "{'start': 3, 'rate': 1}, {'start': 1e3}", (Part(3, 1.0), Part(1000))),
        ("parts", "{'start': 3}", (Part(3),)),
        ("parts", "()", ()),
        ("parts", "", ()),
    ],
)
def test_text_becomes_the_type_of_the_field(field, text, value):
    changed = getattr(change(Outer(), f"inner.{field}", text).inner, field)
    assert changed == value
    assert type(changed) is type(value)


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("inner.raet", "1", "no field 'raet' in Inner; nearest: rate"),
        ("iner.rate", "1", "nearest: inner"),
        ("inner", "1", "set one of them: rate, steps"),
        ("inner.rate.x", "1", "has no fields of its own"),
        ("inner.steps", "1.5", "must be a whole number, got '1.5'"),
        ("inner.steps", "True", "must be a whole number"),
        ("inner.on", "1", "must be True or False"),
        ("inner.betas", "0.5", r"must be \(a number, a number\)"),
        ("inner.rate", "fast", "must be a number, got 'fast'"),
        ("inner.parts", "{'start': 3, 'raet': 1}", "no field 'raet' in parts; nearest: rate"),
        ("inner.parts", "{'rate': 1}", r"must be \{'start': a whole number, 'rate': a number\}, got"),
        ("inner.parts", "{'start': 'x'}", r"parts\.start must be a whole number, got 'x'"),
        ("inner.parts", "3", r"must be \{'start': a whole number, 'rate': a number\}, got 3"),
    ],
)
def test_a_wrong_field_or_type_is_named(key, text, message):
    with pytest.raises(ValueError, match=message):
        change(Outer(), key, text)


@dataclass(frozen=True)
class Optional:
    group: Inner | None = added_later(named={"fast": Inner(rate=9.0), "far": Inner(steps=7)})
    other: Inner | None = added_later()


def test_a_group_that_can_be_off_is_set_by_a_name_or_by_one_of_its_fields():
    assert change(Optional(), "group", "fast").group == Inner(rate=9.0)
    assert change(change(Optional(), "group", "far"), "group.rate", "3").group == Inner(rate=3.0, steps=7)
    assert change(Optional(), "group.steps", "5").group == Inner(steps=5)
    for off in ("None", None):
        assert change(change(Optional(), "group", "far"), "group", off) == Optional()
    for value in ("fats", "{'rate': 1}", 3, True):
        with pytest.raises(
            ValueError, match=r"group must be one of fast, far, or None, got .*; or set one of its rate, s"
        ):
            change(Optional(), "group", value)
    with pytest.raises(ValueError, match="no field 'raet' in Inner; nearest: rate"):
        change(Optional(), "group.raet", "1")


@dataclass(frozen=True, kw_only=True)
class Asked:
    rate: float
    marks: tuple[int, ...] = (1,)
    name: str = outside_identity("x")


def test_a_field_outside_the_identity_is_kept_in_records_and_in_no_hash():
    assert identity(Asked(rate=1.0)) == identity(Asked(rate=1.0, name="y")) == {"rate": 1.0, "marks": [1]}
    assert identity((Asked(rate=2.0),)) == [{"rate": 2.0, "marks": [1]}]
    assert rebuild(Asked, {"rate": 1.0, "marks": [1], "name": "y"}) == Asked(rate=1.0, name="y")
    with pytest.raises(TypeError, match="has the fields rate, marks, name"):
        rebuild(Asked, {"rate": 1.0, "marks": [1]})


@dataclass(frozen=True)
class Extended(Asked):
    extra: Asked | None = added_later()


def test_a_field_that_was_added_later_is_in_no_hash_before_it_is_used_and_older_records_lack_it():
    assert identity(Extended(rate=1.0)) == identity(Asked(rate=1.0))
    used = Extended(rate=1.0, extra=Asked(rate=2.0))
    assert identity(used) == {**identity(Asked(rate=1.0)), "extra": {"rate": 2.0, "marks": [1]}}
    older = {"rate": 1.0, "marks": [1], "name": "y"}
    assert rebuild(Extended, older) == Extended(rate=1.0, name="y")
    assert rebuild(Extended, {**older, "extra": older}).extra == Asked(rate=1.0, name="y")
