"""The ladder of `harness compare`: how far known variants lie from their reference, and how often what is decided.

    python reports/benchmarks/compare_ladder.py DIR

From the lists that `compare_ladder_lists.py` kept in DIR, writes the fixture `harness/compare/ladder.json` and the page
`compare_ladder.md` beside this file. Pairs that were not asked are named and left out.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from compare_ladder_lists import GEMMA, REPEATS, SEED, SMOLLM, Served

from harness.compare.ladder import FILE, VERSION, Ladder, Pair, reach
from harness.compare.margin import DRAWS, LISTS, ONE_SIDED, decide
from harness.compare.naming import Naming, Told
from harness.compare.result import Decision
from harness.compare.weighing import LISTED
from harness.packs.sampling import generator
from harness.paths import model_dir
from harness.providers.vocabulary import Vocabulary
from harness.records import Observation
from harness.stats.distances import Repeats, bootstrap_mean, distances
from harness.stats.shares import distance_between, distance_to

PAGE = Path(__file__).with_suffix(".md")

N_DRAWS = 64
"""Draws of a prompt on a side that shows no lists, as `harness compare` asks by default."""

DRAW_SETS = 8
"""Simulated sets of draws behind a margin: a single one would leave its own chance in it."""

MARGIN_PROMPTS = 64
"""Prompts of `harness compare` by default, near ties with them."""

SIZES = (8, 16, 32, 64)
TRIALS = 200
SURE = 0.95
RIGHT: dict[str, Decision] = {"benign": "equivalent", "material": "different"}


Kind = Literal["benign", "material"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A variant held against a reference, both by their file's stem, and how the two are called."""

    model: str
    reference: str
    variant: str
    kind: Kind
    of: str | None = None
    """The variant's model, where it is another."""


BENIGN = (
    ("float32", "float32 alone"),
    ("float32", "float32 many"),
    ("float32", "bfloat16"),
    ("bfloat16", "bfloat16 alone"),
    ("bfloat16", "bfloat16 many"),
    ("float32", "vllm float32"),
    ("float32", "vllm bfloat16"),
    ("bfloat16", "vllm bfloat16"),
    ("vllm bfloat16", "vllm bfloat16 alone"),
    ("chat", "chat bfloat16"),
)
MATERIAL = (
    ("float32", "int8"),
    ("float32", "int8 bfloat16"),
    ("bfloat16", "int8 bfloat16"),
    ("vllm bfloat16", "vllm int8 bfloat16"),
    ("float32", "int8 in groups"),
    ("bfloat16", "int8 in groups bfloat16"),
    ("float32", "int4"),
    ("bfloat16", "int4 bfloat16"),
    ("float32", "noise 1%"),
    ("float32", "noise 2%"),
    ("float32", "noise 10%"),
    ("float32", "temperature 0.9"),
    ("float32", "system text"),
    ("float32", "other template"),
    ("chat", "chat other system"),
    ("chat", "float32"),
    ("chat", "other template"),
)


PAIRS: dict[Kind, tuple[tuple[str, str], ...]] = {"benign": BENIGN, "material": MATERIAL}

DIRECTIONS = (
    "bfloat16",
    "vllm bfloat16",
    "int8",
    "int8 bfloat16",
    "vllm int8 bfloat16",
    "int8 in groups",
    "int8 in groups bfloat16",
    "int4",
    "noise 1%",
    "temperature 0.9",
)


def pairs() -> list[Held]:
    """All that is measured; only SmolLM2 has a chat template."""
    found = []
    for model in (SMOLLM, GEMMA):
        for kind, ends in PAIRS.items():
            found += [
                Held(model=model, reference=reference, variant=variant, kind=kind)
                for reference, variant in ends
                if model == SMOLLM or not reference.startswith("chat")
            ]
    return [*found, Held(model=SMOLLM, reference="float32", variant="float32", kind="material", of=GEMMA)]


HEAD = """# The ladder of `harness compare`: power and false alarms

Known variants of SmolLM2-135M-Instruct and Gemma-3-270M, asked {n_prompts} sentinel prompts ({n_near_ties} of them near ties of
either model) and held against a reference. Benign: the same weights, by other arithmetic. Material: other weights, another
prompt, another model, another temperature. The numbers are `harness/compare/ladder.json`; made on a CPU by `compare_ladder.py`
with {made}.

- float32, bfloat16: transformers with packed prompts, 16 at a time; alone: one at a time; many: 48. vllm: vLLM's CPU engine, 16
  at a time. int8: one scale for each output channel; in groups: one for 64 inputs; int4: one for 32. noise: standard deviation
  in parts of each matrix's own. Only the matrices of the blocks change, and the model's embeddings do not. Both models' weights
  come from files of four bits, so int4 rounds what was rounded before, to other levels.
- chat: SmolLM2's own template. Other template: `[INST] ... [/INST]`. System text: two sentences before the prompt, for a model
  that is asked without a template; other system: in place of the template's own. Temperature 0.9: the list of a server that
  shows what it draws from.
- Lists asked {repeats} times of what runs in bfloat16, once of float32, which gives the same to the fifth digit.

The margin is the reach of the benign pairs: the smallest one within which each of them is called equivalent 99 times in 100, at
{margin_prompts} prompts. That they are called so shows no more than that the margin fits them: other kernels, on
other devices, were not tried and may reach farther. From one model's benign pairs alone it would be {alone}.
A pair is equivalent where all of the 90% interval of its mean distance lies below the margin, different where all of it lies
above. Shares of decisions are over {trials} sets of n prompts drawn with replacement.

## Lists on both sides: mean distance of centred log-probabilities over the {n_listed} likeliest tokens, margin {margin} nat

equivalent / different / inconclusive in percent; requests: to both sides together, the fewest at which the right answer came 19
times in 20 (n of 8, 16, 32 or 64; each prompt once or all times).
"""
ONE_SIDED_HEAD = """## Draws on one side, lists on the other: squared difference of probabilities, margin {margin}

{n_draws} simulated draws a prompt from the variant against the {listed} likeliest tokens of the reference, all others as one.
The distance is the true one; equivalent / different / inconclusive in percent. Rounding to eight bits, noise of 1%
and sometimes another system prompt lie within the margin: `equivalent` by draws does not rule them out.
"""
DIRECTION_HEAD = """## Direction

Cosines between the variants' differences from float32 (SmolLM2), over all prompts and the tokens listed. Rounding weights moves
the distributions the same way whatever arithmetic follows; other causes go elsewhere. So whoever has the weights can tell by
direction what the distance alone cannot: round them, and see whether the endpoint lies that way.
"""
DRAWS_HEAD = """## Draws on both sides: squared difference of probabilities, margin {margin}

{n_draws} simulated draws a prompt on each side, told apart by their first token. What one side's draws do not rule out,
these do not either, nor a temperature of 0.9 or a short text before the prompt.
"""


class Lists:
    """The kept lists, read once. `temperature T` is the float32 list as a server shows it that lists what it draws from."""

    def __init__(self, raw: Path) -> None:
        self._raw = raw
        self._read: dict[tuple[str, str], Repeats] = {}
        self.versions: dict[str, str] = {}

    def has(self, held: Held) -> bool:
        """Whether both ends were asked."""
        ends = ((held.of or held.model, held.variant), (held.model, held.reference))
        return all(self._file(model, "float32" if _scaled(name) else name).is_file() for model, name in ends)

    def get(self, model: str, name: str) -> Repeats:
        """The lists of a variant."""
        key = (model, name)
        if key not in self._read:
            self._read[key] = self._load(model, name)
        return self._read[key]

    def _file(self, model: str, name: str) -> Path:
        return self._raw / Served(name=name, model=model).file

    def _load(self, model: str, name: str) -> Repeats:
        if _scaled(name):
            plain = self.get(model, "float32")
            scaled = plain.logprobs / float(name.split()[1])
            return Repeats(ids=plain.ids, logprobs=scaled - np.logaddexp.reduce(scaled, axis=2, keepdims=True))
        with np.load(self._file(model, name)) as kept:
            settings = json.loads(str(kept["settings"]))
            self.versions |= {key: str(settings[key]) for key in ("torch", "transformers", "vllm") if key in settings}
            return Repeats(ids=kept["ids"].astype(np.int64), logprobs=kept["logprobs"].astype(np.float64))


def _scaled(name: str) -> bool:
    return name.startswith("temperature")


def named_alike(a: Repeats, b: Repeats, models: tuple[str, str]) -> tuple[Repeats, Repeats]:
    """The lists of two models by the texts of their tokens."""
    naming = Naming()
    named = []
    for side, model in zip((a, b), models, strict=True):
        rounds = [
            [Observation(token_ids=ids, logprobs=logprobs) for ids, logprobs in zip(*one, strict=True)]
            for one in zip(side.ids, side.logprobs, strict=True)
        ]
        told = Told(rounds=rounds, shows_lists=True, spell=Vocabulary.load(model_dir(model)).text)
        named.append(naming.repeats(told, most=side.ids.shape[2]))
    return named[0], named[1]


# Draws, simulated from the lists


def on_cells(lists: Repeats, cells: np.ndarray) -> np.ndarray:
    """Probabilities (n, k + 1) of the tokens `cells` (n, k), mean over repeats; the last column is all other tokens."""
    n, k = cells.shape
    found = np.zeros((n, k + 1))
    for ids, logprobs in zip(lists.ids, lists.logprobs, strict=True):
        for i in range(n):
            listed = ids[i] >= 0
            order = np.argsort(cells[i])
            place = np.searchsorted(cells[i], ids[i, listed], sorter=order).clip(max=k - 1)
            same = cells[i, order[place]] == ids[i, listed]
            np.add.at(found[i], order[place][same], np.exp(logprobs[i, listed])[same])
    found /= len(lists.ids)
    found[:, k] = np.maximum(1 - found[:, :k].sum(axis=1), 0)
    return found / found.sum(axis=1, keepdims=True)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Drawn:
    """Probabilities of variant and reference on the cells of each draws' statistic."""

    one_sided: tuple[np.ndarray, np.ndarray]
    both: tuple[np.ndarray, np.ndarray]

    @classmethod
    def of(cls, variant: Repeats, reference: Repeats) -> Drawn:
        listed = reference.ids[0]
        few = reference.likeliest(LISTED).ids[0]
        return cls(
            one_sided=(on_cells(variant, few), on_cells(reference, few)),
            both=(on_cells(variant, listed), on_cells(reference, listed)),
        )

    def values(self, statistic: str, n_draws: int, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One simulated distance for each of `rows`."""
        p, q = (side[rows] for side in (self.one_sided if statistic == ONE_SIDED else self.both))
        x = rng.multinomial(n_draws, p)
        return distance_to(x, q) if statistic == ONE_SIDED else distance_between(x, rng.multinomial(n_draws, q))


# Measuring


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measured:
    """A pair's distances: of the lists with all repeats and with the first one alone, and what draws come from."""

    held: Held
    repeats: tuple[int, int]
    every: np.ndarray
    first: np.ndarray
    drawn: Drawn


def measure(held: Held, lists: Lists) -> Measured:
    """Distances of the variant from its reference."""
    variant, reference = lists.get(held.of or held.model, held.variant), lists.get(held.model, held.reference)
    if held.of:
        variant, reference = named_alike(variant, reference, (held.of, held.model))
    short = variant.likeliest(LISTED), reference.likeliest(LISTED)
    once = [Repeats(ids=side.ids[:1], logprobs=side.logprobs[:1]) for side in short]
    return Measured(
        held=held,
        repeats=(len(variant.ids), len(reference.ids)),
        every=distances(*short, seed=SEED).excess,
        first=distances(*once, seed=SEED).excess,
        drawn=Drawn.of(variant, reference),
    )


def margins(measured: Sequence[Measured]) -> dict[str, float]:
    """The reach of the benign pairs, by statistic; that of draws from many simulated sets."""
    benign = [one for one in measured if one.held.kind == "benign"]
    found = {LISTS: reach([one.every for one in benign], n_prompts=MARGIN_PROMPTS)}
    for statistic in (ONE_SIDED, DRAWS):
        rng = generator(SEED, "margin", statistic)
        rows = np.tile(np.arange(len(benign[0].every)), DRAW_SETS)
        sets = [one.drawn.values(statistic, N_DRAWS, rows, rng) for one in benign]
        found[statistic] = reach(sets, n_prompts=MARGIN_PROMPTS)
    return {statistic: round(value, 4) for statistic, value in found.items()}


def ladder(measured: Sequence[Measured], n_near_ties: int, made_with: dict[str, str]) -> Ladder:
    """The numbers as they are stored."""
    found = []
    for one in measured:
        rng = generator(SEED, "draws", one.held.model, one.held.reference, one.held.variant)
        rows = np.arange(len(one.every))
        values = {LISTS: one.every} | {s: one.drawn.values(s, N_DRAWS, rows, rng) for s in (ONE_SIDED, DRAWS)}
        found.append(
            Pair(
                model=one.held.model,
                reference=one.held.reference,
                variant=one.held.of or one.held.variant,
                kind=one.held.kind,
                repeats=one.repeats,
                values={statistic: tuple(float(f"{v:.3g}") for v in some) for statistic, some in values.items()},
            )
        )
    return Ladder(
        version=VERSION,
        made_with=made_with,
        n_prompts=len(measured[0].every),
        n_near_ties=n_near_ties,
        n_listed=LISTED,
        n_draws=N_DRAWS,
        margin_prompts=MARGIN_PROMPTS,
        margins=margins(measured),
        pairs=tuple(found),
    )


def direction(variant: Repeats, reference: Repeats) -> np.ndarray:
    """Differences of centred log-probabilities, prompt after prompt, over each prompt's likeliest tokens at the reference.

    Tokens that the variant does not list stand at its smallest; both sides by their first lists.
    """
    tokens, base = reference.likeliest(LISTED).ids[0], reference.likeliest(LISTED).logprobs[0]
    parts = []
    for i, (ids, logprobs) in enumerate(zip(variant.ids[0], variant.logprobs[0], strict=True)):
        shown_by = dict(zip(ids.tolist(), logprobs.tolist(), strict=True))
        moved = np.array([shown_by.get(token, logprobs.min()) for token in tokens[i].tolist()]) - base[i]
        parts.append(moved - moved.mean())
    return np.concatenate(parts)


# How often what is decided


def rates(values: Callable[[np.ndarray], np.ndarray], n_all: int, n: int, margin: float) -> Counter[Decision]:
    """Decisions over resampled sets of `n` prompts; `values` gives the distances of some prompts."""
    rng = generator(SEED, "rates", str(n))
    counted: Counter[Decision] = Counter()
    for trial in range(TRIALS):
        interval = bootstrap_mean(values(rng.integers(n_all, size=n)), confidence=0.9, n=499, seed=trial)
        counted[decide(*interval, margin) if interval else "inconclusive"] += 1
    return counted


def listed_rates(one: Measured, margin: float) -> dict[int, Counter[Decision]]:
    """By number of prompts, with all repeats."""
    return {n: rates(lambda rows: one.every[rows], len(one.every), n, margin) for n in SIZES}


def drawn_rates(one: Measured, statistic: str, margin: float) -> dict[int, Counter[Decision]]:
    """By number of prompts, new draws each time."""
    rng = generator(SEED, "draws of rates", statistic)
    draw = partial(one.drawn.values, statistic, N_DRAWS, rng=rng)
    return {n: rates(lambda rows: draw(rows), len(one.every), n, margin) for n in SIZES}


def fewest_requests(one: Measured, margin: float, all_repeats: dict[int, Counter[Decision]]) -> int | None:
    """Requests to both sides together at which the right decision comes 19 times in 20; None where 64 prompts do not do."""
    tried = [(sum(one.repeats) * n, counted) for n, counted in all_repeats.items()]
    if one.repeats != (1, 1):
        tried += [(2 * n, rates(lambda rows: one.first[rows], len(one.first), n, margin)) for n in SIZES]
    right = RIGHT[one.held.kind]
    return min((requests for requests, counted in tried if counted[right] >= SURE * TRIALS), default=None)


# The page


def page(measured: Sequence[Measured], made: Ladder, directions: dict[str, np.ndarray]) -> str:
    """The power and false-alarm tables, in Markdown."""
    with_what = ", ".join(f"{name} {version}" for name, version in made.made_with.items())
    told = made.model_dump(exclude={"margins", "pairs"})
    models = sorted({one.held.model for one in measured})
    alone = ", ".join(f"{margins([one for one in measured if one.held.model == m])[LISTS]} ({m})" for m in models)
    margin = made.margins
    parts = [
        HEAD.format(margin=margin[LISTS], alone=alone, made=with_what, repeats=REPEATS, trials=TRIALS, **told),
        *listed_table(measured, margin[LISTS]),
        ONE_SIDED_HEAD.format(margin=margin[ONE_SIDED], n_draws=N_DRAWS, listed=LISTED),
        *drawn_table(measured, ONE_SIDED, margin[ONE_SIDED]),
        DRAWS_HEAD.format(margin=margin[DRAWS], n_draws=N_DRAWS),
        *drawn_table(measured, DRAWS, margin[DRAWS]),
        DIRECTION_HEAD,
        *direction_table(directions),
    ]
    return "\n".join(parts) + "\n"


def listed_table(measured: Sequence[Measured], margin: float) -> Iterator[str]:
    """A row for each pair by its lists, after what they come to."""
    rows: list[str] = []
    wrong: list[str] = []
    right: Counter[str] = Counter()
    for one in measured:
        interval = bootstrap_mean(one.every, confidence=0.9)
        assert interval is not None
        decision = decide(*interval, margin)
        if decision == RIGHT[one.held.kind]:
            right[one.held.kind] += 1
        else:
            wrong.append(f"{one.held.variant} against {one.held.reference} ({one.held.model}): {decision}")
        by_size = listed_rates(one, margin)
        requests = fewest_requests(one, margin, by_size) or f"over {sum(one.repeats) * SIZES[-1]}"
        told = f"{one.every.mean():.4f} ({interval[0]:.4f} to {interval[1]:.4f}) | {decision}"
        rows.append(f"| {called(one)} | {told} | {' | '.join(map(shown, by_size.values()))} | {requests} |")
    of = Counter(one.held.kind for one in measured)
    yield f"At all prompts, {right['benign']} of {of['benign']} benign pairs are called equivalent, {right['material']} of"
    yield f"{of['material']} material ones different. Decided otherwise: {', '.join(wrong) or 'none'}.\n"
    yield f"| model | pair | kind | distance (nat) | decision | {' | '.join(f'n = {n}' for n in SIZES)} | requests |"
    yield "|---|---|---|---|---|" + "---|" * (len(SIZES) + 1)
    yield from rows
    yield ""


def drawn_table(measured: Sequence[Measured], statistic: str, margin: float) -> Iterator[str]:
    """A row for each pair by draws."""
    yield f"| model | pair | kind | distance | {' | '.join(f'n = {n}' for n in SIZES)} |"
    yield "|---|---|---|---|" + "---|" * len(SIZES)
    for one in measured:
        p, q = one.drawn.one_sided if statistic == ONE_SIDED else one.drawn.both
        shares = " | ".join(map(shown, drawn_rates(one, statistic, margin).values()))
        yield f"| {called(one)} | {((p - q) ** 2).sum(axis=1).mean():.4f} | {shares} |"
    yield ""


def direction_table(directions: dict[str, np.ndarray]) -> Iterator[str]:
    """Cosines of all pairs."""
    names = list(directions)
    yield f"| | {' | '.join(names)} |"
    yield "|---|" + "---|" * len(names)
    unit = {name: vector / np.linalg.norm(vector) for name, vector in directions.items()}
    for name in names:
        yield f"| {name} | {' | '.join(f'{unit[name] @ unit[other]:.2f}' for other in names)} |"


def called(one: Measured) -> str:
    """Model, pair and kind, as cells."""
    return f"{one.held.model} | {one.held.of or one.held.variant} against {one.held.reference} | {one.held.kind}"


def shown(counted: Counter[Decision]) -> str:
    """Shares of equivalent, different and inconclusive, in percent."""
    words: tuple[Decision, ...] = ("equivalent", "different", "inconclusive")
    return " / ".join(f"{100 * counted[word] / TRIALS:.0f}" for word in words)


def tell(raw: Path) -> None:
    """Write the fixture and the page from the kept lists."""
    lists = Lists(raw)
    missing = [held for held in pairs() if not lists.has(held)]
    for held in missing:
        print(f"left out, not asked: {held.model}: {held.variant} against {held.reference}")
    measured = [measure(held, lists) for held in pairs() if lists.has(held)]
    ties = sum(kind == "tie" for _, _, kind in json.loads((raw / "prompts.json").read_text()))
    made = ladder(measured, ties, lists.versions)
    FILE.write_text(stored(made), encoding="utf-8")
    reference = lists.get(SMOLLM, "float32")
    directions = {name: direction(lists.get(SMOLLM, name), reference) for name in DIRECTIONS}
    PAGE.write_text(page(measured, made, directions), encoding="utf-8")
    print(f"{FILE}: {FILE.stat().st_size / 1000:.0f} kB; margins {made.margins}")


def stored(made: Ladder) -> str:
    """JSON with a line for each list of numbers, so that a change of one shows as one."""
    text = json.dumps(made.model_dump(), indent=1)
    return re.sub(r"\[[-\d.,e\s]*\]", lambda numbers: "".join(numbers[0].split()), text) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", type=Path, help="where the lists lie")
    tell(parser.parse_args().raw)


if __name__ == "__main__":
    main()
