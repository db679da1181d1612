"""Protocols and metrics: how a segmentation is scored, and how the score is written down."""

from weakly.evaluation.coco_results import read_coco_results
from weakly.evaluation.confusion import ConfusionMatrix, Figures
from weakly.evaluation.pairs import OfficialOptions
from weakly.evaluation.protocols import PROTOCOLS, Evaluator, Scores
from weakly.evaluation.records import Record, read_records, update_records, write_records
from weakly.evaluation.scoring import PARTS, SEMANTIC, Scoring
from weakly.evaluation.semantic import SEMANTIC_PROTOCOLS
from weakly.evaluation.table import protocol_table, render_protocols

__all__ = [
    "PARTS",
    "PROTOCOLS",
    "SEMANTIC",
    "SEMANTIC_PROTOCOLS",
    "ConfusionMatrix",
    "Evaluator",
    "Figures",
    "OfficialOptions",
    "Record",
    "Scores",
    "Scoring",
    "protocol_table",
    "read_coco_results",
    "read_records",
    "render_protocols",
    "update_records",
    "write_records",
]
