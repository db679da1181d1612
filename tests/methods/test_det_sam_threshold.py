"""From which score on boxes prompt: the best F1 on training images, found from one look at them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_segmenter import rectangle_dataset
from torch import Tensor

from weakly.foundation.promptable import Frame
from weakly.methods.baselines.det_sam.model import Detector, Found
from weakly.methods.baselines.det_sam.targets import DetSamData, FrameImages, box_targets
from weakly.methods.baselines.det_sam.threshold import UNDECIDED, best_cut, choose_threshold


def f1(scores: np.ndarray, right: np.ndarray, given_boxes: int, threshold: float) -> float:
    above = scores >= threshold
    return 2 * (right & above).sum() / (above.sum() + given_boxes)


def test_a_worked_example() -> None:
    scores = np.array([0.3, 0.9, 0.6, 0.8], np.float32)
    right = np.array([False, True, True, False])
    # F1 of the best k of 2 given boxes: 2/3, 2/4, 4/5, 4/6.
    assert best_cut(scores, right, 2) == pytest.approx((0.6 + 0.3) / 2)


@given(
    st.lists(st.tuples(st.sampled_from([0.1, 0.25, 0.5, 0.75, 0.9]), st.booleans()), min_size=1, max_size=12),
    st.integers(0, 5),
)
def test_no_other_threshold_is_better(found: list[tuple[float, bool]], missed: int) -> None:
    scores, right = np.array([s for s, _ in found], np.float32), np.array([r for _, r in found])
    given_boxes = int(right.sum()) + missed
    threshold = best_cut(scores, right, given_boxes)
    if not right.any():
        assert threshold == UNDECIDED
        return
    best = f1(scores, right, given_boxes, threshold)
    assert best >= max(f1(scores, right, given_boxes, other) for other in np.linspace(0, 1, 101)) - 1e-9


class Draughtsman(Detector):
    """Finds the boxes it is told of, and with a lower score the same ones in other categories."""

    def __init__(self, data: DetSamData, sure: float, unsure: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.answers = iter(range(len(data)))
        self.data, self.sure, self.unsure = data, sure, unsure

    def losses(self, batch: object) -> dict[str, Tensor]:
        raise NotImplementedError

    def detect(self, inputs: Tensor) -> Found:
        assert not self.training
        rows = [next(self.answers) for _ in inputs]
        boxes, labels, counts = self.data.targets.gather(torch.tensor(rows))
        image = torch.arange(len(rows)).repeat_interleave(torch.tensor(counts))
        flat = torch.cat([box[:n] for box, n in zip(boxes, counts, strict=True)])
        names = torch.cat([label[:n] for label, n in zip(labels, counts, strict=True)])
        scores = torch.tensor([self.sure, self.unsure]).repeat_interleave(len(names))
        return Found(image.repeat(2), flat.repeat(2, 1), torch.cat([names, (names + 1) % 3]), scores)


def test_it_lies_between_right_and_wrong_boxes(tmp_path: Path) -> None:
    dataset = rectangle_dataset(tmp_path, 7)
    paths = tuple(sample.path for sample in dataset)
    data = DetSamData((FrameImages(paths, 64),), box_targets(dataset, lambda size: Frame.fit(size, 64)))
    detector = Draughtsman(data, 0.8, 0.4).train()
    assert choose_threshold(detector, data, 100, batch_size=3) == pytest.approx(0.6)
    assert detector.training
    assert next(detector.answers, None) is None, "every image was looked at once"
