"""Run by the interpreter that has vLLM: token ids of prompts on stdin, their observations on stdout, both as JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import numpy as np

from harness.providers.targets import OpenOptions, find_target
from harness.providers.vllm_offline import open_provider
from harness.records import Lexicon, Prompt, Readout


async def observe(asked: dict[str, Any]) -> dict[str, Any]:
    provider = await open_provider(find_target(asked["target"]), OpenOptions(dtype=asked["dtype"]))
    ids = np.asarray(asked["lexicon"], np.int32)
    lexicon = Lexicon(concept="c", words=frozenset(), token_ids=ids, resolved_share=None, digest="")
    prompts = [
        Prompt(
            prompt_id=str(place),
            concept="c",
            arm="clean",
            sentence_id=str(place),
            injection_id="",
            template="plain",
            group="",
            text="",
            token_ids=tuple(ids),
        )
        for place, ids in enumerate(asked["prompts"])
    ]
    seen = await provider.observe(prompts, Readout(lexicon=lexicon, n_logprobs=asked["n_logprobs"]))
    await provider.aclose()
    return {
        "settings": dict(provider.info.settings),
        "observations": [
            {
                "token_ids": None if one.token_ids is None else one.token_ids.tolist(),
                "logprobs": one.logprobs.tolist(),
                "covered_mass": one.covered_mass,
                "mass": one.mass_low,
                "error": one.error,
            }
            for one in seen
        ],
    }


if __name__ == "__main__":  # vLLM starts its workers by importing this file again
    print(json.dumps(asyncio.run(observe(json.load(sys.stdin)))))
