"""A target's own request code run without sending: it writes down what it would ask, and reads what a batch brought.

So a batch asks exactly what direct requests ask, and its answers become exactly the observations that theirs become.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from harness.providers.http.ledger import Line
from harness.providers.http.provider import HttpProvider
from harness.providers.http.transport import ANYTHING, Answer, Expected, Failure, RequestFailedError, Transport
from harness.providers.wire.base import BadAnswerError
from harness.records import Observation, Prompt, Readout

NOT_SENT = "not sent"


class _Replay:
    """In place of a transport: takes every request down, and answers it with the line of its number."""

    def __init__(self, real: Transport, lines: Sequence[Line]) -> None:
        self.clean = real.clean
        self.pace = real.pace
        self.bodies: list[dict[str, Any]] = []
        self._lines = lines

    async def post(self, url: str, body: dict[str, Any], *, attempts: int | None = None, expect: Expected = ANYTHING) -> Answer:
        """The line's answer; RequestFailedError with its reason where it has none, or none that can be used."""
        del url, attempts
        number = len(self.bodies)
        self.bodies.append(body)
        line = self._lines[number] if number < len(self._lines) else None
        if line is None or line.answer is None:
            raise RequestFailedError(Failure.UNUSABLE, self.clean(line.reason or NOT_SENT) if line else NOT_SENT)
        try:
            expect.read(line.answer)
        except BadAnswerError as exc:
            raise RequestFailedError(Failure.UNUSABLE, self.clean(f"bad answer: {exc}")) from exc
        return Answer(value=line.answer, attempts=line.round)


async def requests_of(provider: HttpProvider, prompt: Prompt, readout: Readout) -> list[dict[str, Any]]:
    """The bodies of the requests that a prompt takes, in order; none depends on the answer to another."""
    _, bodies = await _run(provider, prompt, readout, ())
    return bodies


async def observe(provider: HttpProvider, prompt: Prompt, readout: Readout, lines: Sequence[Line]) -> Observation:
    """The observation that the answers in `lines`, one for each of the prompt's requests, come to."""
    observation, _ = await _run(provider, prompt, readout, lines)
    return observation


async def _run(
    provider: HttpProvider, prompt: Prompt, readout: Readout, lines: Sequence[Line]
) -> tuple[Observation, list[dict[str, Any]]]:
    replay = _Replay(provider.transport, lines)
    (observation,) = await provider.over(cast(Transport, replay)).observe([prompt], readout)
    return observation, replay.bodies
