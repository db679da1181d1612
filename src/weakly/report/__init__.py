"""The report: everything about a run on one HTML page that needs nothing else."""

from weakly.report.page import GalleryRow, ProblemLine, Repeat, ReportPage, write_report
from weakly.report.reproduction import build_cell_reports, reproduction_text, write_reproduction
from weakly.report.run_report import build_demo_report, build_run_report

__all__ = [
    "GalleryRow",
    "ProblemLine",
    "Repeat",
    "ReportPage",
    "build_cell_reports",
    "build_demo_report",
    "build_run_report",
    "reproduction_text",
    "write_report",
    "write_reproduction",
]
