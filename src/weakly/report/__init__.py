"""The report: everything about a run on one HTML page that needs nothing else."""

from weakly.report.page import GalleryRow, ProblemLine, Repeat, ReportPage, write_report
from weakly.report.run_report import build_demo_report, build_run_report

__all__ = [
    "GalleryRow",
    "ProblemLine",
    "Repeat",
    "ReportPage",
    "build_demo_report",
    "build_run_report",
    "write_report",
]
