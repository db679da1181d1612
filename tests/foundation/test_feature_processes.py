"""The feature store among real processes: killed, sharing the work, cut short by the system."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from weakly.errors import UserError
from weakly.foundation import image_keys
from weakly.foundation.feature_shards import Claims, shard_id
from weakly.foundation.features import FeatureStore
from weakly.foundation.promptable import PromptableSegmenter

torch.set_num_threads(1)


class TinySegmenter(PromptableSegmenter):
    """A frozen, slow two-layer encoder on 24 x 24 inputs; it answers no prompts."""

    layers: nn.Sequential

    def __init__(self, pause: float = 0.0) -> None:
        super().__init__()
        self.name, self.side, self.pad, self.embedding_shape, self.token_width = "tiny", 24, "sam", (4, 6, 6), 8
        self.pause = pause
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.GELU(), nn.Conv2d(8, 4, 3, 2, 1))
        self.freeze()

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.side} {self.pad}".encode())
        for tensor in self.state_dict().values():
            digest.update(tensor.cpu().numpy().tobytes())
        return digest.hexdigest()

    def encode(self, pixels: Tensor) -> Tensor:
        time.sleep(self.pause)
        features: Tensor = self.layers(pixels)
        return features

    def box_tokens(self, boxes: Tensor) -> Tensor:
        raise NotImplementedError

    def point_tokens(self, points: Tensor, boxes: Tensor | None = None) -> Tensor:
        raise NotImplementedError

    def decode(self, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


def draw_images(folder: Path, count: int) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:03}.png" for i in range(count)]
    for i, path in enumerate(paths):
        pixels = np.random.default_rng(i).integers(0, 256, (20 + i % 5, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return paths


def shard_bytes(store: FeatureStore) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.folder.glob("shard-*")}


def leftovers(folder: Path) -> list[Path]:
    return list(folder.rglob("*.tmp"))


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The failure of every scenario below, empty for none; run in one fresh process that forks others."""
    source = Path(image_keys.__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(tmp_path_factory.mktemp("scenarios"))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)  # noqa: S603
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads(done.stdout))


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")


@needs_fork
def test_killed_builds_resume_and_end_with_the_same_bytes(scenarios: dict[str, str]) -> None:
    assert not scenarios["kill"], scenarios["kill"]


@needs_fork
def test_two_processes_share_the_work_and_leave_one_consistent_store(scenarios: dict[str, str]) -> None:
    assert not scenarios["share"], scenarios["share"]


@needs_fork
def test_a_claim_is_refused_waited_for_and_dropped_by_the_dead(scenarios: dict[str, str]) -> None:
    assert not scenarios["claim"], scenarios["claim"]


@needs_fork
def test_a_write_that_the_system_cuts_short_leaves_nothing(scenarios: dict[str, str]) -> None:
    assert not scenarios["limit"], scenarios["limit"]


def start(action: Callable[[], None]) -> int:
    """Run ``action`` in a forked process; its id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        action()
        status = 0
    finally:
        os._exit(status)


def slow_store(root: Path) -> FeatureStore:
    return FeatureStore.open(root, TinySegmenter(pause=0.02), "float32", chunk=3)


def scenario_kill(folder: Path) -> None:
    paths = draw_images(folder / "images", 24)
    reference = FeatureStore.open(folder / "reference", TinySegmenter(), "float32", chunk=3)
    expected = reference.get(reference.build(paths, batch_size=2).keys)
    fsync = os.fsync

    def slow_fsync(fd: Any) -> None:
        time.sleep(0.02)
        fsync(fd)

    def build(root: Path) -> None:
        os.fsync = slow_fsync  # so that kills also hit half-written files
        slow_store(root).build(paths, batch_size=2)

    for attempt in range(3):
        root = folder / f"killed-{attempt}"
        for _ in range(2):
            child = start(functools.partial(build, root))
            before = len(list(root.glob("*/shard-*")))
            while len(list(root.glob("*/shard-*"))) == before:
                time.sleep(0.002)
            time.sleep(random.uniform(0, 0.1))  # noqa: S311
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            assert 0 < len(list(root.glob("*/shard-*"))) < 8, "the kill came too late to mean anything"
        store = slow_store(root)
        assert store.verify() == []
        assert leftovers(root) == []
        assert 0 < len(store) < 24
        assert torch.equal(store.get(store.build(paths, batch_size=2).keys), expected)
        assert shard_bytes(store) == shard_bytes(reference)


def scenario_share(folder: Path) -> None:
    paths = draw_images(folder / "images", 24)

    def build(number: int) -> None:
        store = slow_store(folder / "features")
        report = store.build(paths)
        assert report.encoded + report.reused == len(store) == 24
        (folder / f"encoded-{number}").write_text(str(store.encoded))

    children = [start(functools.partial(build, number)) for number in range(2)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    encoded = [int((folder / f"encoded-{number}").read_text()) for number in range(2)]
    assert sum(encoded) == 24
    assert min(encoded) > 0
    store = slow_store(folder / "features")
    assert store.verify() == []
    assert leftovers(folder) == []
    assert len(store) == 24
    assert len(shard_bytes(store)) == 8


def scenario_claim(folder: Path) -> None:
    chunk = shard_id(["a"])

    def hold() -> None:
        with Claims(folder / "claims") as claims, claims.claim(chunk, wait=True):
            (folder / "held").write_text("")
            time.sleep(60)

    child = start(hold)
    while not (folder / "held").exists():
        time.sleep(0.002)
    with Claims(folder / "claims") as claims:
        with claims.claim(chunk, wait=False) as mine:
            assert not mine
        with claims.claim(shard_id(["b"]), wait=False) as mine:
            assert mine
        os.kill(child, signal.SIGKILL)
        with claims.claim(chunk, wait=True) as mine:
            assert mine


def scenario_limit(folder: Path) -> None:
    import resource  # noqa: PLC0415 - Unix only

    paths = draw_images(folder / "images", 3)
    store = FeatureStore.open(folder / "features", TinySegmenter(), "float32")
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, resource.RLIM_INFINITY))
    try:
        store.build(paths)
    except UserError as error:
        assert f"{3 * 576:,} more bytes are needed (File too large)" in str(error), error
    else:
        raise AssertionError("the limit did not bite")
    assert shard_bytes(store) == {}
    assert leftovers(folder) == []
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert store.build(paths).encoded == 3


def failure(scenario: Callable[[Path], None], folder: Path) -> str:
    folder.mkdir()
    try:
        scenario(folder)
    except Exception:  # noqa: BLE001 - the test that asks shows it
        return traceback.format_exc()
    return ""


if __name__ == "__main__":
    all_scenarios = {"kill": scenario_kill, "share": scenario_share, "claim": scenario_claim, "limit": scenario_limit}
    failures = {name: failure(scenario, Path(sys.argv[1], name)) for name, scenario in all_scenarios.items()}
    sys.stdout.write(json.dumps(failures))
