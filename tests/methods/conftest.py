"""Lets the tests of this folder import their helpers: ``contract`` and ``tiny_segmenter``."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)
