"""The command line: help with examples, exit codes, one sentence per error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from weakly import cli, commands
from weakly.cli import COMMANDS, DONE, FAILED, INTERRUPTED, WRONG_USE, Command, main
from weakly.errors import UserError, WeaklyError

SOURCE = str(Path(cli.__file__).parents[1])


def flat() -> list[tuple[list[str], Command]]:
    found = []
    for name, command in COMMANDS.items():
        if isinstance(command, Command):
            found.append(([name], command))
        else:
            found += [([name, inner], nested) for inner, nested in command.items()]
    return found


@pytest.mark.parametrize(
    ("words", "command"), flat(), ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_every_command_has_help_with_an_example_that_parses(
    words: list[str], command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--help"]) == DONE
    printed = capsys.readouterr().out
    assert f"Example:\n  {command.example}" in printed
    assert "Returns" not in printed
    example = command.example.split()
    assert example[: len(words) + 1] == ["weakly", *words]
    parsed, values = cli._parse(example[1:])
    assert parsed is command and values


def test_top_level_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == DONE
    printed = capsys.readouterr().out
    assert all(name in printed for name in COMMANDS)


def test_help_does_not_load_torch() -> None:
    code = "import sys; from weakly.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    assert (
        subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False).returncode == 0
    )


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["fitt"],
        ["fit"],
        ["fit", "r.yaml", "--nonsense", "3"],
        ["fit", "r.yaml", "--optimisation.epochs"],
        ["fit", "missing.yaml"],
        ["evaluate", "missing-run"],
        ["predict", "missing-run", "x.png", "--out", "o"],
        ["predict", "run", "--out", "o"],
        ["report", "missing-run"],
        ["data", "check", "nokind"],
        ["data", "check", "coco", "--queries", "many"],
        ["data", "make", "w", "--train", "0", "--val", "0"],
        ["features", "remove", "nowhere"],
    ],
    ids=" ".join,
)
def test_wrong_use_is_exit_code_2_without_traceback(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == WRONG_USE
    error = capsys.readouterr().err
    assert error.strip() and "Traceback" not in error


@pytest.mark.parametrize(
    ("error", "code", "phrase"),
    [
        (UserError("a.json is wrong; mend it."), WRONG_USE, "weakly: a.json is wrong; mend it.\n"),
        (WeaklyError("The disk is full."), FAILED, "weakly: The disk is full.\n"),
        (ValueError("odd"), FAILED, "weakly: failed: ValueError: odd (--debug shows where)\n"),
        (KeyboardInterrupt(), INTERRUPTED, "Run the same command again"),
        (BrokenPipeError(), FAILED, ""),
    ],
)
def test_errors_become_exit_codes_and_one_sentence(
    error: BaseException,
    code: int,
    phrase: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(**_: object) -> int:
        raise error

    monkeypatch.setitem(COMMANDS, "doctor", Command(commands.doctor, "x"))
    monkeypatch.setattr(cli, "_parse", lambda _: (Command(fail, "x"), {}))
    assert main(["doctor"]) == code
    printed = capsys.readouterr().err
    assert phrase in printed and "Traceback" not in printed
    if isinstance(error, Exception) and code != FAILED | INTERRUPTED and not isinstance(error, BrokenPipeError):
        assert main(["doctor", "--debug"]) == code
        assert "Traceback" in capsys.readouterr().err


def test_dotted_options_are_taken_apart_from_the_others() -> None:
    rest, taken = cli._take_overrides(["fit", "r.yaml", "--a.b", "1", "--out", "o", "--c.d=x=y", "--e.f", "-1"])
    assert rest == ["fit", "r.yaml", "--out", "o"]
    assert commands._pairs(taken) == [("a.b", "1"), ("c.d", "x=y"), ("e.f", "-1")]


def test_commands_are_written_so_that_they_can_be_pasted() -> None:
    assert commands._command("fit", Path("my recipes/a.yaml")) == "weakly fit 'my recipes/a.yaml'"


def test_module_runs_as_a_program() -> None:
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    done = subprocess.run([sys.executable, "-m", "weakly", "fit"], env=environment, capture_output=True, check=False)
    assert done.returncode == WRONG_USE and b"Traceback" not in done.stderr


def test_empty_feature_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["features", "list", "--root", str(tmp_path)]) == DONE
    assert main(["features", "verify", "--root", str(tmp_path)]) == DONE
    assert "holds no feature store" in capsys.readouterr().out
