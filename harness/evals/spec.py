"""The room `evals/`: what a run measures, declared before it runs. Owns the records of `eval.toml` and the look-up by name."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from harness import paths
from harness.config import Strict, read_toml
from harness.packs.pack import Arm
from harness.records import Mode

Metric = Literal["count_success", "mass_success", "delta_mass", "delta_log_odds"]
METRICS: tuple[Metric, ...] = ("count_success", "mass_success", "delta_mass", "delta_log_odds")
Check = Literal["detected", "silent"]
CHECKS: tuple[Check, ...] = ("detected", "silent")


class Sizes(Strict):
    """How much is asked for each concept and arm.

    Crossed: each of `injections` meets each of `sentences`. Paired: each sentence meets one of them, of each arm. Fresh: each
    sentence meets `injections` draws of its own.
    """

    injections: PositiveInt
    sentences: PositiveInt
    off_type: int = Field(default=0, ge=0)


class Fresh(Strict):
    """Drawing fresh injections from a pack's pools: `n_tokens` strings without replacement."""

    n_tokens: PositiveInt


class Scoring(Strict):
    """`k`: how many likeliest tokens are counted. `first_token`: whether a word of several tokens counts by its first one.
    `min_resolved`: the share of a lexicon that a target's vocabulary must resolve."""

    k: PositiveInt = 30
    first_token: bool = False
    min_resolved: float = Field(default=0.2, ge=0, le=1)


class Contrast(Strict):
    """An arm against its control."""

    arm: Arm
    control: Arm


class Primary(Contrast):
    """The contrast that the run is about, and its metric. `modes`: where it holds, by how much the target shows.

    `margin`: the smallest shift that would matter, in the metric's unit (nat, or a share of 1); a run that could not have seen
    one of that size is too small to say "no evidence".
    """

    metric: Metric
    margin: PositiveFloat
    modes: tuple[Mode, ...] = tuple(Mode)


class Calibration(Strict):
    """Contrasts that show, in every run, that the instrument works; of each list, the first whose arms the run has and whose
    arm is not the primary contrast's.

    `detected`: injections that do move the next word towards the concept; one that is not found means a run that sees nothing.
    `silent`: injections that should not; one that is found means that something else than interference is seen.
    """

    detected: tuple[Contrast, ...] = ()
    silent: tuple[Contrast, ...] = ()


class GateSpec(Strict):
    """How a regression gate judges: the mean difference of `metric`, run minus baseline, against `margin`.

    `metric`: a metric of trials, of `arm` less `control`; or `clean_log_odds`, of the concept's words after the unmodified
    sentence; or `agreement`, 1 less the total variation from the baseline's own distribution, so that any change is a loss; it
    is taken over `arm` and the unmodified sentences, or over all arms where none is named.
    `alpha`: how often an unchanged target may fail. `bound`: a prompt's difference is cut to [-bound, bound], by default to 4
    nat for log-odds and 1 for shares; the smaller it is, the fewer prompts decide, and the less a single one can tell.
    `inconclusive`: what the exit code says where the data do not decide.
    """

    metric: Metric | Literal["clean_log_odds", "agreement"]
    arm: Arm | None = None
    control: Arm | None = None
    margin: PositiveFloat
    alpha: float = Field(default=0.01, gt=0, lt=0.5)
    bound: PositiveFloat | None = None
    max_failed_share: float = Field(default=0.02, ge=0, le=1)
    inconclusive: Literal["fail", "pass"] = "fail"

    @model_validator(mode="after")
    def _named(self) -> Self:
        if self.metric in METRICS and self.arm is None:
            raise ValueError(f"metric {self.metric!r} is one of trials: name their arm")
        if self.control is not None and self.metric not in METRICS:
            raise ValueError(f"metric {self.metric!r} knows no control")
        return self


class EvalSpec(Strict):
    """`eval.toml`.

    `arms` empty: all arms of the pack. `primary`: in order of preference; the first whose arms the pack has and whose modes
    include the run's is the primary one. `logprobs`: how many tokens are asked for, or the endpoint's limit (the longer the
    list, the tighter the bounds). `draws`: how many continuations of each prompt are drawn where no list is shown. `modes`:
    those in which the eval says anything. `alpha`: the error rate that verdicts keep to. `power`: with which the smallest
    detectable effect would be found.
    """

    description: str
    pack: str
    design: Literal["crossed", "paired", "fresh"]
    template: str
    arms: tuple[Arm, ...] = ()
    sizes: Sizes
    full: Sizes
    fresh: Fresh | None = None
    logprobs: PositiveInt = 100
    draws: PositiveInt = 64
    modes: tuple[Mode, ...] = tuple(Mode)
    scoring: Scoring = Scoring()
    primary: tuple[Primary, ...] = Field(min_length=1)
    contrasts: tuple[Contrast, ...] = ()
    calibration: Calibration = Calibration()
    gate: GateSpec | None = None
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    power: float = Field(default=0.8, gt=0.5, lt=1)
    max_failed_share: float = Field(default=0.05, ge=0, le=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.design == "fresh") != (self.fresh is not None):
            raise ValueError("[fresh] belongs to design = 'fresh', and only there")
        if self.logprobs < self.scoring.k:
            raise ValueError(f"logprobs = {self.logprobs} is below scoring.k = {self.scoring.k}")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Eval:
    """A named eval. `digest` changes with anything it declares."""

    name: str
    spec: EvalSpec
    digest: str
    found: paths.Found


def find_eval(name: str) -> Eval:
    """The eval called `name`, or in the folder that `name` is a path to; raises UnknownNameError, FileFormatError."""
    found = paths.find("evals", "eval", name)
    file = found.path / "eval.toml" if found.path.is_dir() else found.path
    spec = read_toml(file, EvalSpec)
    digest = hashlib.sha256(spec.model_dump_json().encode()).hexdigest()
    return Eval(name=found.name, spec=spec, digest=digest, found=found)
