"""What ``weakly data check`` found, as tables for a person and as JSON."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from weakly.data.dataset import Problem


@dataclass(frozen=True, slots=True)
class CategoryCount:
    """How often a category occurs.

    Attributes:
        name: of the category.
        images: that show it.
        boxes: weak labels (clicks where there are no boxes, tags where there are neither).
        masks: truth masks; with object maps, the objects of images that have one; of images without weak labels, the
            part maps that show it.
        objects: true objects, where the dataset states them apart from weak labels.
    """

    name: str
    images: int
    boxes: int
    masks: int
    objects: int = 0


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a check found.

    Attributes:
        name: of the dataset.
        split: that was checked.
        images: usable records.
        annotations: weak labels on them.
        unannotated: usable records without a weak label or, where there are none, a category in their part map.
        queries: the number of queries S that images were compared with.
        over_queries: images with more parts than queries; a method with S queries cannot predict all of them.
        categories: one count per category, in the vocabulary's order.
        problems: in the order found: the reader's first, then per image.
        content_hash: see :func:`~weakly.data.check.content_hash`.
    """

    name: str
    split: str
    images: int
    annotations: int
    unannotated: int
    queries: int
    over_queries: int
    categories: tuple[CategoryCount, ...]
    problems: tuple[Problem, ...]
    content_hash: str

    @property
    def counts(self) -> dict[str, int]:
        """{check: number of problems}, most frequent first."""
        return dict(Counter(problem.check for problem in self.problems).most_common())

    @property
    def exit_code(self) -> int:
        """0: clean, or warnings only (used as is or repaired); 3: at least one record or label is unusable."""
        return 3 if any(problem.severity == "error" for problem in self.problems) else 0

    def to_dict(self) -> dict[str, Any]:
        """JSON form, with every problem."""
        return {
            "name": self.name,
            "split": self.split,
            "images": self.images,
            "annotations": self.annotations,
            "unannotated": self.unannotated,
            "queries": self.queries,
            "over_queries": self.over_queries,
            "content_hash": self.content_hash,
            "exit_code": self.exit_code,
            "counts": self.counts,
            "categories": [
                {"name": c.name, "images": c.images, "boxes": c.boxes, "masks": c.masks, "objects": c.objects}
                for c in self.categories
            ],
            "problems": [
                {
                    "check": p.check,
                    "severity": p.severity,
                    "file": p.file,
                    "index": p.index,
                    "message": p.message,
                    "remedy": p.remedy,
                }
                for p in self.problems
            ],
        }

    def print(self, console: Console, *, lines_per_check: int = 10) -> None:
        """Tables of categories and checks, then one line per problem (the first few of every check)."""
        console.print(_category_table(self))
        console.print(
            f"{self.images} images, {self.annotations} annotations, {self.unannotated} images without; "
            f"{self.over_queries} images with more than {self.queries} parts; content {self.content_hash[:16]}"
        )
        if not self.problems:
            console.print("No problems found.")
            return
        console.print(_check_table(self))
        shown: Counter[str] = Counter()
        for problem in self.problems:
            shown[problem.check] += 1
            if shown[problem.check] <= lines_per_check:
                console.print(escape(str(problem)), soft_wrap=True, highlight=False)
        for check, count in shown.items():
            if count > lines_per_check:
                console.print(f"{check}: {count - lines_per_check} more; the JSON report has all of them.")

    def text(self, *, lines_per_check: int = 10, width: int = 120) -> str:
        """What :meth:`print` prints, as plain text."""
        stream = io.StringIO()
        self.print(Console(file=stream, width=width, no_color=True), lines_per_check=lines_per_check)
        return stream.getvalue()


def _category_table(report: CheckReport) -> Table:
    table = Table("category", title=f"{report.name} / {report.split}")
    has_objects = any(c.objects for c in report.categories)
    for heading in ("images", "tags", "objects", "masks") if has_objects else ("images", "boxes", "masks"):
        table.add_column(heading, justify="right")
    for c in report.categories:
        numbers = (c.images, c.boxes, c.objects, c.masks) if has_objects else (c.images, c.boxes, c.masks)
        table.add_row(escape(c.name), *map(str, numbers))
    return table


def _check_table(report: CheckReport) -> Table:
    table = Table("check", "severity", title="problems")
    table.add_column("count", justify="right")
    severity = {problem.check: problem.severity for problem in report.problems}
    for name, count in report.counts.items():
        table.add_row(name, severity[name], str(count))
    return table
