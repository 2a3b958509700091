"""The prefix-sharing engine: next-token distributions of a causal language model, a group's common prefix computed once.

All tokens of many prompts lie end to end in one sequence without padding, each group's common prefix once, then what each
prompt adds to it. Everything in a decoder but attention works token by token, so it never notices. Attention is replaced:
every run of new tokens becomes one row of queries that meets the keys of its prefix and of itself, and only these rows
are padded. No key or value is kept between forward passes, so a model's own cache (and its sliding windows) plays no part.

Owns packing, attention and the read-out. Knows nothing of files, tokenizers or targets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from harness.errors import UsageError
from harness.records import Mode, Observation, Readout

Ids = tuple[int, ...]

ATTENTION = "harness_packed"

MAX_TOKENS = 1536
"""Tokens of one forward pass: on two cores matrix products gain nothing from more, and memory stays flat."""

MAX_KEYS = 65_536
"""Keys that one forward pass copies into rows, so that a long prefix under many prompts does not fill the memory."""

KEY_MULTIPLE = 16
"""Rows of keys are padded to a multiple of this: the CPU's bfloat16 attention is a fifth faster then."""

CHECK_LIMIT = 0.01
"""Largest relative difference between packed and plain logits in float32: a right model is at 1e-5, a wrong mask at 0.2."""


class Run(NamedTuple):
    """`length` new tokens from `start`, following the `prefix` tokens that lie from `prefix_start` of the sequence."""

    start: int
    length: int
    prefix_start: int
    prefix: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Prompts of one group (as numbers in the batch) and how many first tokens they share."""

    members: tuple[int, ...]
    shared: int


class Rows:
    """Runs of similar length as one padded attention call of n rows, S queries and K keys.

    Padding queries repeat a run's last token, so that no row is empty; padding keys lie in every query's future.
    """

    def __init__(self, runs: Sequence[Run], device: Any) -> None:
        start, length, prefix_start, prefix = torch.tensor(runs, device=device).T[..., None]  # (n, 1) each
        n_queries = int(length.max())
        n_keys = -(-int((prefix + length).max()) // KEY_MULTIPLE) * KEY_MULTIPLE
        slot = torch.arange(n_queries, device=device)
        query = slot.minimum(length - 1)  # (n, S)
        key = torch.arange(n_keys, device=device)
        own = (key - prefix).clamp(min=0).minimum(length - 1)  # (n, K)
        self.shape = (len(runs), n_queries, n_keys)
        self.queries = (start + query).flatten()
        self.keys = torch.where(key < prefix, prefix_start + key, start + own).flatten()
        self.filled = (slot < length).flatten()
        self._positions = (prefix + query)[..., None]  # (n, S, 1)
        self._masks: dict[tuple[int, int | None], Any] = {}

    def mask(self, repeats: int, window: int | None, dtype: Any) -> Any:
        """What is added to the scores, (n, 1, repeats * S, K); the same tensor for all layers of one kind."""
        if (repeats, window) not in self._masks:
            key = torch.arange(self.shape[2], device=self.queries.device)
            seen = key <= self._positions
            if window is not None:
                seen &= key > self._positions - window
            mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))
            self._masks[repeats, window] = mask.repeat(1, repeats, 1)[:, None]
        return self._masks[repeats, window]


class Layout:
    """How the prompts of some pieces lie in one sequence: ids and positions (1, T), the last token of each prompt."""

    def __init__(self, prompts: Sequence[Ids], pieces: Sequence[Piece], device: Any) -> None:
        ids: list[int] = []
        positions: list[int] = []
        last: list[int] = []
        runs: list[Run] = []

        def add(tokens: Ids, prefix_start: int, prefix: int) -> None:
            runs.append(Run(len(ids), len(tokens), prefix_start, prefix))
            positions.extend(range(prefix, prefix + len(tokens)))
            ids.extend(tokens)

        for piece in pieces:
            prefix_start = len(ids)
            if piece.shared:
                add(prompts[piece.members[0]][: piece.shared], 0, 0)
            for member in piece.members:
                add(prompts[member][piece.shared :], prefix_start, piece.shared)
                last.append(len(ids) - 1)
        self.ids = torch.tensor([ids], device=device)
        self.positions = torch.tensor([positions], device=device)
        self.last = torch.tensor(last, device=device)
        self.rows = [Rows(alike, device) for alike in _alike(runs)]
        self.order = self._order()

    def _order(self) -> Any:
        """For each token of the sequence, where the rows' answers laid end to end hold its own, (T,)."""
        queries = torch.cat([rows.queries for rows in self.rows])
        filled = torch.cat([rows.filled for rows in self.rows])
        order = torch.empty_like(self.ids[0])
        order[queries[filled]] = filled.nonzero().flatten()
        return order


def _alike(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs in classes of equal octave of queries and of keys, so that padding at most doubles a side."""
    classes: dict[tuple[int, int], list[Run]] = {}
    for run in runs:
        octaves = (run.length - 1).bit_length(), (run.prefix + run.length - 1).bit_length()
        classes.setdefault(octaves, []).append(run)
    return list(classes.values())


def packed_attention(  # noqa: PLR0913  transformers calls it so
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    *,
    layout: Layout,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Any, None]:
    """Attention over `layout`, in the form that transformers calls; query (1, H, T, D) to (1, T, H, D)."""
    del module, attention_mask
    if softcap is not None:
        raise NotImplementedError("its attention caps the scores")
    heads, kv_heads = query.shape[1], key.shape[1]
    repeats = heads // kv_heads
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))  # (T, heads, D) each
    answers = []
    for rows in layout.rows:
        n, n_queries, n_keys = rows.shape
        # The heads that share a key head are laid along the queries: no key is repeated.
        row_q = q.index_select(0, rows.queries).view(n, n_queries, kv_heads, repeats, -1)
        row_q = row_q.permute(0, 2, 3, 1, 4).reshape(n, kv_heads, repeats * n_queries, -1)
        row_k = k.index_select(0, rows.keys).view(n, n_keys, kv_heads, -1).transpose(1, 2)
        row_v = v.index_select(0, rows.keys).view(n, n_keys, kv_heads, -1).transpose(1, 2)
        mask = rows.mask(repeats, sliding_window, query.dtype)
        answer = scaled_dot_product_attention(row_q, row_k, row_v, attn_mask=mask, scale=scaling)
        answer = answer.reshape(n, kv_heads, repeats, n_queries, -1).permute(0, 3, 1, 2, 4)
        answers.append(answer.reshape(n * n_queries, heads, -1))
    return torch.cat(answers).index_select(0, layout.order)[None], None


def shared_prefix(prompts: Sequence[Ids]) -> int:
    """How many first tokens all `prompts` share, leaving each a token of its own; 0 for a single prompt."""
    if len(prompts) < 2:
        return 0
    low, high = min(prompts), max(prompts)  # in dictionary order: what the two share, all share
    limit = min(len(prompt) for prompt in prompts) - 1
    return next((i for i in range(limit) if low[i] != high[i]), limit)


def pieces_of(prompts: Sequence[Ids], members: Sequence[int], max_tokens: int) -> Iterator[Piece]:
    """A group cut where a forward pass would grow too large; every piece repeats the prefix."""
    shared = shared_prefix([prompts[member] for member in members])
    piece: list[int] = []
    tokens, keys = shared, 0
    for member in members:
        length = len(prompts[member])
        if piece and (tokens + length - shared > max_tokens or keys + length > MAX_KEYS):
            yield Piece(tuple(piece), shared)
            piece, tokens, keys = [], shared, 0
        piece.append(member)
        tokens += length - shared
        keys += length
    yield Piece(tuple(piece), shared)


def chunks_of(prompts: Sequence[Ids], pieces: Sequence[Piece], max_tokens: int) -> Iterator[list[Piece]]:
    """Pieces in order, as many to a forward pass as fit; one that fits nowhere stands alone."""
    chunk: list[Piece] = []
    tokens, keys = 0, 0
    for piece in pieces:
        piece_keys = sum(len(prompts[member]) for member in piece.members)
        piece_tokens = piece_keys - piece.shared * (len(piece.members) - 1)
        if chunk and (tokens + piece_tokens > max_tokens or keys + piece_keys > MAX_KEYS):
            yield chunk
            chunk, tokens, keys = [], 0, 0
        chunk.append(piece)
        tokens += piece_tokens
        keys += piece_keys
    if chunk:
        yield chunk


class PrefixEngine:
    """Answers batches of prompts with a causal model of transformers, which it takes over for itself.

    Equal batches give equal answers, bit for bit. Raises UsageError for an architecture that cannot be packed: each model
    is asked two prompts both ways before it is believed.
    """

    def __init__(self, model: Any, *, max_tokens: int = MAX_TOKENS) -> None:
        self._model = model.eval()
        self._max_tokens = max_tokens
        self._vocabulary_size = int(model.get_input_embeddings().num_embeddings)
        self._max_length: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        AttentionInterface.register(ATTENTION, packed_attention)
        self._take_over()

    def observe(self, prompts: Sequence[Ids], groups: Sequence[str], readout: Readout) -> list[Observation]:
        """One observation for each prompt, in order; prompts with one label in `groups` share their common prefix.

        A prompt that cannot be asked, or for which memory does not suffice, gets an observation with `error`.
        """
        found = [_failed(problem) if (problem := self._problem(prompt)) else None for prompt in prompts]
        for chunk in self._chunks(prompts, [None if found[n] else group for n, group in enumerate(groups)]):
            for number, observation in zip(_members(chunk), self._answer(prompts, chunk, readout), strict=True):
                found[number] = observation
        return [observation for observation in found if observation is not None]

    def logits(self, prompts: Sequence[Ids], groups: Sequence[str]) -> Iterator[tuple[list[int], Any]]:
        """The logits (n, V) float32 after some of the prompts and which prompts these are, a forward pass at a time.

        Raises UsageError for a prompt that cannot be asked.
        """
        for prompt in prompts:
            if problem := self._problem(prompt):
                raise UsageError(problem)
        for chunk in self._chunks(prompts, groups):
            with torch.inference_mode():
                logits = self._logits(prompts, chunk)
            yield _members(chunk), logits

    def _chunks(self, prompts: Sequence[Ids], groups: Sequence[str | None]) -> Iterator[list[Piece]]:
        """What goes through the model at once, of the prompts that have a group."""
        labelled: dict[str, list[int]] = {}
        for number, group in enumerate(groups):
            if group is not None:
                labelled.setdefault(group, []).append(number)
        pieces = [piece for members in labelled.values() for piece in pieces_of(prompts, members, self._max_tokens)]
        return chunks_of(prompts, pieces, self._max_tokens)

    def _problem(self, prompt: Ids) -> str | None:
        """Why `prompt` cannot be asked, or None."""
        if not prompt:
            return "the prompt has no token"
        if self._max_length is not None and len(prompt) > self._max_length:
            return f"the prompt has {len(prompt)} tokens; the model takes at most {self._max_length}"
        if min(prompt) < 0 or max(prompt) >= self._vocabulary_size:
            return f"the prompt has a token id outside 0..{self._vocabulary_size - 1}"
        return None

    def _answer(self, prompts: Sequence[Ids], chunk: Sequence[Piece], readout: Readout) -> list[Observation]:
        """The observations of one forward pass, in the order of its members."""
        try:
            with torch.inference_mode():
                observations = self._read(self._logits(prompts, chunk), readout)
        except (MemoryError, RuntimeError) as exc:
            if not _out_of_memory(exc):
                raise
            observations = [_failed("out of memory")] * len(_members(chunk))
        return observations

    def _logits(self, prompts: Sequence[Ids], chunk: Sequence[Piece]) -> Any:
        """The logits after each prompt's last token, (n, V) float32."""
        layout = Layout(prompts, chunk, self._model.device)
        output = self._model(
            input_ids=layout.ids,
            position_ids=layout.positions,
            use_cache=False,
            logits_to_keep=layout.last,
            layout=layout,
        )
        return output.logits[0].float()

    def _read(self, logits: Any, readout: Readout) -> list[Observation]:
        """What `readout` wants of `logits` (n, V)."""
        if readout.lexicon.token_ids is None:
            raise ValueError(f"the lexicon of {readout.lexicon.concept!r} has no token ids")
        size = logits.shape[-1]
        wanted = torch.from_numpy(readout.lexicon.token_ids.astype(np.int64))
        wanted = wanted[wanted < size].to(logits.device)  # a tokenizer may know more tokens than the head has rows
        total = logits.logsumexp(-1, keepdim=True)
        mass = (logits[:, wanted].double() - total.double()).logsumexp(-1).exp().clamp(max=1.0).tolist()
        top, ids = logits.topk(min(readout.n_logprobs, size))
        top, ids = (top - total).cpu().numpy(), ids.int().cpu().numpy()
        finite = total.isfinite().flatten().tolist()
        return [
            Observation(
                token_ids=ids[row],
                logprobs=top[row],
                covered_mass=1.0,
                mode=Mode.EXACT,
                mass_low=mass[row],
                mass_high=mass[row],
            )
            if finite[row]
            else _failed("the model gave no finite distribution")
            for row in range(len(mass))
        ]

    def _take_over(self) -> None:
        """Put packed attention into the model, after comparing it with the model's own on two prompts.

        Compared in float32: in bfloat16 some models' rounding moves logits by a fifth of their size (Gemma-3-270M does).
        """
        ids = tuple(np.random.default_rng(0).integers(0, self._vocabulary_size, 9).tolist())
        prompts = [ids[:6], ids[:4] + ids[6:]]
        name = type(self._model).__name__
        with torch.inference_mode(), _in_float32(self._model):
            plain = torch.cat([self._plain(prompt) for prompt in prompts])
            self._model.set_attn_implementation(ATTENTION)
            try:
                packed = self._logits(prompts, [Piece((0, 1), 4)])
            except (TypeError, NotImplementedError) as exc:
                raise UsageError(f"{name} cannot share prefixes: {exc}", hint="serve it with vLLM instead") from exc
        difference = float((packed - plain).norm() / (plain - plain.mean(-1, keepdim=True)).norm())
        if not difference < CHECK_LIMIT:
            raise UsageError(
                f"{name} cannot share prefixes: its logits change by {difference:.2g} of their size (limit {CHECK_LIMIT})",
                hint="serve it with vLLM instead",
            )

    def _plain(self, prompt: Ids) -> Any:
        """The logits after `prompt`, (1, V) float32, by the model's own way."""
        ids = torch.tensor([prompt], device=self._model.device)
        return self._model(input_ids=ids, use_cache=False).logits[:, -1].float()


@contextmanager
def _in_float32(model: Any) -> Iterator[None]:
    """Hold the model's numbers as float32 for a while; shorter types come back exactly as they were."""
    shorter = [t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point() and t.dtype != torch.float32]
    dtypes = [tensor.dtype for tensor in shorter]
    for tensor in shorter:
        tensor.data = tensor.data.float()
    try:
        yield
    finally:
        for tensor, dtype in zip(shorter, dtypes, strict=True):
            tensor.data = tensor.data.to(dtype)


def _members(chunk: Sequence[Piece]) -> list[int]:
    """The prompts of a chunk, in the order of its logits."""
    return [member for piece in chunk for member in piece.members]


def _failed(why: str) -> Observation:
    return Observation(error=why)


def _out_of_memory(exc: Exception) -> bool:
    """Whether `exc` says that memory ran out; torch has no class of its own for it on the CPU."""
    return isinstance(exc, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(exc)
