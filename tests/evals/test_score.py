"""Every column of a trial against a slow, plain computation on whole distributions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import expit, logit
from scipy.stats import binomtest

from harness.evals.score import Scorer
from harness.records import Lexicon, Mode, Observation, Prompt

N_VOCAB, K = 120, 10
MEMBERS = np.arange(0, N_VOCAB, 9, dtype=np.int32)
LEXICON = Lexicon(concept="c", words=frozenset({"a"}), token_ids=MEMBERS, resolved_share=1.0, digest="")


def prompts(n: int) -> list[Prompt]:
    return [
        Prompt(
            prompt_id=str(i), concept="c", arm="high", sentence_id=f"s{i}", injection_id="i", template="t", group="", text=""
        )
        for i in range(n)
    ]


def listed(p: np.ndarray, n: int, *, exact: bool = False) -> Observation:
    ids = np.argsort(-p, kind="stable")[:n]
    mass = float(p[MEMBERS].sum())
    return Observation(
        token_ids=ids.astype(np.int32),
        logprobs=np.log(p[ids]).astype(np.float32),
        covered_mass=1.0 if exact else float(p[ids].sum()),
        mode=Mode.EXACT if exact else Mode.TOPK,
        mass_low=mass if exact else None,
        mass_high=mass if exact else None,
    )


@pytest.fixture
def pairs() -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(1)
    found = []
    for _ in range(50):
        p = rng.dirichlet(np.full(N_VOCAB, 0.2)) + 1e-9
        q = p * np.exp(rng.normal(0, 1, N_VOCAB))
        found.append((p / p.sum(), q / q.sum()))
    return found


def test_exact_columns_equal_a_plain_computation(pairs: list[tuple[np.ndarray, np.ndarray]]) -> None:
    scorer = Scorer(LEXICON, k=K, n_vocab=N_VOCAB, similarity=None)
    clean = scorer.view([listed(p, 40, exact=True) for p, _ in pairs])
    injected = scorer.view([listed(q, 40, exact=True) for _, q in pairs])
    trials = scorer.trials(prompts(len(pairs)), clean, injected)
    members = set(MEMBERS.tolist())
    for i, (p, q) in enumerate(pairs):
        top_p, top_q = sorted(range(N_VOCAB), key=lambda t: -p[t])[:K], sorted(range(N_VOCAB), key=lambda t: -q[t])[:K]
        count_p, count_q = sum(t in members for t in top_p), sum(t in members for t in top_q)
        mass_p, mass_q = sum(p[t] for t in members), sum(q[t] for t in members)
        assert trials["count_clean"][i] == count_p
        assert trials["count_injected"][i] == count_q
        assert trials["count_success"][i] == (count_q > count_p)
        assert trials["mass_success"][i] == (mass_q > mass_p)
        assert trials["delta_mass"][i] == pytest.approx(mass_q - mass_p)
        odds = math.log(mass_q / (1 - mass_q)) - math.log(mass_p / (1 - mass_p))
        assert trials["delta_log_odds"][i] == pytest.approx(odds)
        assert trials["top1_changed"][i] == (top_p[0] != top_q[0])
        tv = 0.5 * sum(abs(p[t] - q[t]) for t in range(N_VOCAB))
        assert trials["tv_low"][i] - 1e-6 <= tv <= trials["tv_high"][i] + 1e-6


def test_topk_bounds_hold_the_truth_and_say_when_it_is_unknown(pairs: list[tuple[np.ndarray, np.ndarray]]) -> None:
    scorer = Scorer(LEXICON, k=K, n_vocab=N_VOCAB, similarity=None)
    clean = scorer.view([listed(p, 40) for p, _ in pairs])
    injected = scorer.view([listed(q, 40) for _, q in pairs])
    trials = scorer.trials(prompts(len(pairs)), clean, injected)
    undetermined = 0
    for i, (p, q) in enumerate(pairs):
        truth = q[MEMBERS].sum() - p[MEMBERS].sum()
        low, high = trials["delta_mass_low"][i], trials["delta_mass_high"][i]
        assert low - 1e-6 <= truth <= high + 1e-6
        if math.isnan(trials["mass_success"][i]):
            undetermined += 1
            assert low <= 0 < high
        else:
            assert trials["mass_success"][i] == (truth > 0)
        if trials["mass_clean_low"][i] == 0:
            assert math.isnan(trials["delta_log_odds"][i]), "a mass that may be zero has no midpoint of log-odds"
    assert 0 < undetermined < len(pairs)


def test_a_failed_prompt_is_missing_never_zero(pairs: list[tuple[np.ndarray, np.ndarray]]) -> None:
    scorer = Scorer(LEXICON, k=K, n_vocab=N_VOCAB, similarity=None)
    clean = scorer.view([listed(pairs[0][0], K, exact=True)] * 2)
    injected = scorer.view([listed(pairs[0][1], K, exact=True), Observation(error="HTTP 500")])
    trials = scorer.trials(prompts(2), clean, injected)
    numbers = ("count_injected", "count_success", "mass_success", "delta_mass", "delta_log_odds", "tv_low", "top1_changed")
    assert not any(math.isnan(trials[name][0]) for name in numbers)
    assert all(math.isnan(trials[name][1]) for name in numbers)


def test_tokens_that_come_as_text_are_matched_by_the_same_rule() -> None:
    lexicon = Lexicon(concept="c", words=frozenset({"paris"}), token_ids=None, resolved_share=None, digest="")
    scorer = Scorer(lexicon, k=3, n_vocab=None, similarity=None)

    def answer(*tokens: tuple[str, float]) -> Observation:
        return Observation(
            tokens=tuple(t for t, _ in tokens),
            logprobs=np.log([p for _, p in tokens]).astype(np.float32),
            covered_mass=sum(p for _, p in tokens),
            mode=Mode.TOPK,
        )

    clean = scorer.view([answer((" the", 0.6), (" Paris", 0.2))])
    injected = scorer.view([answer((" PARIS", 0.5), ("paris", 0.2), ("  paris", 0.1))])
    trials = scorer.trials(prompts(1), clean, injected)
    assert (trials["count_clean"][0], trials["count_injected"][0]) == (1, 2)
    assert trials["mass_injected_low"][0] == pytest.approx(0.7)
    assert trials["mass_injected_high"][0] == pytest.approx(0.9), "what is not listed may all be the word"
    assert trials["mass_success"][0] == 1.0


def drawn(hits: int, n: int, *, bias: float = 0.0) -> Observation:
    mode = Mode.AMPLIFIED if bias else Mode.SAMPLED
    return Observation(
        tokens=("a", "b"), logprobs=np.log(np.array([0.5, 0.5], np.float32)), mode=mode, hits=hits, n_draws=n, bias=bias
    )


def test_plain_draws_give_an_unbiased_mass_shift_and_exact_intervals_but_no_ranks() -> None:
    scorer = Scorer(LEXICON, k=K, n_vocab=N_VOCAB, similarity=None)
    clean, injected = scorer.view([drawn(2, 40), drawn(2, 40)]), scorer.view([drawn(5, 40), drawn(38, 40)])
    trials = scorer.trials(prompts(2), clean, injected)
    expected = binomtest(5, 40).proportion_ci(0.95, method="exact")
    assert trials["mass_injected_low"][0] == pytest.approx(expected.low)
    assert trials["mass_injected_high"][0] == pytest.approx(expected.high)
    assert trials["delta_mass"] == pytest.approx([3 / 40, 36 / 40])
    assert trials["delta_mass_low"] == pytest.approx(trials["delta_mass_high"])
    assert trials["identified"] == ["unidentified", "up"]
    assert trials["delta_log_odds_low"][1] > 0
    assert trials["delta_log_odds_low"][0] < 0 < trials["delta_log_odds_high"][0]
    for column in ("count_clean", "count_injected", "count_success", "tv_low", "tv_high", "top1_changed", "delta_cosine"):
        assert np.isnan(trials[column]).all(), column


def test_no_hits_on_either_side_decide_nothing() -> None:
    scorer = Scorer(LEXICON, k=K, n_vocab=N_VOCAB, similarity=None)
    trials = scorer.trials(prompts(1), scorer.view([drawn(0, 40)]), scorer.view([drawn(0, 40)]))
    assert trials["identified"] == ["unidentified"]
    assert np.isinf([trials["delta_log_odds_low"][0], trials["delta_log_odds_high"][0]]).all()
    assert np.isnan(trials["delta_log_odds"][0])


def test_amplified_draws_with_different_biases_give_the_log_odds_shift_of_the_masses_beneath() -> None:
    """Counts that are exactly the raised masses: logit P = logit P' - b gives back 0.01 and 0.04."""
    n = 10**9
    p, q = 0.01, 0.04
    raised = [expit(logit(p) + 4), expit(logit(q) + 3)]
    scorer = Scorer(LEXICON, k=K, n_vocab=N_VOCAB, similarity=None)
    clean, injected = (scorer.view([drawn(round(x * n), n, bias=b)]) for x, b in zip(raised, (4.0, 3.0), strict=True))
    trials = scorer.trials(prompts(1), clean, injected)
    assert trials["delta_log_odds"][0] == pytest.approx(logit(q) - logit(p), abs=1e-6)
    assert trials["delta_mass"][0] == pytest.approx(q - p, abs=1e-7)
    assert trials["mass_clean_low"][0] < p < trials["mass_clean_high"][0]
    assert trials["identified"] == ["up"]


def test_draws_and_failures_stand_side_by_side() -> None:
    scorer = Scorer(LEXICON, k=K, n_vocab=N_VOCAB, similarity=None)
    view = scorer.view([drawn(2, 40), Observation(error="gone")])
    trials = scorer.trials(prompts(2), view, view)
    assert trials["identified"] == ["unidentified", None]
    assert np.isnan(trials["delta_mass"][1])
