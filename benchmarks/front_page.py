"""``python -m benchmarks.front_page``: the README's picture, drawn from the table of figures in docs/benchmarks.md."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
PICTURE = DOCS / "front-page.svg"

# Scenarios of the table, as somebody calls them who has not read what they are: of every kind one, the least gain too.
SHOWN = {
    "smollm2 x1": "1 stream",
    "smollm2 x16": "16 streams",
    "smollm2 shared 650 x8": "8 requests behind one prompt of 650 tokens",
    "smollm2 json x4": "4 JSON answers by a schema",
    "smollm2 tools x4": "4 tool calls",
    "minilm embeddings 1x64 x16": "embeddings, 16 clients (MiniLM)",
    "tiny-llama-v152k top-p x16": "16 streams, vocabulary of 152,000 (tiny model)",
    "tiny-llama-chain x16": "16 streams (tiny model)",
}
TITLE = "tokens per second ÷ those of llama-server, one compute thread each"
WIDTH, LEFT, TOP, ROW, BAR = 760, 330, 44, 26, 16
LONGEST = WIDTH - LEFT - 50  # pixels, with room for its number behind it


def ratios(page: str) -> dict[str, float]:
    """Tokens per second over llama-server's, by scenario: the first number of each row of the table."""
    rows = re.findall(r"^\| ([^|]+) \| ([0-9.]+) \([^|]*\) \|", page, re.MULTILINE)
    return {name: float(ratio) for name, ratio in rows}


def picture(page: str) -> str:
    """An SVG with a bar for each of SHOWN. Raises KeyError for one that is not in ``page``."""
    found = ratios(page)
    unit = LONGEST / max(found[name] for name in SHOWN)
    height = TOP + ROW * len(SHOWN) + 12
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="20" fill="#333333">{TITLE}</text>',
    ]
    for row, (name, label) in enumerate(SHOWN.items()):
        y = TOP + row * ROW
        middle, length = y + BAR - 4, unit * found[name]
        lines += [
            f'<text x="{LEFT - 10}" y="{middle}" text-anchor="end" fill="#333333">{label}</text>',
            f'<rect x="{LEFT}" y="{y}" width="{length:.0f}" height="{BAR}" fill="#2b6cb0"/>',
            f'<text x="{LEFT + length + 6:.0f}" y="{middle}" fill="#333333">{found[name]:.2f}</text>',
        ]
    one = LEFT + unit
    lines += [
        f'<line x1="{one:.0f}" y1="{TOP - 8}" x2="{one:.0f}" y2="{height - 12}" stroke="#dd6b20" stroke-width="2"/>',
        f'<text x="{one:.0f}" y="{TOP - 11}" text-anchor="middle" font-size="11" fill="#dd6b20">1</text>',
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(picture((DOCS / "benchmarks.md").read_text()))
