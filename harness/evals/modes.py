"""How much of the distribution a run asks for: the run's mode, and the concepts that are amplified because lists hide them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from harness.errors import CapabilityError
from harness.evals.plan import Plan
from harness.lexicon import matches
from harness.records import Lexicon, Mode, Observation, TargetInfo


def run_mode(plan: Plan, info: TargetInfo) -> Mode:
    """The run's mode: the user's, else the target's best; raises CapabilityError where target or eval does not have it."""
    able = info.capabilities.able()
    mode = plan.choice.mode or able[0]
    if mode not in able:
        raise CapabilityError(
            f"{info.target} cannot be asked in mode {mode}", hint=f"--mode {able[0]}; it can: {', '.join(able)}"
        )
    if mode not in plan.eval.spec.modes:
        raise CapabilityError(
            f"eval {plan.eval.name!r} needs mode {' or '.join(plan.eval.spec.modes)}; {info.target} is asked in mode {mode}",
            hint=f"harness targets check {info.target} says what it can do",
        )
    return mode


def can_amplify(plan: Plan, info: TargetInfo, lexicon: Lexicon) -> bool:
    """Whether one bias can be put on exactly the tokens that count as the concept's."""
    whole_words = not plan.eval.spec.scoring.first_token
    return whole_words and 0 < _n_ids(lexicon) <= info.capabilities.bias_ids


def require_amplifiable(plan: Plan, info: TargetInfo, lexicon: Lexicon) -> None:
    """Raises CapabilityError where the bias cannot be put on the concept's tokens."""
    if not can_amplify(plan, info, lexicon):
        raise CapabilityError(
            f"{lexicon.concept!r} cannot be amplified on {info.target}: it has {_n_ids(lexicon)} token ids, and logit_bias "
            f"takes {info.capabilities.bias_ids}; words that count by their first token cannot be either",
            hint="leave it out with --concept, or take another --mode",
        )


def may_be_amplified(plan: Plan, info: TargetInfo, lexicon: Lexicon) -> bool:
    """Whether the answers to a concept's clean sentences decide that it is amplified: the endpoint lists its likeliest tokens
    only, can amplify, and the user left the choice to the harness."""
    left_open = plan.choice.mode is None and plan.mode is Mode.TOPK and Mode.AMPLIFIED in plan.eval.spec.modes
    return left_open and Mode.AMPLIFIED in info.capabilities.able() and can_amplify(plan, info, lexicon)


def hidden(clean: Sequence[Observation], lexicon: Lexicon) -> bool:
    """Whether the lists of at most half of the clean sentences show a word of the concept."""
    answered = [one for one in clean if one.error is None]
    return bool(answered) and 2 * sum(_shows(one, lexicon) for one in answered) <= len(answered)


def _shows(observation: Observation, lexicon: Lexicon) -> bool:
    """Whether a list holds a token of the lexicon."""
    if observation.token_ids is not None and lexicon.token_ids is not None:
        return bool(np.isin(observation.token_ids, lexicon.token_ids).any())
    return any(matches(text, lexicon.words) for text in observation.tokens)


def _n_ids(lexicon: Lexicon) -> int:
    return 0 if lexicon.token_ids is None else len(lexicon.token_ids)
