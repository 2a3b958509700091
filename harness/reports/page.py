"""What all report pages have in common: one HTML file that loads nothing, and in which every text is shown as what it is.

Text of models, packs and endpoints is hostile: whatever a template prints goes through `visible` and is escaped, and the
content security policy of `templates/base.html.jinja` forbids scripts and requests of any kind.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from harness.evals.measures import ALL, NOT_AVAILABLE, interval, number
from harness.reports import wording
from harness.reports.wording import visible


def render_page(template: str, **values: Any) -> str:
    """`templates/<template>` with `values`; a value that it needs and does not get is an UndefinedError, not a hole."""
    return _environment().get_template(template).render(values)


def minus(text: str) -> str:
    """Minus signs instead of hyphens, before numbers and between arms."""
    return re.sub(r"(?<![\w-])-(?=[\d.])", "−", text).replace(" - ", " − ")


@cache
def _environment() -> Environment:
    loader = PackageLoader("harness", "reports/templates")
    environment = Environment(
        loader=loader, autoescape=True, finalize=_seen, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals.update(ALL=ALL)
    environment.filters.update(
        beside=_beside,
        count=lambda value: number(value, 0),
        estimate=lambda row, measure, signed=True: minus(wording.estimate(row, measure, signed=signed)),
        flat=_flat,
        interval=lambda row, measure: minus(interval(row, measure)),
        minus=minus,
        number=lambda value, decimals=2, signed=False: minus(number(value, decimals, signed=signed)),
        p_value=wording.p_value,
        sentence=lambda text: text[:1].upper() + text[1:],
        share=wording.share,
        time=_time,
        token=_token,
    )
    return environment


def _seen(value: object) -> object:
    """What is printed of `value`: text with nothing unseen in it; markup of our own as it is."""
    if value is None:
        return NOT_AVAILABLE
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _token(text: str) -> Markup:
    """A token's text with its leading space as a faint sign, so that ` Paris` and `Paris` differ."""
    if not text:
        return Markup('<i class="sp">empty</i>')
    stripped = text.lstrip(" ")
    return Markup('<i class="sp">{}</i>').format("␣" * (len(text) - len(stripped))) + visible(stripped)


def _time(text: str) -> str:
    """An ISO time to the minute, as it stands where it is none."""
    try:
        return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M %Z}".strip()
    except ValueError:
        return text


def _flat(value: object, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, text) of every leaf of a nested mapping, for display."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, str):
        yield prefix, value
    else:
        yield prefix, NOT_AVAILABLE if value is None else json.dumps(value, ensure_ascii=False, default=str)


def _beside(left: object, right: object) -> list[tuple[str, str | None, str | None]]:
    """(dotted key, left text, right text) of every leaf of two nested mappings; None where one lacks it."""
    ours, theirs = dict(_flat(left)), dict(_flat(right))
    return [(key, ours.get(key), theirs.get(key)) for key in {**ours, **theirs}]
