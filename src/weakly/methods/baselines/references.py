"""Which upper bounds an evaluation computes: names that a recipe lists, e.g. ``references: [box, point, everything]``.

=========================================  ==========================================================================
``box``, ``point``, ``point+box``          true boxes, their centres, or both, prompt the segmenter
``box:best-predicted`` ...                 the same, with the best of its three masks as the segmenter predicts it
``box:best-true`` ...                      the same, with the best of its three masks as the truth tells
``everything``                             its automatic masks, named by the truth
=========================================  ==========================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from weakly.data.dataset import Dataset
from weakly.errors import UserError
from weakly.foundation.mask_settings import AutomaticMaskSettings
from weakly.foundation.promptable import Pad, PromptableSegmenter
from weakly.methods.base import Score, Workspace
from weakly.methods.baselines.everything import SAM_EVERYTHING, everything_scores
from weakly.methods.baselines.oracle import ORACLES, FindStore, oracle_scores
from weakly.methods.embedding import find_store
from weakly.methods.frozen import frozen_segmenter

EVERYTHING = "everything"
REFERENCES = (*ORACLES, EVERYTHING)
"""All names."""


def check_references(names: Sequence[str]) -> None:
    """Refuse names that stand for nothing.

    Raises:
        UserError: a name is unknown, or there twice.
    """
    unknown = [name for name in names if name not in REFERENCES]
    if unknown:
        raise UserError(f"settings.references names {unknown[0]!r}; give some of {', '.join(REFERENCES)}.")
    if len(set(names)) < len(names):
        raise UserError("settings.references names one twice; name each once.")


class Prompting(Protocol):
    """Settings of a method that prompts a frozen segmenter."""

    @property
    def segmenter(self) -> str:
        """Its name."""

    @property
    def pad(self) -> Pad:
        """How it is shown images that are not square."""

    @property
    def references(self) -> Sequence[str]:
        """Some of :data:`REFERENCES`."""


def prompt_references(
    settings: Prompting, dataset: Dataset, workspace: Workspace, masks: AutomaticMaskSettings = SAM_EVERYTHING
) -> list[Score]:
    """What the settings of a method name, on its own segmenter: see :func:`reference_scores`."""
    return reference_scores(
        settings.references,
        partial(frozen_segmenter, settings.segmenter, workspace.device, pad=settings.pad),
        dataset,
        lambda segmenter: find_store(workspace.features, segmenter, workspace.feature_dtype),
        masks,
    )


def reference_scores(
    names: Sequence[str],
    segmenter: Callable[[], PromptableSegmenter],
    dataset: Dataset,
    find_store: FindStore,
    masks: AutomaticMaskSettings = SAM_EVERYTHING,
) -> list[Score]:
    """The references of these names, as far as a dataset allows them; nothing is loaded before it is needed.

    Args:
        names: of :data:`REFERENCES`.
        segmenter: loads the frozen segmenter.
        dataset: that is evaluated.
        find_store: stored features of a segmenter, if there are any.
        masks: how ``everything`` makes its masks.

    Raises:
        UserError: a name is unknown, or there twice.
    """
    check_references(names)
    oracles = oracle_scores(segmenter, dataset, find_store, [name for name in names if name != EVERYTHING])
    return [*oracles, *(everything_scores(segmenter, dataset, masks) if EVERYTHING in names else [])]
