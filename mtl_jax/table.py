"""Tables of results as Markdown, CSV and LaTeX."""

import csv
import dataclasses
import io
import math
import os
from collections.abc import Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class Value:
    """A number in a cell, perhaps with the standard deviation that belongs to it."""

    mean: float
    std: float | None = None


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of numbers.

    Attributes:
      title: with the unit of its values.
      better: +1 or -1 if larger or smaller values are better: marked by an arrow, the best is bold.
      decimals: None for as many as show the column's largest value with 4 significant digits.
    """

    title: str
    better: int = 0
    decimals: int | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """Named rows of numbers; a missing number is None.

    Attributes:
      corner: title of the rows' names.
      rows: row name -> one cell per column.
    """

    corner: str
    columns: Sequence[Column]
    rows: Mapping[str, Sequence[Value | None]]

    def markdown(self) -> str:
        """Columns are padded, so that it reads well on a console too."""
        titles = [c.title + {1: " ↑", -1: " ↓", 0: ""}[c.better] for c in self.columns]
        lines = [[self.corner, *titles]] + self._lines("**{}**", " ± ", "–")
        lines = [[cell.replace("|", r"\|") for cell in line] for line in lines]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
        padded = [
            [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]
            for line in lines
        ]
        return "".join("| " + " | ".join(line) + " |\n" for line in [padded[0], rule, *padded[1:]])

    def csv(self) -> str:
        """All digits; a column with standard deviations is followed by a column of them."""
        cells = list(zip(*self.rows.values(), strict=True))
        spread = [any(v is not None and v.std is not None for v in column) for column in cells]
        header = [self.corner]
        for column, has_std in zip(self.columns, spread, strict=True):
            header += [column.title] + [f"std of {column.title}"] * has_std
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(header)
        for name, values in self.rows.items():
            line = [name]
            for value, has_std in zip(values, spread, strict=True):
                line += [value.mean if value else None] + [value.std if value else None] * has_std
            writer.writerow(line)
        return text.getvalue()

    def latex(self) -> str:
        """A `tabular` with the rules of the package booktabs."""
        arrows = {1: r" $\uparrow$", -1: r" $\downarrow$", 0: ""}
        header = [_escape(self.corner), *(_escape(c.title) + arrows[c.better] for c in self.columns)]
        body = self._lines(r"\textbf{{{}}}", r" $\pm$ ", "--")
        lines = [[_escape(line[0]), *line[1:]] for line in body]
        rows = [" & ".join(line) + " \\\\\n" for line in [header, *lines]]
        begin = f"\\begin{{tabular}}{{l{'r' * len(self.columns)}}}\n\\toprule\n"
        return f"{begin}{rows[0]}\\midrule\n{''.join(rows[1:])}\\bottomrule\n\\end{{tabular}}\n"

    def write(self, folder: str) -> None:
        """Writes table.md, table.csv and table.tex."""
        os.makedirs(folder, exist_ok=True)
        for ending, text in (("md", self.markdown()), ("csv", self.csv()), ("tex", self.latex())):
            with open(os.path.join(folder, f"table.{ending}"), "w", encoding="utf-8") as file:
                file.write(text)

    def _lines(self, bold: str, plus_minus: str, missing: str) -> list[list[str]]:
        """Name and cells of each row as text."""
        columns = []
        for column, cells in zip(self.columns, zip(*self.rows.values(), strict=True), strict=True):
            digits = column.decimals
            if digits is None:
                digits = _decimals([v.mean for v in cells if v])
            text = [f"{v.mean:z.{digits}f}" if v else missing for v in cells]
            best = _best(text, cells, column.better)
            spread = [f"{plus_minus}{v.std:.{digits}f}" if v and v.std is not None else "" for v in cells]
            columns.append(
                [
                    (bold.format(t) if i in best else t) + s
                    for i, (t, s) in enumerate(zip(text, spread, strict=True))
                ]
            )
        return [list(line) for line in zip(self.rows, *columns, strict=True)]


def _decimals(values: Sequence[float]) -> int:
    largest = max((abs(v) for v in values), default=0.0)
    return min(6, max(0, 3 - math.floor(math.log10(largest)))) if largest else 0


def _best(text: Sequence[str], cells: Sequence[Value | None], better: int) -> set[int]:
    """Places of the best value and of all that print the same; none if there is nothing to compare."""
    known = [i for i, v in enumerate(cells) if v]
    if not better or len(known) < 2:
        return set()
    winner = max(known, key=lambda i: better * cells[i].mean)
    return {i for i in known if text[i] == text[winner]}


def _escape(text: str) -> str:
    """Text for LaTeX."""
    special = {c: "\\" + c for c in "%_&#${}"} | {
        "°": r"$^\circ$",
        "Δ": r"$\Delta$",
        "\\": r"\textbackslash{}",
    }
    return "".join(special.get(c, c) for c in text)
