#!/usr/bin/env python3
"""Turns CSV files into a Markdown report and one SVG histogram for each numeric column.

Usage: report.py [FILE.csv ...]     all *.csv of the current directory where none is named
"""

from __future__ import annotations

import csv
import io
import math
import os
import re
import statistics
import sys
from collections import Counter
from html import escape
from pathlib import Path

WIDTH, HEIGHT, MARGIN = 480, 200, 30
OUTPUT = Path(os.environ.get("SKILLCELL_OUTPUT_DIR", "."))


def read(path: Path) -> tuple[list[str], list[list[str]]]:
    """Column names and rows; short rows are filled up, long ones cut."""
    text = path.read_text(encoding="utf-8-sig")
    try:
        dialect: type[csv.Dialect] | csv.Dialect = csv.Sniffer().sniff(text[:8192], delimiters=",;\t|")
    except csv.Error:
        dialect = csv.excel
    rows = [row for row in csv.reader(io.StringIO(text, newline=""), dialect) if row]
    if not rows:
        raise ValueError("is empty")
    names, width = rows[0], len(rows[0])
    return names, [(row + [""] * width)[:width] for row in rows[1:]]


def numbers(values: list[str]) -> list[float] | None:
    """The values as numbers, without the missing ones; None for a column of text."""
    try:
        found = [float(value) for value in values if value.strip()]
    except ValueError:
        return None
    return found if found and all(map(math.isfinite, found)) else None


def histogram(title: str, values: list[float]) -> str:
    """An SVG with as many bars as Sturges' rule gives."""
    low, high = min(values), max(values)
    bars = 1 if low == high else math.ceil(math.log2(len(values))) + 1
    counts = Counter(min(bars - 1, int((value - low) / ((high - low) or 1) * bars)) for value in values)
    step = (WIDTH - 2 * MARGIN) / bars
    shapes = []
    for bar in range(bars):
        height = (HEIGHT - 2 * MARGIN) * counts[bar] / max(counts.values())
        x, y = MARGIN + bar * step, HEIGHT - MARGIN - height
        shapes.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{step - 2:.1f}" height="{height:.1f}" fill="#3b82f6"/>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">'
        f'<text x="{MARGIN}" y="20" font-size="14">{escape(title)}</text>{"".join(shapes)}'
        f'<text x="{MARGIN}" y="{HEIGHT - 10}" font-size="11">{low:g}</text>'
        f'<text x="{WIDTH - MARGIN}" y="{HEIGHT - 10}" font-size="11" text-anchor="end">{high:g}</text></svg>\n'
    )


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def section(path: Path) -> list[str]:
    """The part of the report that one file gets; writes its charts."""
    names, rows = read(path)
    lines = [f"## {path.name}", "", f"{len(rows)} rows, {len(names)} columns", ""]
    table = ["| column | values | missing | min | mean | median | max | stdev |", "|---|--:|--:|--:|--:|--:|--:|--:|"]
    texts, charts = [], []
    for index, name in enumerate(names):
        column = [row[index] for row in rows]
        missing = sum(not value.strip() for value in column)
        values = numbers(column)
        if values is None:
            common = Counter(value for value in column if value.strip()).most_common(3)
            texts.append(f"- **{cell(name)}**: " + ", ".join(f"{cell(value)} ({count})" for value, count in common))
            continue
        figures = (min(values), statistics.fmean(values), statistics.median(values), max(values))
        stdev = statistics.stdev(values) if len(values) > 1 else 0.0
        shown = " | ".join(f"{figure:.6g}" for figure in (*figures, stdev))
        table.append(f"| {cell(name)} | {len(values)} | {missing} | {shown} |")
        chart = re.sub(r"[^A-Za-z0-9_.-]+", "_", f"{path.stem}-{name}") + ".svg"
        (OUTPUT / chart).write_text(histogram(name, values), encoding="utf-8")
        charts.append(f"![{cell(name)}]({chart})")
    print(f"{path.name}: {len(rows)} rows, {len(charts)} charts", flush=True)
    return [*lines, *table, "", *texts, "", *charts, ""]


def main(arguments: list[str]) -> int:
    paths = [Path(argument) for argument in arguments] or sorted(Path().glob("*.csv"))
    if not paths:
        print("no CSV file is named, and none is in the current directory", file=sys.stderr)
        return 2
    lines = ["# CSV report", ""]
    for path in paths:
        try:
            lines += section(path)
        except (OSError, ValueError, csv.Error) as error:
            print(f"{path}: {error}", file=sys.stderr)
            return 2
    (OUTPUT / "report.md").write_text("\n".join(lines), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
