"""The command line: words in, one typed function of the ``commands`` modules called, an exit code out."""

# ruff: noqa: T201 - a command line prints

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from weakly import commands, data_commands, foundation_commands
from weakly.commands import DONE, DONE_WITH_SKIPS, FAILED, INTERRUPTED, WRONG_USE
from weakly.errors import UserError, WeaklyError

__all__ = ["COMMANDS", "DONE", "DONE_WITH_SKIPS", "FAILED", "INTERRUPTED", "WRONG_USE", "Command", "main"]

_OVERRIDE = re.compile(r"--([a-z_]+(?:\.[a-z_0-9]+)+)(?:=(.*))?", re.DOTALL)
_WITH_OVERRIDES = {"fit", "evaluate", "predict", "reproduce"}


@dataclass(frozen=True)
class Command:
    """A function, an example for its help, and which parameters are words instead of options."""

    function: Callable[..., int]
    example: str
    positional: tuple[str, ...] = ()


COMMANDS: dict[str, Command | dict[str, Command]] = {
    "demo": Command(commands.demo, "weakly demo --out runs/demo"),
    "data": {
        "make": Command(
            data_commands.data_make, "weakly data make worlds/menagerie --train 2000 --val 200 --seed 3", ("root",)
        ),
        "check": Command(
            data_commands.data_check,
            "weakly data check coco --annotations parts.json --images photos --json report.json",
            ("kind",),
        ),
        "convert": Command(
            data_commands.data_convert, "weakly data convert VOC2010 data/PascalPart --split val", ("root", "out")
        ),
    },
    "features": {
        "build": Command(data_commands.features_build, "weakly features build recipes/wps/menagerie.yaml", ("recipe",)),
        "list": Command(data_commands.features_list, "weakly features list --root features"),
        "verify": Command(data_commands.features_verify, "weakly features verify --root features"),
        "remove": Command(
            data_commands.features_remove, "weakly features remove features/bundled-0a1b-float16 --yes", ("store",)
        ),
    },
    "fit": Command(
        commands.fit, "weakly fit recipes/wps/menagerie.yaml --optimisation.epochs 3 --out runs/short", ("recipe",)
    ),
    "evaluate": Command(
        commands.evaluate, "weakly evaluate runs/menagerie --split val --results other.json --name other", ("run",)
    ),
    "reproduce": Command(
        commands.reproduce,
        "weakly reproduce wps --data menagerie --tables 4,6 --seeds 3",
        ("method",),
    ),
    "predict": Command(
        commands.predict, "weakly predict runs/menagerie photos/ cat.jpg --out masks", ("run", "images")
    ),
    "report": Command(commands.report, "weakly report runs/menagerie", ("run",)),
    "doctor": Command(commands.doctor, "weakly doctor"),
    "foundation": {
        "train-sam": Command(
            foundation_commands.foundation_train_sam, "weakly foundation train-sam runs/sam --steps 2150", ("out",)
        ),
        "train-clip": Command(
            foundation_commands.foundation_train_clip, "weakly foundation train-clip runs/clip --steps 3100", ("out",)
        ),
        "train-clipseg": Command(
            foundation_commands.foundation_train_clipseg,
            "weakly foundation train-clipseg runs/clipseg --steps 2400",
            ("out",),
        ),
    },
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: words after ``weakly``; None: those of this process.

    Returns:
        0 done, 3 done with skips, 2 wrong use, 1 failed, 130 stopped by Ctrl-C. User errors are one sentence on
        standard error; ``--debug`` or ``WEAKLY_DEBUG=1`` adds the traceback.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words or os.environ.get("WEAKLY_DEBUG", "") not in ("", "0")
    try:
        command, values = _parse([word for word in words if word != "--debug"])
        return command.function(**values)
    except KeyboardInterrupt:
        print("\nStopped. Run the same command again to go on from the last checkpoint.", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as stop:  # argparse: 0 after --help, 2 after a wrong word
        return stop.code if isinstance(stop.code, int) else FAILED
    except WeaklyError as error:
        if debug:
            traceback.print_exc()
        print(f"weakly: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        return FAILED
    except Exception as error:  # noqa: BLE001 - the last line of defence: one sentence instead of a traceback
        if debug:
            traceback.print_exc()
        print(f"weakly: failed: {type(error).__name__}: {error} (--debug shows where)", file=sys.stderr)
        return FAILED


def entry_point() -> None:
    """The console script: :func:`main` and its exit code."""
    sys.exit(main())


def _parse(words: list[str]) -> tuple[Command, dict[str, Any]]:
    from weakly.command_line import build_parser  # noqa: PLC0415 - jsonargparse is not needed to import this module

    overrides: list[str] = []
    if words and words[0] in _WITH_OVERRIDES:
        words, overrides = _take_overrides(words)
    parsed = build_parser(COMMANDS).parse_args(words)
    path, values = [], parsed
    while "subcommand" in values and values.subcommand:
        path.append(values.subcommand)
        values = values[values.subcommand]
    command: Any = COMMANDS
    for name in path:
        command = command[name]
    found = {key: value for key, value in values.as_dict().items() if key != "subcommand"}
    return command, {**found, **({"overrides": overrides} if overrides else {})}


def _take_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Dotted options apart from the others: ``(other words, ["key=value", ...])``."""
    rest: list[str] = []
    taken: list[str] = []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        match = _OVERRIDE.fullmatch(word)
        if match is None:
            rest.append(word)
        elif match[2] is not None:
            taken.append(f"{match[1]}={match[2]}")
        elif queue:
            taken.append(f"{match[1]}={queue.pop(0)}")
        else:
            raise UserError(f"{word} has no value; write {word} VALUE.")
    return rest, taken
