"""How much is asked for: the user's choice, the target's best, and concepts that lists hide."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from harness.errors import CapabilityError
from harness.evals.plan import Choice, count_prompts, make_plan
from harness.evals.runner import Job, Tally, ask_all, make_job
from harness.evals.spec import Eval, find_eval
from harness.packs.concepts import find_concept
from harness.packs.pack import find_pack
from harness.providers.vocabulary import Vocabulary
from harness.records import Capabilities, Mode, Observation, Prompt, Readout, TargetInfo, Usage
from harness.store import Journal

CONCEPTS = ("animal", "color")
SHOWN = "color"


def vocabulary() -> Vocabulary:
    """A token for each word of the two lexicons, and one that belongs to neither."""
    words = sorted({"zzz", *(word for name in CONCEPTS for word in find_concept(name).words if " " not in word)})
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="zzz"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Vocabulary(tokenizer)


class Listing:
    """Lists two tokens, one of them of the concept that is shown; draws where it is asked to. `asked`: prompts by mode."""

    batch_size = 4
    concurrency = 2
    usage: Usage | None = None

    def __init__(self, *, modes: tuple[Mode, ...], bias_ids: int = 1000) -> None:
        self.vocabulary: Vocabulary | None = vocabulary()
        self.asked: Counter[tuple[str, Mode]] = Counter()
        able = Capabilities(
            token_ids=True, max_logprobs=2, mode=modes[0], max_prompts_per_request=4, modes=modes, bias_ids=bias_ids
        )
        self.info = TargetInfo(
            target="t", endpoint="e", model="m", revision=None, tokenizer_digest=None, settings={}, capabilities=able
        )

    async def observe(self, prompts: Sequence[Prompt], readout: Readout) -> list[Observation]:
        assert readout.mode is not None
        self.asked.update((prompt.concept, readout.mode) for prompt in prompts)
        if readout.mode.drawn:
            return [Observation(mode=readout.mode, hits=5, n_draws=readout.n_draws, bias=4.0) for _ in prompts]
        lexicon = readout.lexicon.token_ids
        assert lexicon is not None
        other = next(i for i in range(500) if i not in lexicon)
        ids = np.array([other, lexicon[0] if readout.lexicon.concept == SHOWN else 10**4], np.int32)
        return [
            Observation(token_ids=ids, logprobs=np.log(np.array([0.6, 0.3], np.float32)), covered_mass=0.9, mode=readout.mode)
            for _ in prompts
        ]

    async def aclose(self) -> None: ...


def asked(tmp_path: Path, provider: Listing, *, mode: Mode | None = None, eval_: Eval | None = None) -> tuple[Job, Tally]:
    plan = make_plan(
        eval_ or find_eval("transfer"), find_pack("lexical"), Choice(concepts=CONCEPTS, limit=2, mode=mode, draws=20)
    )
    with Journal(tmp_path / "journal.sqlite") as journal:
        job = make_job(plan, provider, journal)
        tally = Tally(planned=count_prompts(plan))
        asyncio.run(ask_all(job, tally, lambda _: None))
    return job, tally


def test_a_concept_that_the_lists_hide_is_amplified_and_no_other(tmp_path: Path) -> None:
    provider = Listing(modes=(Mode.TOPK, Mode.AMPLIFIED, Mode.SAMPLED))
    job, tally = asked(tmp_path, provider)
    assert {name: job.mode(name) for name in CONCEPTS} == {"animal": Mode.AMPLIFIED, "color": Mode.TOPK}
    n_clean, n_all = 2, 2 + 4 * 2 * 2
    assert provider.asked == {
        ("animal", Mode.TOPK): n_clean,
        ("animal", Mode.AMPLIFIED): n_all,
        ("color", Mode.TOPK): n_all,
    }
    assert (tally.done, tally.failed) == (tally.planned, 0)
    assert job.readout("animal").n_draws == 20
    assert job.readout("color").n_draws == 0


def test_a_resumed_run_settles_on_the_same_and_asks_nothing(tmp_path: Path) -> None:
    asked(tmp_path, Listing(modes=(Mode.TOPK, Mode.AMPLIFIED)))
    again = Listing(modes=(Mode.TOPK, Mode.AMPLIFIED))
    job, tally = asked(tmp_path, again)
    assert not again.asked
    assert job.mode("animal") is Mode.AMPLIFIED
    assert tally.from_cache == tally.done == tally.planned


@pytest.mark.parametrize(
    ("modes", "bias_ids"), [((Mode.TOPK,), 1000), ((Mode.TOPK, Mode.AMPLIFIED), 3)], ids=["cannot", "too many ids"]
)
def test_without_the_means_the_lists_stand(tmp_path: Path, modes: tuple[Mode, ...], bias_ids: int) -> None:
    job, _ = asked(tmp_path, Listing(modes=modes, bias_ids=bias_ids))
    assert job.modes == {}


def test_a_chosen_mode_holds_for_every_concept(tmp_path: Path) -> None:
    for mode in (Mode.TOPK, Mode.AMPLIFIED, Mode.SAMPLED):
        provider = Listing(modes=(Mode.TOPK, Mode.AMPLIFIED, Mode.SAMPLED))
        job, _ = asked(tmp_path, provider, mode=mode)
        assert {seen for _, seen in provider.asked} == {mode}
        assert job.plan.mode is mode
        assert job.modes == {}


def test_answers_of_one_mode_are_never_taken_for_anothers(tmp_path: Path) -> None:
    asked(tmp_path, Listing(modes=(Mode.AMPLIFIED, Mode.SAMPLED)), mode=Mode.SAMPLED)
    provider = Listing(modes=(Mode.AMPLIFIED, Mode.SAMPLED))
    _, tally = asked(tmp_path, provider, mode=Mode.AMPLIFIED)
    assert tally.from_cache == 0


def test_a_mode_that_the_target_has_not_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    provider = Listing(modes=(Mode.SAMPLED,))
    with pytest.raises(CapabilityError, match="t cannot be asked in mode exact") as caught:
        asked(tmp_path, provider, mode=Mode.EXACT)
    assert caught.value.hint == "--mode sampled; it can: sampled"
    assert not provider.asked


def test_an_eval_that_needs_lists_refuses_a_target_that_only_draws(tmp_path: Path) -> None:
    transfer = find_eval("transfer")
    listed = replace(transfer, spec=transfer.spec.model_copy(update={"modes": (Mode.EXACT, Mode.TOPK)}))
    with pytest.raises(CapabilityError, match="needs mode exact or topk; t is asked in mode sampled"):
        asked(tmp_path, Listing(modes=(Mode.SAMPLED,)), eval_=listed)


def test_amplifying_more_ids_than_the_endpoint_takes_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CapabilityError, match="'animal' cannot be amplified on t"):
        asked(tmp_path, Listing(modes=(Mode.TOPK, Mode.AMPLIFIED), bias_ids=3), mode=Mode.AMPLIFIED)


def test_the_primary_contrast_goes_by_the_mode(tmp_path: Path) -> None:
    job, _ = asked(tmp_path, Listing(modes=(Mode.SAMPLED,)))
    assert job.plan.primary is not None
    assert job.plan.primary.metric == "delta_mass"
    job, _ = asked(tmp_path, Listing(modes=(Mode.TOPK,)))
    assert job.plan.primary is not None
    assert job.plan.primary.metric == "delta_log_odds"
