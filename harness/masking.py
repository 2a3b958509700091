"""Hides the keys that were read from the environment, wherever a foreign text might say them: as they are, or encoded.

Every key that is used is known here, so that a traceback can be printed without them.
"""

from __future__ import annotations

import base64
import html
import json
import logging
import re
import sys
import traceback
from functools import cache
from types import TracebackType
from urllib.parse import quote, quote_plus

MASK = "***"

SHORTEST = 12
"""Keys shorter than this (`EMPTY`, `none`) are words that stand in any answer and open nothing: in answers they stay."""

_SHORTEST_ENCODED = 10
_ESCAPED_ASCII = re.compile(rb"\\u00[2-7]")
"""A character that JSON need not escape, escaped. A search for what it begins with is faster, and mostly enough."""

_keys: set[str] = set()


class Mask:
    """Hides one key; None hides nothing."""

    def __init__(self, key: str | None) -> None:
        self._key = key
        self._forms = _forms(key) if key and len(key) >= SHORTEST else ()
        self._bytes = tuple(form.encode() for form in self._forms)
        if key and len(key) >= SHORTEST:
            _keys.add(key)

    def text(self, text: str) -> str:
        """`text` without the key in any of its forms; one that is short goes too."""
        for form in self._forms or ((self._key,) if self._key else ()):
            text = text.replace(form, MASK)
        return text

    def body(self, body: bytes) -> bytes:
        """A JSON answer without the key in any of its forms: what is parsed from it then holds none."""
        if not self._bytes:
            return body
        if b"\\/" in body or (b"\\u00" in body and _ESCAPED_ASCII.search(body)):
            body = _unescaped(body)
        for form in self._bytes:
            if form in body:
                body = body.replace(form, MASK.encode())
        return body


def hide_keys(text: str) -> str:
    """`text` without any key that was used in this process."""
    for key in _keys:
        text = Mask(key).text(text)
    return text


@cache
def _forms(key: str) -> tuple[str, ...]:
    """The spellings of a key that give it away, longest first: it may be part of another."""
    escaped = _escaped(key)
    percent = (quote(key, safe=""), quote(key), quote_plus(key))
    spelt = {
        key,
        escaped,
        escaped.replace("/", "\\/"),
        json.dumps(key, ensure_ascii=False)[1:-1],
        html.escape(key),
        repr(key)[1:-1],
    }
    spelt |= {*percent, *(re.sub("%..", lambda found: found[0].lower(), one) for one in percent)}
    spelt |= {one for one in _base64_cores(key.encode()) if len(one) >= _SHORTEST_ENCODED}
    spelt |= {_escaped(one) for one in spelt}  # a text that quotes the key, inside another
    return tuple(sorted(spelt, key=len, reverse=True))


def _escaped(text: str) -> str:
    """As it stands inside a JSON string."""
    return json.dumps(text)[1:-1]


def _base64_cores(key: bytes) -> set[str]:
    """What base64 makes of the key wherever it begins in a longer text: the digits that depend on the key alone."""
    cores = set()
    for before in range(3):
        first = -(-8 * before // 6)
        last = 8 * (before + len(key)) // 6
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            cores.add(encode(b"\0" * before + key).decode()[first:last])
    return cores


def _unescaped(body: bytes) -> bytes:
    """The same JSON with plain characters written plainly; what is no JSON stays as it is."""
    try:
        return json.dumps(json.loads(body), ensure_ascii=False).encode(errors="surrogatepass")
    except (ValueError, RecursionError):
        return body


def guard() -> None:
    """From here on what this process prints when it crashes, and what its libraries log, holds no key."""
    sys.excepthook = _print_masked
    sys.unraisablehook = lambda told: _print_masked(told.exc_type, told.exc_value, told.exc_traceback)
    handler = logging.StreamHandler()
    handler.setFormatter(_Masked("%(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.captureWarnings(True)


class _Masked(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return hide_keys(super().format(record))


def _print_masked(kind: type[BaseException], value: BaseException | None, trace: TracebackType | None) -> None:
    sys.stderr.write(hide_keys("".join(traceback.format_exception(kind, value, trace))))
