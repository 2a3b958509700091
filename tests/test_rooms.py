"""Every file that ships in a room is read with every check."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import paths
from harness.evals.spec import find_eval
from harness.packs.concepts import find_concept
from harness.packs.pack import load_pack
from harness.packs.templates import find_template
from harness.providers.targets import all_targets
from harness.registry import known_apis

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", sorted(p.name for p in (ROOT / "prompts/concepts").iterdir()))
def test_concept(name: str) -> None:
    concept = find_concept(name)
    assert len({s.sentence_id for s in (*concept.sentences, *concept.off_type)}) == len(concept.sentences) + len(
        concept.off_type
    )


@pytest.mark.parametrize("name", sorted(p.name for p in (ROOT / "prompts/packs").iterdir()))
def test_pack(name: str) -> None:
    assert load_pack(ROOT / "prompts/packs" / name).probes


@pytest.mark.parametrize("name", sorted(p.stem for p in (ROOT / "prompts/templates").iterdir()))
def test_template(name: str) -> None:
    template = find_template(name)
    assert template.render((" a", " b"), "The end") == f"{template.before} a b{template.after}The end"


@pytest.mark.parametrize("name", sorted(p.name for p in (ROOT / "evals").iterdir() if p.is_dir()))
def test_eval(name: str) -> None:
    assert find_eval(name).spec.primary
    assert (ROOT / "evals" / name / "README.md").is_file()


def test_targets_and_their_apis() -> None:
    targets = all_targets()
    assert {"smollm2-135m", "gemma3-270m", "llama-8b", "llama-70b", "gemma-9b"} <= set(targets)
    assert all(spec.api in known_apis() for spec in targets.values())
    assert all(spec.target.weights in (None, *targets) for spec in targets.values())


HOSTED = ("anthropic", "azure", "fireworks", "openai", "openrouter", "together")


@pytest.mark.parametrize("model", ["llama-8b", "llama-70b", "gemma-9b"])
def test_the_papers_targets_are_served_by_vllm_and_by_two_hosts_at_least(model: str) -> None:
    endpoints = {spec.endpoint_name: spec for name, spec in all_targets().items() if name.startswith(model)}
    for name in ("vllm", "vllm-chat"):
        serve = endpoints[name].target.serve
        assert serve is not None
        assert serve.memory_gb
        assert endpoints[name].target.tokenizer
    assert len(set(endpoints) & set(HOSTED)) >= 2
    assert all(spec.target.tokenizer for spec in endpoints.values() if spec.endpoint_name in HOSTED)


def test_hosted_endpoints_name_their_key_and_say_that_they_were_not_met() -> None:
    for name in HOSTED:
        specs = [spec for spec in all_targets().values() if spec.endpoint_name == name]
        assert all(spec.endpoint.key_env and spec.claims.logprobs is not None for spec in specs)
        assert "Not met" in specs[0].found.path.read_text()


def test_a_routed_target_is_pinned_to_one_provider_without_fallbacks() -> None:
    routed = [spec for spec in all_targets().values() if spec.endpoint_name == "openrouter"]
    assert routed
    for spec in routed:
        pinned = spec.target.body["provider"]
        assert (len(pinned["only"]), pinned["allow_fallbacks"]) == (1, False)


@pytest.mark.parametrize("room", ["prompts", "providers", "evals", "reports"])
def test_every_room_has_a_short_readme(room: str) -> None:
    assert len((ROOT / room / "README.md").read_text().splitlines()) <= 18


def test_rooms_are_found_from_a_folder_inside_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT / "tests")
    assert paths.project_root("evals") == ROOT


def test_a_projects_own_entry_stands_before_the_shipped_one(project: Path) -> None:
    (project / "prompts/templates").mkdir(parents=True)
    (project / "prompts/templates/paren.toml").write_text('description = "mine"\nbefore = "<"\nafter = ">"\n')
    found = paths.entries("prompts/templates")
    assert (found["paren"].origin, found["stars"].origin) == ("project", "shipped")
    assert find_template("paren").before == "<"
