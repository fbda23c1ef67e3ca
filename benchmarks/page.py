"""Put the measured tables into docs/performance.md, between its `<!-- table NAME -->` and `<!-- end -->` lines.

python -m benchmarks.page [RESULTS]   # and what benchmarks/growth.json holds
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.growth import RESULTS as GROWTH
from benchmarks.run import RESULTS, duration, met, spread
from benchmarks.timing import Figure
from ebrm.utils.files import write_text

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table; the first `left` columns are text, the others numbers."""
    rule = [":--"] * left + ["--:"] * (len(header) - left)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows))


def figures_table(figures: Sequence[Figure]) -> str:
    """All figures; those without a requirement have a dash."""
    rows = [
        (
            figure.figure, figure.network, f"{figure.d:,}", f"{figure.rows:,}", duration(figure.plain_seconds),
            duration(figure.ours_seconds), spread(figure).replace("[", r"\[").replace("]", r"\]"),
            "–" if figure.required is None else f"{figure.required:g}", met(figure) or "–",
        )
        for figure in figures
    ]  # fmt: skip
    where = "; ".join(sorted({f"{figure.device}, {figure.threads} threads" for figure in figures}))
    header = ("Figure", "Network", "d", "Rows", "Plain", "Ours", "Ratio \\[least, greatest turn\\]", "Needs", "Met")
    return f"{markdown(header, rows, left=2)}\n\nMeasured on: {where}."


def growth_tables(found: Mapping[str, Any]) -> str:
    """Tables of what `benchmarks.growth`, `benchmarks.stream` and `benchmarks.startup` recorded."""
    jobs = {(point["rows"], point["job"]): point for point in found["growth"]}
    rows = []
    for n in sorted({n for n, _ in jobs}):
        fit, refine = jobs[n, "fit"], jobs[n, "refine"]
        peak = max(point["peak_bytes"] for (m, _), point in jobs.items() if m == n)
        taken = [f"{jobs[n, what]['seconds']:.1f} s" for what in ("open", "verify", "fit", "refine")]
        speeds = [f"{1000 * round(point['rows_per_second'] / 1000):,}" for point in (fit, refine)]
        rows.append((f"{n:,}", *taken[:3], speeds[0], taken[3], speeds[1], f"{peak / 1e9:.2f} GB"))
    header = ("Rows", "Open", "with checksums", "Fit", "rows/s", "Refine", "rows/s", "Most memory")
    kinds = {"large": "JSONL, rows of 200 KB", "small": "JSONL, rows of 400 bytes", "features": "features folder"}
    streams = [
        (kinds[point["kind"]], f"{point['bytes'] / 1e9:.3g} GB", f"{point['rows']:,}", f"{point['seconds']:.0f} s",
         f"{point['peak_bytes'] / 1e9:.2f} GB")
        for point in found.get("stream", ())
    ]  # fmt: skip
    starts = [
        (
            f"`{entry['what']}`",
            f"{entry['seconds']:.2f} s",
            "–" if entry["allowed"] is None else f"{entry['allowed']} s",
        )
        for entry in found.get("startup", ())
    ]
    tables = [markdown(header, rows, left=0)]
    if streams:
        tables.append(markdown(("`ebrm score` of", "Size", "Rows", "Time", "Most memory"), streams))
    if starts:
        tables.append(markdown(("Start-up", "Median", "Allowed"), starts))
    return "\n\n".join(tables)


def put(text: str, name: str, block: str) -> str:
    """`text` with the part marked `name` replaced by `block`.

    Raises:
        SystemExit: there is not exactly one such part.
    """
    text, found = re.subn(
        rf"(<!-- table {re.escape(name)} -->\n).*?(<!-- end -->)",
        lambda match: f"{match[1]}\n{block}\n\n{match[2]}",
        text,
        flags=re.DOTALL,
    )
    if found != 1:
        raise SystemExit(f"The page has {found} places for the table {name!r}; one was expected.")
    return text


def rewrite(name: str, block: str) -> None:
    """Put `block` into the page's part `name`."""
    write_text(PAGE, put(PAGE.read_text(encoding="utf-8"), name, block))


def main() -> None:
    """Write the tables of figures and of growth anew."""
    results = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    rewrite("figures", figures_table([Figure(**figure) for figure in json.loads(results.read_text(encoding="utf-8"))]))
    rewrite("growth", growth_tables(json.loads(GROWTH.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
