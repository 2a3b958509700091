"""The plot of a topology: for each site, pairs above each cosine, beside what the two nulls expect. One SVG, no library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT, MARGIN, COLUMNS = 230, 150, 34, 4
TOP_DECADE = 9
"""The axis of counts runs from 1 to 10^9: 32,768 features have 5 x 10^8 pairs."""

CURVES = (("pairs", "#1b1b1b", ""), ("isotropic", "#1f77b4", "4 3"), ("matched", "#d9730d", "1.5 2.5"))
LABELS = {"pairs": "pairs of features", "isotropic": "expected, isotropic", "matched": "expected, matched covariance"}


def draw(sites: Sequence[tuple[str, Mapping[str, Sequence[float]]]]) -> str:
    """One panel a site: its name, and its levels (`cosine`, `pairs`, `isotropic`, `matched`, equally long)."""
    n_rows = math.ceil(len(sites) / COLUMNS)
    width, height = COLUMNS * WIDTH + 10, n_rows * HEIGHT + 34
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="10">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for number, (name, colour, dash) in enumerate(CURVES):
        x = 12 + 210 * number
        parts.append(f'<path d="M{x} 14h24" stroke="{colour}" stroke-width="1.5" stroke-dasharray="{dash}"/>')
        parts.append(f'<text x="{x + 30}" y="18">{LABELS[name]}</text>')
    for number, (site, levels) in enumerate(sites):
        row, column = divmod(number, COLUMNS)
        parts.append(f'<g transform="translate({column * WIDTH},{row * HEIGHT + 26})">{_panel(site, levels)}</g>')
    return "\n".join([*parts, "</svg>\n"])


def _panel(site: str, levels: Mapping[str, Sequence[float]]) -> str:
    right, bottom = WIDTH - 10, HEIGHT - 24
    parts = [f'<text x="{MARGIN}" y="12" font-weight="bold">{escape(site)}</text>']
    for decade in range(0, TOP_DECADE + 1, 3):
        y = _y(10**decade)
        parts.append(f'<path d="M{MARGIN} {y:.1f}H{right}" stroke="#dddddd"/>')
        parts.append(f'<text x="{MARGIN - 4}" y="{y + 3:.1f}" text-anchor="end">1e{decade}</text>')
    for tenth in range(0, 11, 2):
        parts.append(f'<text x="{_x(tenth / 10):.1f}" y="{bottom + 13}" text-anchor="middle">{tenth / 10:g}</text>')
    for name, colour, dash in CURVES:
        points = [(x, count) for x, count in zip(levels["cosine"], levels[name], strict=True) if count >= 1]
        path = " ".join(f"{_x(x):.1f},{_y(count):.1f}" for x, count in points)
        if path:
            parts.append(
                f'<polyline class="{name}" points="{path}" fill="none" stroke="{colour}" stroke-width="1.5" '
                f'stroke-dasharray="{dash}"/>'
            )
    return "".join(parts)


def _x(cosine: float) -> float:
    return MARGIN + cosine * (WIDTH - 10 - MARGIN)


def _y(count: float) -> float:
    bottom, top = HEIGHT - 24, 18
    return bottom - min(math.log10(count) / TOP_DECADE, 1.0) * (bottom - top)
