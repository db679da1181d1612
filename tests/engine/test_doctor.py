"""The doctor names what is wrong and what to do, and never dies of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from weakly.engine import doctor
from weakly.engine.doctor import examine
from weakly.engine.runs import resolve_device
from weakly.errors import UserError, WeaklyError


def found(folder: Path) -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in examine(folder)}


def test_every_check_reports(tmp_path: Path) -> None:
    findings = found(tmp_path / "new")
    assert set(findings) == {
        "versions", "torch", "bundled segmenter", "devices", "threads", "disk", "writing", "network",
    }  # fmt: skip
    assert findings["torch"].ok and findings["writing"].ok and "torch 2" in findings["versions"].message
    assert not list((tmp_path / "new").iterdir()), "nothing is left behind"


def test_failing_checks_name_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LEAST_FREE_GB", 1e9)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def broken() -> str:
        raise WeaklyError("The weights are damaged; install again.")

    monkeypatch.setattr(doctor, "_bundled", broken)
    (tmp_path / "file").write_text("")
    findings = found(tmp_path / "file")
    assert not findings["disk"].ok and "free at least" in findings["disk"].message
    assert not findings["bundled segmenter"].ok and "install again" in findings["bundled segmenter"].message
    assert not findings["writing"].ok
    assert "HF_HUB_OFFLINE is set" in findings["network"].message


def test_devices_are_checked_by_name() -> None:
    assert resolve_device("cpu") == "cpu" and resolve_device("auto") in ("cpu", "cuda")
    with pytest.raises(UserError, match="Unknown device 'tpu'"):
        resolve_device("tpu")
    with pytest.raises(UserError, match="no mps device"):
        resolve_device("mps")
