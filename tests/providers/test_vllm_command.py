"""The command that serves a target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness import paths
from harness.errors import UsageError
from harness.providers.targets import Endpoint, TargetSpec
from harness.providers.vllm_command import engine_flags, missing_weights, serve_command


def spec(target: dict[str, Any], **endpoint: Any) -> TargetSpec:
    declared = Endpoint.model_validate({"api": "completions", "targets": {"t": {"model": "org/model", **target}}} | endpoint)
    found = paths.Found(name="mine", path=Path("providers/mine.toml"), origin="project")
    return TargetSpec(name="t", target=declared.targets["t"], endpoint_name="mine", endpoint=declared, found=found)


def value(command: list[str], flag: str) -> str:
    """The flag's last value: what argparse takes."""
    places = [i for i, word in enumerate(command) if word == flag]
    assert places, f"{flag} is not in {command}"
    return command[places[-1] + 1]


def test_the_command_serves_the_target_where_its_endpoint_is_looked_for() -> None:
    served = {"serve": {"tensor_parallel": 4, "pipeline_parallel": 2, "max_model_len": 4096, "dtype": "float16"}}
    command = serve_command(spec({"revision": "abc", **served}, base_url="http://127.0.0.1:8123/v1/"), python="/venv/python")
    assert command[:3] == ["/venv/python", "-m", "vllm.entrypoints.openai.api_server"]
    assert value(command, "--model") == value(command, "--served-model-name") == "org/model"
    assert (value(command, "--host"), value(command, "--port")) == ("127.0.0.1", "8123")
    assert (value(command, "--tensor-parallel-size"), value(command, "--pipeline-parallel-size")) == ("4", "2")
    assert (value(command, "--max-model-len"), value(command, "--dtype")) == ("4096", "float16")
    assert value(command, "--revision") == value(command, "--tokenizer-revision") == "abc"
    assert value(command, "--max-logprobs") == "1000"


def test_the_address_in_the_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_URL", "http://127.0.0.1:9/v1")
    served = spec({"serve": {}}, base_url="http://127.0.0.1:8000/v1", base_url_env="MY_URL")
    assert value(serve_command(served), "--port") == "9"


def test_without_an_address_the_server_listens_on_the_loopback_only() -> None:
    command = serve_command(spec({"serve": {}}))
    assert (value(command, "--host"), value(command, "--port")) == ("127.0.0.1", "8000")
    assert "--revision" not in command


def test_the_targets_own_flags_come_last_and_win() -> None:
    command = serve_command(spec({"serve": {"flags": ["--enforce-eager", "--max-logprobs", "50"]}}))
    assert command[-3:] == ["--enforce-eager", "--max-logprobs", "50"]
    assert value(command, "--max-logprobs") == "50"


def test_the_endpoints_limit_of_log_probabilities_is_asked_for() -> None:
    assert value(serve_command(spec({"serve": {}}, limits={"max_logprobs": 5000})), "--max-logprobs") == "5000"


def test_an_embedded_targets_weights_are_served_from_their_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    served = spec({"weights": "small", "serve": {}})
    command = serve_command(served)
    assert value(command, "--model") == str(tmp_path / "models" / "small")
    assert value(command, "--served-model-name") == "org/model"
    missing = missing_weights(served)
    assert missing is not None
    assert missing.hint == "harness targets get small"
    (tmp_path / "models" / "small").mkdir(parents=True)
    assert missing_weights(served) is None
    assert missing_weights(spec({})) is None


def test_the_asked_dtype_stands_before_the_declared_one() -> None:
    assert value(engine_flags(spec({"serve": {"dtype": "float16"}})), "--dtype") == "float16"
    assert value(engine_flags(spec({"serve": {"dtype": "float16"}}), "float32"), "--dtype") == "float32"
    assert value(engine_flags(spec({"dtype": "float32"})), "--dtype") == "float32"


def test_a_target_that_is_not_to_be_served_says_which_table_is_missing() -> None:
    with pytest.raises(UsageError) as caught:
        serve_command(spec({}))
    assert caught.value.message == "target 't' is not one to serve: providers/mine.toml has no table [targets.t.serve]"


@pytest.mark.parametrize("url", ["http://127.0.0.1:port/v1", "127.0.0.1"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="is no address"):
        serve_command(spec({"serve": {}}, base_url=url))
