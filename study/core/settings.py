"""Nested frozen dataclasses: set one field by its dotted name, from text or a value; read all fields from JSON."""

from __future__ import annotations

import ast
import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from models.names import nearest

T = TypeVar("T")


def outside_identity(default: Any = dataclasses.MISSING) -> Any:
    """A spec field that no fingerprint hashes: it names what is known by its content, or says where a stage runs."""
    return dataclasses.field(default=default, metadata={"identity": False})


def added_later(named: Mapping[str, Any] | None = None) -> Any:
    """A spec field that was added when results had been published without it: None means as before. It is part of no
    fingerprint then, and a record without the field has None.

    Args:
        named: of a group of fields that can be off (None): published sets of its values, by which `change` sets it. A
            field that is set inside it turns it on, with the defaults of the others.
    """
    return dataclasses.field(default=None, metadata={"identity": "unless None", "named": named})


def identity(value: Any) -> Any:
    """The part of a spec that its fingerprint hashes: `dataclasses.asdict` without the fields outside the identity."""
    if (names := _fields_of_identity(value.__class__)) is not None:
        fields = {name: identity(getattr(value, name)) for name in names}
        return {name: item for name, item in fields.items() if item is not None or names[name] is True}
    return [identity(item) for item in value] if isinstance(value, tuple) else value


@functools.cache
def _fields_of_identity(kind: Any) -> dict[str, Any] | None:
    """The fields that are part of a fingerprint: True, or "unless None"."""
    if not dataclasses.is_dataclass(kind):
        return None
    fields = {f.name: f.metadata.get("identity", True) for f in dataclasses.fields(kind)}
    return {name: when for name, when in fields.items() if when}


_type_hints: Callable[[Any], dict[str, Any]] = functools.cache(typing.get_type_hints)


def change(settings: T, key: str, value: Any) -> T:
    """A copy of dataclass `settings` in which the field `key` ("part.field") is `value`.

    Text is parsed as a Python literal unless the field itself is text.

    Raises:
        ValueError: an unknown field (the message suggests similar names) or a value of the wrong type.
    """
    head, _, rest = key.partition(".")
    fields = {f.name: f for f in dataclasses.fields(settings)}  # type: ignore[arg-type]
    if head not in fields:
        raise ValueError(f"no field {head!r} in {type(settings).__name__}; {nearest(head, fields)}")
    old, hint = getattr(settings, head), _type_hints(type(settings))[head]
    if (named := fields[head].metadata.get("named")) is not None:
        if not rest:
            return dataclasses.replace(settings, **{head: _named(key, value, named)})  # type: ignore[type-var]
        old = next(a for a in typing.get_args(hint) if a is not type(None))() if old is None else old
    if dataclasses.is_dataclass(old):
        if not rest:
            inner = ", ".join(f.name for f in dataclasses.fields(old))
            raise ValueError(f"{key} is a group of fields; set one of them: {inner}")
        return dataclasses.replace(settings, **{head: change(old, rest, value)})  # type: ignore[type-var]
    if rest:
        raise ValueError(f"{head!r} has no fields of its own, so {key!r} names nothing")
    return dataclasses.replace(settings, **{head: _convert(value, hint, key)})  # type: ignore[type-var]


def _named(key: str, value: Any, named: Mapping[str, Any]) -> Any:
    """None, or the set of values of this name."""
    if value is None or value == "None":
        return None
    if not isinstance(value, str) or value not in named:
        inner = ", ".join(f.name for f in dataclasses.fields(next(iter(named.values()))))
        raise ValueError(f"{key} must be one of {', '.join(named)}, or None, got {value!r}; or set one of its {inner}")
    return named[value]


def rebuild(hint: Any, content: Any) -> Any:
    """The value of type `hint` (dataclass, tuple, mapping, path, optional or plain) from its `dataclasses.asdict` read
    from JSON. Settings hold no lists, so a list without a type (`Any`) was a tuple.

    Raises:
        TypeError: the fields are not those of the dataclass, or a value cannot have the type.
    """
    arguments = typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        hints = _type_hints(hint)
        later = {f.name for f in dataclasses.fields(hint) if f.metadata.get("identity") == "unless None"}
        if not isinstance(content, dict) or not set(hints) - later <= set(content) <= set(hints):
            raise TypeError(
                f"{getattr(hint, '__name__', hint)} has the fields {', '.join(hints)}; got {content!r:.100}"
            )
        content = {**dict.fromkeys(later), **content}
        return hint(**{name: rebuild(hints[name], item) for name, item in content.items()})  # type: ignore[operator]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return None if content is None else rebuild(next(a for a in arguments if a is not type(None)), content)
    if typing.get_origin(hint) is tuple:
        kinds = arguments[:1] * len(content) if arguments[1:] == (Ellipsis,) else arguments
        return tuple(rebuild(kind, item) for kind, item in zip(kinds, content, strict=True))
    if typing.get_origin(hint) in (dict, Mapping):
        return {key: rebuild(arguments[1], item) for key, item in content.items()}
    if hint is Any and isinstance(content, list):
        return tuple(rebuild(Any, item) for item in content)
    if hint is Any and isinstance(content, dict):
        return {key: rebuild(Any, item) for key, item in content.items()}
    return Path(content) if hint is Path else content


def _convert(value: Any, hint: Any, key: str) -> Any:
    wrong_type = ValueError(f"{key} must be {_describe(hint)}, got {value!r}")
    if hint is str:
        if not isinstance(value, str):
            raise wrong_type
        return value
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            if typing.get_origin(hint) is not tuple:
                raise wrong_type from None
            # f4d4,f4d16 without quotes; nothing at all is an empty list
            value = tuple(item.strip() for item in value.split(",")) if value.strip() else ()
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _convert(value, next(a for a in arguments if a is not type(None)), key)
    if origin is tuple:
        items = tuple(value) if isinstance(value, (tuple, list)) else (value,)
        kinds = arguments[:1] * len(items) if arguments[1:] == (Ellipsis,) else arguments
        if len(kinds) != len(items):
            raise wrong_type
        return tuple(_convert(item, kind, key) for item, kind in zip(items, kinds, strict=True))
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):  # {'from_images': 640, 'vf_weight': 0.1}
        hints = _type_hints(hint)
        for name in map(str, value):
            if name not in hints:
                raise ValueError(f"no field {name!r} in {key}; {nearest(name, hints)}")
        required = {f.name for f in dataclasses.fields(hint) if f.default is dataclasses.MISSING}
        if not required <= set(value):
            raise wrong_type
        return hint(**{name: _convert(item, hints[name], f"{key}.{name}") for name, item in value.items()})  # type: ignore[operator]
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)  # 1e5
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise wrong_type
    return value


def _describe(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        inner = ", ".join(_describe(a) for a in arguments if a is not Ellipsis)
        return f"one or more of ({inner}), separated by commas" if Ellipsis in arguments else f"({inner})"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(a) for a in arguments)
    if dataclasses.is_dataclass(hint):
        hints = _type_hints(hint)
        return "{" + ", ".join(f"{name!r}: {_describe(inner)}" for name, inner in hints.items()) + "}"
    names = {int: "a whole number", float: "a number", bool: "True or False", str: "text", type(None): "None"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))
