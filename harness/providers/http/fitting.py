"""The form of the requests, fitted to what an endpoint takes: the first list, or the first draw, that comes back.

A part that is refused in words we know is left out, or said otherwise, and the request is put again; everything that was
changed is a note. What else the endpoint can do, `probe` asks.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from harness.errors import CapabilityError
from harness.providers.http.line import OTHER_MODEL, Line
from harness.providers.http.transport import Answer, Failure, RequestFailedError
from harness.providers.targets import Chat, Claims, TargetSpec
from harness.providers.wire.base import Dialect, Question, TextOrIds
from harness.providers.wire.completions import stated_limit
from harness.providers.wire.refusals import Refusal, why_refused
from harness.records import Observation

PROBE_TEXT = "The capital of France is"

_RUNGS = (1000, 100, 50, 20, 5)
"""Numbers of log-probabilities to try, high to low: our vLLM's limit, round numbers, vLLM's default, OpenAI's."""

_TRIES = 3
"""An answer that cannot be used may be an accident of the line: it counts as the endpoint's way when it comes this often."""

_REFUSING_STATUSES = frozenset({400, 413, 422, 500, 501})
"""Refusals of what a request holds; 403 and 404 are among them where their words say so."""

_MORE_TOKENS = 2000
"""Tokens for an answer of a model that thinks before it says a word, or that will not take fewer."""

_TOO_SHORT = "output limit was reached"
"""OpenAI's words where thinking took every token."""

_Came = TypeVar("_Came")


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Why the endpoint will not do what it was asked."""

    reason: str
    status: int | None = None


@dataclass(slots=True, kw_only=True)
class Form:
    """What requests look like, and what of it had to change: `line` and `spec` are to be used as they stand in the end.

    `make` gives the dialect for a way to turn texts into conversations. `lists`: whether lists are worth asking for.
    """

    line: Line
    spec: TargetSpec
    make: Callable[[Chat], Dialect]
    lists: bool = True
    notes: list[str] = field(default_factory=list)

    def give_way(self, refused: Refused) -> bool:
        """Change what `refused` is about; False where that is not known, or was changed before."""
        chat, why = self.spec.chat, why_refused(refused.status, refused.reason)
        if why is Refusal.MAX_TOKENS_KEY and chat.max_tokens_key == "max_tokens":
            self.chat(chat.model_copy(update={"max_tokens_key": "max_completion_tokens"}))
            self._note("`max_tokens` is refused, `max_completion_tokens` takes its place", refused)
        elif (why is Refusal.MAX_TOKENS_LOW or _TOO_SHORT in refused.reason) and self.lengthen():
            self._note(f"the answer may be {_MORE_TOKENS} tokens long", refused)
        elif why is Refusal.PREFILL and chat.prefill != "none":
            self.chat(chat.model_copy(update={"prefill": "none"}))
            self._note("a last assistant message is refused: an instruction asks for the continuation", refused)
        elif why is Refusal.TEMPERATURE and self.spec.claims.temperature is not False:
            self.claim(temperature=False)
            self.line = replace(self.line, takes_temperature=False)
            self._note("a temperature is refused: the endpoint's own holds", refused)
        elif why is Refusal.LOGPROBS and self.lists:
            self.lists = False
        else:
            return False
        return True

    def chat(self, chat: Chat) -> None:
        """Turn texts into conversations in another way from now on."""
        self.spec = replace(self.spec, target=self.spec.target.model_copy(update={"chat": chat}))
        self.line = replace(self.line, dialect=self.make(chat))

    def claim(self, **known: Any) -> None:
        """What was found in place of what the file says, for those who act on it."""
        claims: Claims = self.spec.claims.model_copy(update=known)
        self.spec = replace(self.spec, target=self.spec.target.model_copy(update={"claims": claims}))

    def lengthen(self) -> bool:
        """Allow answers of many tokens; False where the file or an earlier refusal has settled their length."""
        key = "max_output_tokens" if self.line.dialect.path == "/responses" else self.spec.chat.max_tokens_key
        if key in self.line.body:
            return False
        self.line = replace(self.line, body={**self.line.body, key: _MORE_TOKENS})
        return True

    def _note(self, text: str, refused: Refused) -> None:
        self.notes.append(f"{text} ({refused.reason})")


@dataclass(frozen=True, slots=True, kw_only=True)
class First:
    """The first answer: `asked` log-probabilities came as `clear`, or none are given (`no_lists` says why) and `drawn` came."""

    answer: Answer
    asked: int = 0
    clear: Observation | None = None
    drawn: str = ""
    no_lists: str = ""


async def first_answer(form: Form) -> First:
    """Ask for the longest list there is, else for a draw.

    Raises CapabilityError where neither comes, RequestFailedError where the endpoint fails.
    """
    found = await _first_list(form)
    if isinstance(found, First):
        return found
    form.lists = False
    drawn = await _first_draw(form)
    if isinstance(drawn, First):
        return replace(drawn, no_lists=found)
    where = f"target {form.spec.name!r}: {form.line.url}"
    raise CapabilityError(f"{where} gives no log-probabilities: {found}; and no draws: {drawn}")


async def _first_list(form: Form) -> First | str:
    """The first list, or why there is none."""
    claimed = form.spec.claims.logprobs
    if not form.line.dialect.gives_lists or claimed == 0:
        return "the target's file says so" if claimed == 0 else "this api has none"
    wanted = form.spec.endpoint.limits.max_logprobs or claimed or _RUNGS[0]
    rungs = [wanted, *(rung for rung in _RUNGS if rung < wanted)]
    reason = ""
    while form.lists and rungs:
        rung = rungs.pop(0)
        seen = await ask(form.line, [PROBE_TEXT], Question(n_logprobs=rung))
        if not isinstance(seen, Refused):
            (clear,), answer = seen
            return First(answer=answer, asked=rung, clear=clear)
        reason = seen.reason
        stated = stated_limit(reason)
        if form.give_way(seen):
            rungs.insert(0, rung)
        elif seen.status is None:  # it answers, without a list: the shortest is the last thing to try
            rungs = rungs[-1:]
        elif stated is not None and 0 < stated < rung:
            rungs = [stated, *(lower for lower in rungs if lower < stated)]
    return reason


async def _first_draw(form: Form) -> First | str:
    """The first draw, or why there is none. Only draws that are empty again and again say that answers come out too short: the
    form of the requests must not hang on one draw."""
    empty = 0
    while True:
        seen = await draw(form.line, PROBE_TEXT, Question(n_draws=1, temperature=1.0))
        if not isinstance(seen, Refused):
            (text,), answer = seen
            empty += not text
            if not text and empty < _TRIES:
                continue
            if text or not form.lengthen():
                return First(answer=answer, drawn=text)
            form.notes.append(f"answers of one token are empty: they may be {_MORE_TOKENS} tokens long")
        elif not form.give_way(seen) and not (seen.status is None and form.lengthen()):
            return seen.reason


async def ask(
    line: Line, prompts: Sequence[TextOrIds], question: Question, *, surely: Callable[[Answer], bool] = lambda _answer: False
) -> tuple[list[Observation], Answer] | Refused:
    """The lists, or why the endpoint will not give them. `surely`: whether an answer without them is no accident."""

    def broken(seen: Sequence[Observation]) -> str | None:
        return next((one.error for one in seen if one.error is not None), None)

    return await _settled(lambda: line.ask(prompts, question), broken, surely, line.transport.clean)


async def draw(line: Line, prompt: TextOrIds, question: Question) -> tuple[list[str], Answer] | Refused:
    """The draws for one prompt, or why the endpoint will not give them."""

    async def put() -> tuple[list[str], Answer]:
        (texts,), answer = await line.draw([prompt], question)
        return texts, answer

    return await _settled(put, lambda _: None, lambda _: False, line.transport.clean)


async def _settled(
    put: Callable[[], Awaitable[tuple[list[_Came], Answer]]],
    broken: Callable[[Sequence[_Came]], str | None],
    surely: Callable[[Answer], bool],
    clean: Callable[[str], str],
) -> tuple[list[_Came], Answer] | Refused:
    """What came back, once it is no accident; raises RequestFailedError where the endpoint fails, not refuses, and where
    another model answers."""
    reason = ""
    for _ in range(_TRIES):
        try:
            came, answer = await put()
        except RequestFailedError as exc:
            if exc.status in _REFUSING_STATUSES or why_refused(exc.status, exc.reason) is not None:
                return Refused(reason=exc.reason, status=exc.status)
            if exc.failure is not Failure.UNUSABLE or OTHER_MODEL in exc.reason:
                raise
            return Refused(reason=exc.reason)  # the transport has asked for it again
        error = broken(came)
        if error is None:
            return came, answer
        reason = clean(error)
        if surely(answer):
            break
    return Refused(reason=reason)
