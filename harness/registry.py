"""Names to implementations, by hand, imported only when used.

`APIS` maps an endpoint's `api` to the coroutine that opens its provider. Entries of the group `transfer_harness.apis`
(Python entry points of other distributions) are added to it.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from harness.errors import UnknownNameError

APIS: dict[str, str] = {
    "anthropic": "harness.providers.http.opening:open_anthropic",
    "chat": "harness.providers.http.opening:open_chat",
    "completions": "harness.providers.http.opening:open_completions",
    "embedded": "harness.providers.embedded:open_provider",
    "responses": "harness.providers.http.opening:open_responses",
    "scripted": "harness.providers.scripted:open_provider",
    "vllm": "harness.providers.vllm_offline:open_provider",
}


def known_apis() -> dict[str, str]:
    """Every api name and its `module:attribute`; ours cannot be replaced from outside."""
    added = {entry.name: entry.value for entry in entry_points(group="transfer_harness.apis")}
    return added | APIS


def load_api(name: str) -> Any:
    """The coroutine function that opens a provider of the api `name`; raises UnknownNameError."""
    apis = known_apis()
    if name not in apis:
        raise UnknownNameError("api", name, apis)
    module, _, attribute = apis[name].partition(":")
    return getattr(import_module(module), attribute)
