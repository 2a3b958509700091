"""Where requests go and with which key, checked before anything is sent. Repeats nothing that may hold a secret."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from harness.errors import UsageError
from harness.providers.targets import TargetSpec


def address(spec: TargetSpec) -> str:
    """The endpoint's address; raises UsageError where it is missing or no plain http(s) address."""
    endpoint = spec.endpoint
    named = f"set {endpoint.base_url_env}, or" if endpoint.base_url_env else "set"
    hint = f"{named} `base_url` in {spec.found.path}"
    url = spec.base_url()
    if url is None:
        raise UsageError(f"endpoint {spec.endpoint_name!r} has no address", hint=hint)
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment or "@" in parts.netloc:
        raise UsageError(
            f"the address of endpoint {spec.endpoint_name!r} is not of the form http(s)://host[:port]/path", hint=hint
        )
    return url


def key(spec: TargetSpec) -> str | None:
    """The key in the variable that the endpoint names; None where it names none or it is empty."""
    name = spec.endpoint.key_env
    value = os.environ.get(name, "").strip() if name else ""
    if not value.isprintable():
        raise UsageError(f"the key in the variable {name} holds control characters")
    return value or None
