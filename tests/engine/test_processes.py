"""Two processes train one student together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import weakly
from weakly.engine.runs import Run, main_process

RUNNER = """\
import sys
import torch
import weakly.methods
torch.set_num_threads(1)
weakly.methods.__path__.append({methods!r})
from weakly.cli import main
sys.exit(main())
"""


@pytest.mark.slow
def test_two_processes_write_one_run(recipe_file: Path, work: Path) -> None:
    runner = work / "runner.py"
    runner.write_text(RUNNER.format(methods=str(Path(__file__).parent / "extra_methods")))
    recipe_file.write_text(recipe_file.read_text() + "devices: 2\n")
    words = ["fit", str(recipe_file), "--out", "run", "--optimisation.epochs", "2"]
    source = str(Path(weakly.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(runner), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    run = Run(work / "run")
    assert run.info()["steps"] == 2 * 3, "10 images in global batches of 4: 3 steps in each of 2 epochs"
    assert run.student.is_dir() and run.metrics.is_file()


def test_further_processes_are_known_by_their_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    assert main_process()
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert not main_process()
