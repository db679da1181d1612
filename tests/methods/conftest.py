"""Lets the tests of this folder import their helpers, and ``partclip_reference`` of the benchmarks."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
torch.set_num_threads(1)
