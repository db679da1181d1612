"""From typed functions to a command line: jsonargparse reads signatures and docstrings."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import docstring_parser
from jsonargparse import ArgumentParser, DefaultHelpFormatter

HIDDEN = "overrides"
"""Parameter filled from dotted options instead of an option of its own."""


class CommandLike(Protocol):
    """What a command is to the parser."""

    @property
    def function(self) -> Callable[..., int]:
        """What runs; returns the exit code."""
        ...

    @property
    def example(self) -> str:
        """A command line to copy."""
        ...

    @property
    def positional(self) -> tuple[str, ...]:
        """Parameters that are words, in order."""
        ...


class _Help(DefaultHelpFormatter):
    """Epilogs keep their lines: they hold an example to copy."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith("Example"):
            return "".join(indent + line for line in text.splitlines(keepends=True))
        return super()._fill_text(text, width, indent)


def build_parser(commands: Mapping[str, Any]) -> ArgumentParser:
    """One parser with a sub-command per function; groups are one level deeper.

    Args:
        commands: name to command, or to a mapping of names to commands.
    """
    parser = _parser(
        description="Weak labels and frozen foundation models in, segmentation masks out.",
        epilog="Example:\n  weakly demo\n\nEvery command has its own --help; --debug shows the traceback of an error.",
    )
    _add(parser, commands)
    return parser


def _add(parser: ArgumentParser, commands: Mapping[str, Any]) -> None:
    subcommands = parser.add_subcommands(required=True, metavar="COMMAND")
    for name, command in commands.items():
        if isinstance(command, Mapping):
            group = _parser(description=f"{name}: {', '.join(command)}", epilog=None)
            subcommands.add_subcommand(name, group, help=", ".join(command))
            _add(group, command)  # jsonargparse wants the outer level first
        else:
            summary = (inspect.getdoc(command.function) or "").split("\n\n")[0].replace("\n", " ")
            subcommands.add_subcommand(name, command_parser(command), help=summary)


def command_parser(command: CommandLike) -> ArgumentParser:
    """The parser of one function.

    Its ``positional`` parameters are words in this order (a list takes one or more), booleans are switches, all others
    are options.
    """
    text = docstring_parser.parse(inspect.getdoc(command.function) or "")
    described = {parameter.arg_name: parameter.description or "" for parameter in text.params}
    description = " ".join(part for part in (text.short_description, text.long_description) if part)
    parser = _parser(description=description, epilog=f"Example:\n  {command.example}")
    hints = typing.get_type_hints(command.function)
    switches = [name for name, hint in hints.items() if hint is bool]
    for name in command.positional:
        many = typing.get_origin(hints[name]) is list
        kind = typing.get_args(hints[name])[0] if many else hints[name]
        more: dict[str, Any] = {"nargs": "+"} if many else {}
        parser.add_argument(name, type=kind, help=described.get(name), **more)
    for name in switches:
        parser.add_argument(f"--{name}", action="store_true", help=described.get(name))
    parser.add_function_arguments(command.function, as_group=False, skip={HIDDEN, *command.positional, *switches})
    return parser


def _parser(*, description: str, epilog: str | None) -> ArgumentParser:
    return ArgumentParser(prog="weakly", description=description, epilog=epilog, formatter_class=_Help)
