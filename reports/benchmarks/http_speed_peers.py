"""One peer on the endpoint of `http_speed.py`, in the peer's own environment. Prints what that reads.

lm-eval scores one continuation token after each prompt, which is the smallest question that it puts to `local-completions`.
Inspect AI asks for one token with its log-probabilities, as a task whose samples are the prompts.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

CONNECTIONS = 64
MODEL = "stub-model"


def lm_eval(url: str, batch: int, prompts: list[list[int]]) -> float:
    """Seconds."""
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    model = LocalCompletionsAPI(
        base_url=f"{url}/completions",
        model=MODEL,
        tokenizer_backend=None,
        num_concurrent=CONNECTIONS,
        batch_size=batch,
        max_retries=1,
    )
    model.tokenizer, model.tokenized_requests = object(), True  # the prompts are ids already; without one it refuses them
    requests = [(("", ""), ids[:-1], ids[-1:]) for ids in prompts]
    start = time.perf_counter()
    answers = model._loglikelihood_tokens(requests)
    assert len(answers) == len(prompts)
    return time.perf_counter() - start


def inspect(url: str, batch: int, prompts: list[list[int]]) -> float:
    """Seconds."""
    from inspect_ai import Task, eval
    from inspect_ai.dataset import Sample
    from inspect_ai.model import GenerateConfig, get_model
    from inspect_ai.solver import generate

    assert batch == 1
    model = get_model(f"openai-api/stub/{MODEL}", base_url=url, api_key="none")
    config = GenerateConfig(logprobs=True, top_logprobs=20, max_tokens=1, max_connections=CONNECTIONS)
    task = Task(dataset=[Sample(input=" ".join(map(str, ids))) for ids in prompts], solver=generate(), config=config)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        (log,) = eval(task, model=model, log_dir=folder, display="none", max_samples=CONNECTIONS)
        seconds = time.perf_counter() - start
    assert log.status == "success", log.error
    return seconds


def main() -> None:
    name, url, batch, file = sys.argv[1:]
    logging.disable(logging.WARNING)
    prompts = json.loads(Path(file).read_text(encoding="utf-8"))
    prompts = prompts[:512] if name == "inspect" else prompts
    out = os.dup(1)
    os.dup2(2, 1)  # what the peer itself prints
    seconds = {"lm-eval": lm_eval, "inspect": inspect}[name](url, int(batch), prompts)
    os.dup2(out, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"prompts": len(prompts), "per_s": len(prompts) / seconds, "peak_mib": peak}))


if __name__ == "__main__":
    main()
