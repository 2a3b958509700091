"""A target run by vLLM in this process: batches of token ids in, the likeliest next tokens and the lexicon's mass out."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from harness.errors import EndpointError, MissingExtraError, UnreachableError, UsageError
from harness.providers.chosen import CHOSEN_IDS, passes, with_mass
from harness.providers.targets import Dtype, OpenOptions, TargetSpec
from harness.providers.vllm_command import engine_flags, missing_weights, model_source
from harness.providers.vocabulary import Vocabulary
from harness.providers.wire.base import BadAnswerError
from harness.providers.wire.lists import ranked_ids
from harness.records import Capabilities, Mode, Observation, Prompt, Readout, TargetInfo, Usage


class OfflineProvider:
    """Next-token distributions from an engine of our own; `engine` is a `vllm.LLM`, which serves one caller at a time."""

    concurrency = 1
    usage: Usage | None = None

    def __init__(self, engine: Any, info: TargetInfo, vocabulary: Vocabulary) -> None:
        self.info = info
        self.vocabulary: Vocabulary | None = vocabulary
        self.batch_size = info.capabilities.max_prompts_per_request
        self._engine = engine
        self._names = vocabulary

    async def observe(self, prompts: Sequence[Prompt], readout: Readout) -> list[Observation]:
        """One observation for each prompt, in order; raises UnreachableError when the engine has died."""
        ids = [self._names.encode([prompt.text])[0] if prompt.token_ids is None else prompt.token_ids for prompt in prompts]
        limit = self.info.capabilities.max_logprobs
        n_logprobs = readout.n_logprobs if limit is None else min(readout.n_logprobs, limit)
        seen = await asyncio.to_thread(self._observe, ids, n_logprobs, ())
        if (readout.mode or self.info.capabilities.mode) is not Mode.EXACT:
            return seen
        wanted = () if readout.lexicon.token_ids is None else tuple(readout.lexicon.token_ids.tolist())
        parts = [await asyncio.to_thread(self._observe, ids, 0, part) for part in passes(wanted, CHOSEN_IDS)]
        return with_mass(seen, parts)

    async def aclose(self) -> None:
        """Stop the engine."""
        await asyncio.to_thread(self._engine.llm_engine.engine_core.shutdown)

    def _observe(self, prompts: Sequence[Sequence[int]], n_logprobs: int, wanted: tuple[int, ...]) -> list[Observation]:
        """The `n_logprobs` likeliest tokens of each prompt, or the `wanted` ones."""
        from vllm.v1.engine.exceptions import EngineDeadError

        start = time.perf_counter()
        try:
            outputs = self._generate(prompts, n_logprobs, wanted)
        except EngineDeadError as exc:
            raise UnreachableError(f"vLLM's engine died: {exc}") from exc
        except Exception as exc:  # noqa: BLE001  vLLM refuses a whole batch for one prompt, with errors of many classes
            if len(prompts) > 1:
                middle = len(prompts) // 2
                halves = (prompts[:middle], prompts[middle:])
                return [one for half in halves for one in self._observe(half, n_logprobs, wanted)]
            return [Observation(error=f"vLLM refused: {exc}", latency_s=time.perf_counter() - start)]
        latency_s = time.perf_counter() - start
        return [replace(self._read(output, n_logprobs, wanted), latency_s=latency_s) for output in outputs]

    def _generate(self, prompts: Sequence[Sequence[int]], n_logprobs: int, wanted: tuple[int, ...]) -> list[Any]:
        from vllm import SamplingParams, TokensPrompt

        # Flat lists: with a dict of objects for each prompt, Python's garbage collector is a good part of the run.
        listed = {"logprobs": len(wanted), "logprob_token_ids": list(wanted)} if wanted else {"logprobs": n_logprobs}
        parameters = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False, flat_logprobs=True, **listed)
        asked = [TokensPrompt(prompt_token_ids=list(ids)) for ids in prompts]
        outputs: list[Any] = self._engine.generate(asked, parameters, use_tqdm=False)
        return outputs

    def _read(self, output: Any, n_logprobs: int, wanted: tuple[int, ...]) -> Observation:
        flat = output.outputs[0].logprobs
        try:
            if wanted:
                chosen = dict(zip(flat.token_ids, flat.logprobs, strict=True))
                return ranked_ids(wanted, [chosen.get(i) for i in wanted], None, len(wanted), len(self._names) + 1)
            # The first entry is the sampled token, which stands in the list once more if it is among the top k.
            return ranked_ids(flat.token_ids[1:], flat.logprobs[1:], None, n_logprobs, len(self._names))
        except BadAnswerError as exc:
            return Observation(error=f"bad answer: {exc}")


async def open_provider(spec: TargetSpec, options: OpenOptions) -> OfflineProvider:
    """Load the target into an engine; raises MissingExtraError, UsageError (weights, tokenizer, flags), EndpointError."""
    if find_spec("vllm") is None:
        raise MissingExtraError("vllm", "vllm")
    if missing := missing_weights(spec):
        raise missing
    vocabulary = Vocabulary.load(model_source(spec) if spec.target.weights else spec.target.tokenizer or spec.target.model)
    # Not in a thread: vLLM sets signal handlers, which Python allows in the main thread only.
    engine, settings = _load(spec, options.dtype)
    limits = spec.endpoint.limits
    info = TargetInfo(
        target=spec.name,
        endpoint=spec.endpoint_name,
        model=spec.target.model,
        revision=spec.target.revision,
        tokenizer_digest=vocabulary.digest,
        settings=settings,
        capabilities=Capabilities(
            token_ids=True,
            max_logprobs=settings["max_logprobs"] if settings["max_logprobs"] >= 0 else None,
            mode=Mode.EXACT,
            modes=(Mode.EXACT, Mode.TOPK),
            chosen_ids=CHOSEN_IDS,
            max_prompts_per_request=limits.prompts_per_request,
        ),
    )
    return OfflineProvider(engine, info, vocabulary)


def _load(spec: TargetSpec, dtype: Dtype | None) -> tuple[Any, dict[str, Any]]:
    """(the engine, what about it changes an answer)."""
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # our stdout is for data
    import vllm
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    flags = ["--disable-log-stats", "--enable-prefix-caching", *engine_flags(spec, dtype)]
    parser = EngineArgs.add_cli_args(FlexibleArgumentParser(prog=f"flags of target {spec.name}"))
    try:
        arguments = EngineArgs.from_cli_args(parser.parse_args(flags))
    except SystemExit as exc:  # argparse has said on stderr which flag it is
        raise UsageError(f"{spec.found.path}: vLLM's engine does not take the flags of target {spec.name!r}") from exc
    try:
        engine = vllm.LLM(**vars(arguments))
    except Exception as exc:  # loading fails with whatever vLLM, torch or the hub raises
        raise EndpointError(f"vLLM cannot load {arguments.model}: {exc}") from exc
    settings = {
        "vllm": vllm.__version__,
        "dtype": str(arguments.dtype),
        "max_logprobs": arguments.max_logprobs,
        "max_model_len": arguments.max_model_len,
        "tensor_parallel": arguments.tensor_parallel_size,
        "pipeline_parallel": arguments.pipeline_parallel_size,
        "quantization": arguments.quantization,
    }
    return engine, settings
