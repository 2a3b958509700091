"""The plots of a topology, one panel a site: pairs above each cosine beside what two nulls expect, and the share of pairs whose
glosses are less similar than a level. SVG, no library."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

from harness.whitebox.topology.distributions import SIMILARITIES

WIDTH, HEIGHT, MARGIN, COLUMNS = 230, 150, 34, 4
TOP_DECADE = 9
"""The axis of counts runs from 1 to 10^9: 32,768 features have 5 x 10^8 pairs."""

CURVES = (("pairs", "#1b1b1b", ""), ("isotropic", "#1f77b4", "4 3"), ("matched", "#d9730d", "1.5 2.5"))
LABELS = {"pairs": "pairs of features", "isotropic": "expected, isotropic", "matched": "expected, matched covariance"}
SHARE = ("share_below", "#1b1b1b", "")
LEAST_SIMILAR = -0.4

Curve = tuple[str, str, str]
Values = Mapping[str, Sequence[float]]


def draw(sites: Sequence[tuple[str, Values]]) -> str:
    """One panel a site: its name, and its levels (`cosine`, `pairs`, `isotropic`, `matched`, equally long)."""
    return _sheet(sites, _panel, [(LABELS[curve[0]], curve) for curve in CURVES])


def draw_similarity(sites: Sequence[tuple[str, Values]]) -> str:
    """One panel a site: its name, `similarity` and `share_below` (equally long); dots at the published levels."""
    return _sheet(sites, _similarity_panel, [("share of pairs whose glosses are less similar", SHARE)])


def _sheet(
    sites: Sequence[tuple[str, Values]], panel: Callable[[str, Values], str], legend: Sequence[tuple[str, Curve]]
) -> str:
    n_rows = math.ceil(len(sites) / COLUMNS)
    width, height = COLUMNS * WIDTH + 10, n_rows * HEIGHT + 34
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="10">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for number, (label, (_, colour, dash)) in enumerate(legend):
        x = 12 + 210 * number
        parts.append(f'<path d="M{x} 14h24" stroke="{colour}" stroke-width="1.5" stroke-dasharray="{dash}"/>')
        parts.append(f'<text x="{x + 30}" y="18">{label}</text>')
    for number, (site, values) in enumerate(sites):
        row, column = divmod(number, COLUMNS)
        parts.append(f'<g transform="translate({column * WIDTH},{row * HEIGHT + 26})">{panel(site, values)}</g>')
    return "\n".join([*parts, "</svg>\n"])


def _panel(site: str, levels: Values) -> str:
    parts = [_title(site)]
    parts += [_across(_y(10**decade), f"1e{decade}") for decade in range(0, TOP_DECADE + 1, 3)]
    parts += [_under(_x(tenth / 10), f"{tenth / 10:g}") for tenth in range(0, 11, 2)]
    for curve in CURVES:
        points = [(x, count) for x, count in zip(levels["cosine"], levels[curve[0]], strict=True) if count >= 1]
        parts.append(_line(curve, [(_x(x), _y(count)) for x, count in points]))
    return "".join(parts)


def _similarity_panel(site: str, values: Values) -> str:
    parts = [_title(site)]
    parts += [_across(_share_y(quarter / 4), f"{25 * quarter}%") for quarter in range(5)]
    parts += [_under(_similarity_x(tenth / 10), f"{tenth / 10:g}") for tenth in range(-4, 11, 2)]
    known = [
        (similarity, share)
        for similarity, share in zip(values["similarity"], values["share_below"], strict=True)
        if share is not None and similarity >= LEAST_SIMILAR
    ]
    parts.append(_line(SHARE, [(_similarity_x(x), _share_y(share)) for x, share in known]))
    parts += [
        f'<circle cx="{_similarity_x(x):.1f}" cy="{_share_y(share):.1f}" r="2.5" fill="{SHARE[1]}">'
        f"<title>{share:.1%} below {x:g}</title></circle>"
        for x, share in known
        if x in SIMILARITIES
    ]
    return "".join(parts)


def _title(site: str) -> str:
    return f'<text x="{MARGIN}" y="12" font-weight="bold">{escape(site)}</text>'


def _across(y: float, label: str) -> str:
    """A line of the grid, with its label on the left."""
    return (
        f'<path d="M{MARGIN} {y:.1f}H{WIDTH - 10}" stroke="#dddddd"/>'
        f'<text x="{MARGIN - 4}" y="{y + 3:.1f}" text-anchor="end">{label}</text>'
    )


def _under(x: float, label: str) -> str:
    return f'<text x="{x:.1f}" y="{HEIGHT - 11}" text-anchor="middle">{label}</text>'


def _line(curve: Curve, points: Sequence[tuple[float, float]]) -> str:
    name, colour, dash = curve
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return (
        f'<polyline class="{name}" points="{path}" fill="none" stroke="{colour}" stroke-width="1.5" stroke-dasharray="{dash}"/>'
        if path
        else ""
    )


def _x(cosine: float) -> float:
    return MARGIN + cosine * (WIDTH - 10 - MARGIN)


def _similarity_x(similarity: float) -> float:
    return _x((similarity - LEAST_SIMILAR) / (1 - LEAST_SIMILAR))


def _y(count: float) -> float:
    return _share_y(min(math.log10(count) / TOP_DECADE, 1.0))


def _share_y(share: float) -> float:
    bottom, top = HEIGHT - 24, 18
    return bottom - share * (bottom - top)
