"""What a run took, as `summary.json` tells it."""

from __future__ import annotations

from typing import Any

from harness.evals.expense import Expense, found_manner
from harness.evals.runner import Job, Tally
from harness.providers.targets import TargetSpec
from harness.records import Usage


def cost(job: Job, tally: Tally, spec: TargetSpec) -> dict[str, Any]:
    """What was sent in this process, probes and retries too, and what batch jobs took for this run; other answers from the
    journal cost nothing.

    `counted_by`: tokens as the endpoint's answers count them, or as the harness does where they count none. `usd`: None where
    the target's file declares no prices.
    """
    usage = job.provider.usage or Usage()
    if usage.told:
        direct = Expense(input_tokens=usage.input_tokens, output_tokens=usage.output_tokens)
    else:
        direct = _counted(job, tally, spec)
    batched = Expense(input_tokens=usage.batch_input_tokens, output_tokens=usage.batch_output_tokens)
    prices = spec.prices
    usd = direct.usd(prices) + prices.batch_share * batched.usd(prices)
    return {
        "requests": usage.requests,
        "input_tokens": direct.input_tokens + batched.input_tokens,
        "output_tokens": direct.output_tokens + batched.output_tokens,
        "usd": round(usd, 6) if prices.declared else None,
        "counted_by": "endpoint" if usage.told or batched.input_tokens else "harness",
        "price": prices.model_dump() if prices.declared else None,
    }


def _counted(job: Job, tally: Tally, spec: TargetSpec) -> Expense:
    """By the run's mode and its mean lexicon."""
    plan, mode = job.plan, job.plan.mode
    sizes = [0 if lexicon.token_ids is None else len(lexicon.token_ids) for lexicon in job.lexicons.values()]
    manner = found_manner(spec, job.provider.info.capabilities).asked(mode, plan.draws if mode.drawn else 0)
    asked = tally.done + tally.failed - tally.from_cache - tally.not_asked
    return manner.expense(asked, tally.sent_tokens, round(sum(sizes) / max(len(sizes), 1)))
