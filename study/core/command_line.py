"""A command from its command line: its options, and how it ends."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import sys
import textwrap
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

import tyro
from safetensors import SafetensorError

Options = TypeVar("Options")
HELP = {"-h", "--help"}
USER_ERRORS = (ValueError, OSError, SafetensorError)  # a wrong setting, a file that cannot be read, a damaged one


def options_of(kind: type[Options], command: str, words: Sequence[str] | None = None) -> Options:
    """The options that a command line gives; it prints help and exits where that is asked for, or on a wrong one.

    Args:
        kind: a dataclass; the text after a field is its help.
        command: as it is called, such as `study.sweep status`.
        words: of the command line; None: those of this process.
    """
    if HELP & set(sys.argv[1:] if words is None else words):
        _flow(kind)
    return tyro.cli(kind, prog=f"python -m {command}", args=words, config=(tyro.conf.FlagCreatePairsOff,))


def exit_code(command: str, run: Callable[[], int | None]) -> int:
    """Run a command to its end.

    Args:
        command: its name, such as `study.sample`, which begins the line.
        run: does the work and returns the exit code; None is 0.

    Returns:
        That code; 2 after a user's error; 130 if Ctrl-C stopped it.
    """
    try:
        return run() or 0
    except USER_ERRORS as error:
        print(f"{command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _flow(kind: type[Any]) -> None:
    """Let the help of each field be one paragraph: tyro breaks lines where the source does."""
    for each in filter(dataclasses.is_dataclass, kind.__mro__):
        (parsed,) = ast.parse(textwrap.dedent(inspect.getsource(each))).body
        assert isinstance(parsed, ast.ClassDef)
        for field, text in itertools.pairwise(parsed.body):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(about))):
                    of_field = each.__dataclass_fields__[name]
                    of_field.metadata = MappingProxyType({**of_field.metadata, "help": " ".join(about.split())})
