"""The whole way from two models to a verdict, where the truth is known: what was planted is found, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
if find_spec("sae_lens") is None:
    pytest.skip("needs sae_lens (the extra `whitebox`)", allow_module_level=True)

from harness.cli.main import execute  # noqa: E402
from harness.packs.pack import Draft, Pack, load_pack, write_pack  # noqa: E402
from harness.packs.sampling import draw, generator  # noqa: E402
from harness.records import Probe  # noqa: E402
from harness.whitebox.sharing.shared import read_shared  # noqa: E402

from . import planted as made  # noqa: E402
from .planted import CONCEPTS, DECOYS, PAIRS, PLANTED, SITES, UNPLANTED, Planted, Source  # noqa: E402

pytestmark = [
    pytest.mark.embedded,  # glosses are embedded by the packaged sentence embedder
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Found:
    """What the pipeline left: the planted project, its maps and the pack."""

    planted: Planted
    maps: Path
    pack: Pack


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Found]:
    """Every verb in turn, in the project's folder."""
    planted = made.build(tmp_path_factory.mktemp("planted"))
    maps, pack = planted.root / "maps", planted.root / "prompts" / "packs" / "planted"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(planted.root)
        for source in (planted.a, planted.b):
            assert execute(catalogue(planted, source, maps)) == 0
            assert execute(topology(source, maps)) == 0
        assert execute(shared(planted, maps)) == 0
        assert execute(distill(planted, maps, pack)) == 0
        yield Found(planted=planted, maps=maps, pack=load_pack(pack))


def catalogue(planted: Planted, source: Source, maps: Path) -> list[str]:
    places = ["--model", str(source.model), "--dictionary", str(source.dictionaries), "--text", str(planted.text)]
    sizes = ["--tokens", "16000", "--keep-tokens", "16000", "--gloss", "contexts", "--dtype", "float32"]
    return ["map", "catalogue", "--source", source.name, *places, *sizes, "--out", str(maps / f"catalogue-{source.name}")]


def topology(source: Source, maps: Path) -> list[str]:
    own = maps / f"catalogue-{source.name}"
    inputs = ["--glosses", str(own / "glosses.safetensors"), "--covariance", str(own / "covariances.safetensors")]
    out = str(maps / f"topology-{source.name}")
    return ["map", "topology", "--source", source.name, "--dictionary", str(source.dictionaries), *inputs, "--out", out]


def shared(planted: Planted, maps: Path) -> list[str]:
    places = []
    for end, source in (("a", planted.a), ("b", planted.b)):
        for stage in ("catalogue", "topology"):
            places += [f"--{stage}-{end}", str(maps / f"{stage}-{source.name}")]
    out = str(maps / f"shared-{planted.a.name}-{planted.b.name}")
    return ["map", "shared", "--sources", f"{planted.a.name},{planted.b.name}", *places, "--out", out]


def distill(planted: Planted, maps: Path, pack: Path) -> list[str]:
    concepts = [word for name in CONCEPTS for word in ("--concept", name)]
    sizes = ["--injections", "10", "--dtype", "float32"]
    sources = f"{planted.a.name},{planted.b.name}"
    return ["distill", "--sources", sources, "--maps", str(maps), *concepts, *sizes, "--out", str(pack)]


def run(pack: str, target: str, out: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The summary of `harness run`."""
    capsys.readouterr()
    assert execute(["run", "--pack", pack, "--target", target, "--out", str(out), "--json"]) == 0
    summary: dict[str, Any] = json.loads(capsys.readouterr().out)
    return summary


def contrasts(summary: dict[str, Any], control: str) -> dict[str, dict[str, Any]]:
    """The arm `high` against `control` in log-odds, by concept."""
    wanted = ("high", control, "delta_log_odds")
    return {row["concept"]: row for row in summary["contrasts"] if (row["arm"], row["control"], row["metric"]) == wanted}


def test_the_shared_pairs_are_those_that_were_planted_at_every_two_sites(found: Found) -> None:
    a, b = found.planted.a, found.planted.b
    groups = {(s.name, site): {f: g for g, f in s.features[site].items()} for s in (a, b) for site in SITES}
    by_name = {str(site): site for site in SITES}
    rows = read_shared(found.maps / f"shared-{a.name}-{b.name}").to_pylist()
    seen = set()
    for row in rows:
        in_a = frozenset(groups[a.name, by_name[row["site_a"]]].get(row[name]) for name in ("i_a", "j_a"))
        in_b = frozenset(groups[b.name, by_name[row["site_b"]]].get(row[name]) for name in ("i_b", "j_b"))
        assert in_a == in_b
        seen.add((row["site_a"], row["site_b"], in_a))
    wanted = {frozenset((pair.concept, pair.group)) for pair in PAIRS}
    assert seen == {(str(one), str(other), pair) for one in SITES for other in SITES for pair in wanted}


def test_the_pack_has_the_planted_concepts_and_injects_their_groups_words_alone(found: Found) -> None:
    pack, groups = found.pack, found.planted.groups
    assert pack.concepts == tuple(sorted(PLANTED))
    for concept in PLANTED:
        high = {word.strip() for probe in pack.probes[concept, "high"] for word in probe.injection}
        assert high <= {word for pair in PAIRS if pair.concept == concept for word in groups[pair.group]}
        assert len(high) >= 8
        controls = {
            word.strip()
            for arm in ("low", "random", "matched")
            for probe in pack.probes[concept, arm]
            for word in probe.injection
        }
        assert not controls & {word for pair in (*PAIRS, *DECOYS) if pair.concept == concept for word in groups[pair.group]}


def test_concepts_without_a_pair_are_reported(found: Found) -> None:
    assert set(UNPLANTED) <= set(found.pack.manifest.parameters["concepts_without_probes"])


def test_predictions_of_the_sources_tell_the_planted_arm_from_its_control(found: Found) -> None:
    for concept in PLANTED:
        high, matched = (
            [probe.predicted_shift or 0.0 for probe in found.pack.probes[concept, arm]] for arm in ("high", "matched")
        )
        assert min(high) > 0.5 > max(matched)


@pytest.mark.parametrize("end", ["a", "b"])
def test_a_run_finds_the_planted_concepts_shifted(
    end: str, found: Found, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = contrasts(run(str(found.pack.path), f"planted-{end}", tmp_path / "run", capsys), "matched")
    for concept in PLANTED:
        assert rows[concept]["ci_low"] > 0.5
        assert rows[concept]["p_holm"] < 0.01


def test_a_run_finds_nothing_where_words_without_interference_are_injected(
    found: Found, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f" {word}" for group in ("schooling", "crime") for word in found.planted.groups[group]]
    probes = []
    for concept, other in zip(UNPLANTED, PLANTED, strict=True):
        rng = generator(0, "unplanted", concept)
        for n, control in enumerate(found.pack.probes[other, "random"]):
            for arm, injection in (("high", draw(words, len(control.injection), rng)), ("random", control.injection)):
                probes.append(Probe(concept=concept, arm=arm, injection_id=f"{arm}-{n:04d}", injection=injection))
    draft = Draft(name="unplanted", description="-", claims="nothing", maker="test", seed=0, probes=probes)
    pack = write_pack(draft, tmp_path / "unplanted")
    rows = contrasts(run(str(pack.path), "planted-a", tmp_path / "run", capsys), "random")
    assert rows["all"]["ci_low"] < 0 < rows["all"]["ci_high"]
    for concept in UNPLANTED:  # three intervals at 95% miss zero once in seven packs: the family is what is tested
        assert rows[concept]["p_holm"] > 0.05
        assert abs(rows[concept]["estimate"]) < 0.1  # planted ones: above 0.5
        assert rows[concept]["ci_high"] - rows[concept]["ci_low"] < 0.5
