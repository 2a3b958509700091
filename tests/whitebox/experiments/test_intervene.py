"""The stage `intervene`, from a catalogue and a model to signed effects: against plain hooks, and with planted effects."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("statsmodels")

from harness.cli.main import execute  # noqa: E402
from harness.errors import MissingExtraError, UsageError  # noqa: E402
from harness.packs.concepts import Concept  # noqa: E402
from harness.whitebox.experiments import intervene  # noqa: E402
from harness.whitebox.experiments.candidates import BANDS, NORM_MATCHED, RANDOM, SELF, SIMILARITY_MATCHED, Band  # noqa: E402
from harness.whitebox.experiments.foci import Focus  # noqa: E402
from harness.whitebox.experiments.intervene import EFFECTS, NOBODY, Design, Job, run_interventions, split  # noqa: E402
from harness.whitebox.experiments.steered_model import same_depth, source_model  # noqa: E402
from harness.whitebox.features.catalogue import Catalogue  # noqa: E402
from harness.whitebox.sources.models import load_model  # noqa: E402
from harness.whitebox.sources.sites import Site  # noqa: E402
from harness.whitebox.steering.steering import Steerer  # noqa: E402

from ..tiny_models import WIDTH, changing, plain  # noqa: E402
from ..tiny_world import (  # noqa: E402
    EACH,
    LEXICON,
    SITE,
    covariance,
    decoder,
    gpt2,
    make_catalogue,
    make_concept,
    save_model,
    vocabulary,
    words,
)
from .test_measures import measured  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")
LATE = Site(layer=2, submodule="mlp_out")
Rows = list[dict[str, Any]]


def planted_model() -> Any:
    """A model whose blocks add nothing, and whose head reads feature 2's own direction as the lexicon, and against it 3's."""
    model = gpt2()
    directions = torch.from_numpy(decoder())
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "c_proj" in name:
                weight.zero_()
            if "ln_f.bias" in name:
                weight.zero_()
            if "ln_f.weight" in name:
                weight.fill_(1.0)
        model.config.tie_word_embeddings = False
        head = torch.nn.Linear(WIDTH, len(vocabulary()), bias=False)
        head.weight.copy_(0.01 * model.get_input_embeddings().weight)
        rest = directions.clone()
        rest[:, :2] = 0
        for word in LEXICON:
            head.weight[vocabulary().index(word)] += rest[2] - rest[3]
        model.set_output_embeddings(head)
    return model


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    make_catalogue(folder / "catalogue", save_model(folder / "model", gpt2()), SITE, LATE)
    return folder


@pytest.fixture(scope="module")
def concept(tmp_path_factory: pytest.TempPathFactory) -> Concept:
    return make_concept(tmp_path_factory.mktemp("concepts"))


def job(world: Path, out: Path, concepts: tuple[Concept, ...], **changes: Any) -> Job:
    catalogue = Catalogue(world / "catalogue")
    usual: dict[str, Any] = {"focus": "feature", "sentences": 3}
    model = changes.pop("model", None) or source_model(catalogue, lambda _: None)
    more = {name: changes.pop(name) for name in ("places", "clusters") if name in changes}
    sites = changes.pop("sites", (SITE,))
    design = Design(**(usual | changes))
    return Job(catalogue=catalogue, model=model, out=out, design=design, sites=sites, concepts=concepts, **more)


def run(job: Job, said: list[str] | None = None) -> tuple[dict[str, Any], Rows]:
    found = run_interventions(job, (lambda _: None) if said is None else said.append)
    return found, pq.read_table(job.out / "effects.parquet").to_pylist()


def test_every_case_is_kept_and_is_what_plain_hooks_give(world: Path, concept: Concept, tmp_path: Path) -> None:
    found, rows = run(job(world, tmp_path, (concept,), doses=(1.0, 4.0)))
    per_target = (1 + 7 * EACH) * 3 * 2
    assert len(rows) == 2 * per_target == found["manifest"]["n_cases"]
    model, scored = gpt2(), {s.sentence_id: s.text for s in concept.sentences}
    ids = [vocabulary().index(word) for word in LEXICON]
    std = np.sqrt(np.trace(covariance()) / WIDTH)
    for row in rows[::37]:
        if row["candidate"] is None:
            continue
        prompt = [vocabulary().index(word) for word in scored[row["sentence_id"]].split()]
        delta = torch.from_numpy(row["dose"] * std * decoder()[row["candidate"]]).float()
        with changing(model, SITE, lambda x, delta=delta: x + delta):
            after = plain(model, prompt)
        before = plain(model, prompt)
        top = tuple(vocabulary().index(word) for word, value in words()[row["target"]] if value >= 0.5)
        (cosine, overlap), (clean_cosine, clean_overlap) = measured(model, after, top), measured(model, before, top)
        assert row["weighted_cosine"] == pytest.approx(cosine - clean_cosine, abs=1e-4)
        assert row["weighted_overlap"] == pytest.approx(overlap - clean_overlap, abs=1e-5)
        assert row["clean_weighted_cosine"] == pytest.approx(clean_cosine, abs=1e-4)
        odds = [torch.log(p[ids].sum() / (1 - p[ids].sum())) for p in (after.double().softmax(-1), before.double().softmax(-1))]
        assert row["log_odds_shift"] == pytest.approx(float(odds[0] - odds[1]), abs=1e-3)
        assert row["top1_changed"] == bool(after.argmax() != before.argmax())
    assert min(row["log_odds_shift"] for row in rows) < 0 < max(row["log_odds_shift"] for row in rows)


@pytest.mark.parametrize("focus", ["prompt", "token", "feature", "neuron"])
def test_each_focus_gives_every_arm_of_a_target_equally_many_cases(
    focus: Focus, world: Path, concept: Concept, tmp_path: Path
) -> None:
    found, rows = run(job(world, tmp_path, (concept,), focus=focus))
    assert {row["focus"] for row in rows} == {focus}
    counts: dict[tuple[int, str], int] = {}
    for row in rows:
        counts[row["target"], row["arm"]] = counts.get((row["target"], row["arm"]), 0) + 1
        assert (row["dose"] is None) == (focus == "prompt")
        assert (row["candidate"] is None) == (row["arm"] == RANDOM and focus in ("token", "feature"))
    for target in (0, 1):
        assert len({n for (t, arm), n in counts.items() if t == target and arm != SELF}) == 1
    if focus != "neuron":
        named = [SELF, *map(str, BANDS), SIMILARITY_MATCHED, NORM_MATCHED, RANDOM]
        assert [row["arm"] for row in found["table"]["arms"]] == named
        assert found["regressions"][1]["coefficients"]["interference"]["ci_low"] is not None
    assert all(np.isfinite([row["log_odds_shift"], row["weighted_cosine"], row["total_variation"]]).all() for row in rows)
    assert pq.read_schema(tmp_path / "effects.parquet").equals(EFFECTS)
    for name in ("table.json", "regressions.json", "manifest.json"):
        json.loads((tmp_path / name).read_text())


def test_planted_effects_come_out_with_their_signs_and_the_controls_near_zero(concept: Concept, tmp_path: Path) -> None:
    make_catalogue(tmp_path / "catalogue", save_model(tmp_path / "model", planted_model()))
    only = tmp_path / "own"
    one = job(tmp_path, only, (concept,), bands=(Band(low=0.1, high=0.2),), sentences=5, doses=(4.0,))
    _, rows = run(one)
    mean = {
        number: np.mean([row["log_odds_shift"] for row in rows if row["candidate"] == number and row["arm"] == "0.1-0.2"])
        for number in (2, 3, 4)
    }
    assert mean[2] > 0.3
    assert mean[3] < -0.3
    assert abs(mean[4]) < min(mean[2], -mean[3]) / 2


def test_finished_sites_are_kept_and_an_interrupted_run_goes_on(
    world: Path, concept: Concept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = job(world, tmp_path, (concept,), sites=(SITE, LATE))
    ran: list[Site] = []
    real = intervene._run_site

    def counted(job: Job, site: Site, *rest: Any) -> Any:
        if site == LATE and not ran.count(LATE):
            ran.append(site)
            raise KeyboardInterrupt
        ran.append(site)
        return real(job, site, *rest)

    monkeypatch.setattr(intervene, "_run_site", counted)
    with pytest.raises(KeyboardInterrupt):
        run(one)
    said: list[str] = []
    found, rows = run(one, said)
    assert ran == [SITE, LATE, LATE]
    assert "kept from before" in next(line for line in said if f"{SITE}:" in line)
    again, same = run(one)
    assert ran == [SITE, LATE, LATE]
    assert same == rows
    assert again["table"] == found["table"]
    run(replace(one, design=replace(one.design, seed=1)))
    assert ran == [SITE, LATE, LATE, SITE, LATE]


def test_equal_jobs_give_equal_rows(world: Path, concept: Concept, tmp_path: Path) -> None:
    first, second = (run(job(world, tmp_path / name, (concept,)))[1] for name in "ab")
    assert first == second


def test_a_dose_is_chosen_on_sentences_that_are_not_scored_and_is_the_same_for_all_arms(
    world: Path, concept: Concept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = job(world, tmp_path, (concept,), held_out=True, doses=(0.5, 2.0, 6.0))
    scored, others = split(concept, one.design)
    assert not {s.sentence_id for s in scored} & {s.sentence_id for s in others}
    assert (len(scored), len(others)) == (3, 3)
    _, rows = run(one)
    assert {row["sentence_id"] for row in rows} == {s.sentence_id for s in scored}

    fixed = job(world, tmp_path / "fixed", (concept,), doses=(0.5, 2.0, 6.0))
    monkeypatch.setattr(intervene, "split", lambda *_: (others, ()))
    _, tried = run(fixed)
    for target in (0, 1):
        own = [row for row in tried if row["target"] == target and row["arm"] == SELF]
        means = {dose: np.mean([row["log_odds_shift"] for row in own if row["dose"] == dose]) for dose in (0.5, 2.0, 6.0)}
        assert {row["dose"] for row in rows if row["target"] == target} == {max(means, key=lambda dose: means[dose])}


def test_the_scored_sentences_have_no_say_in_the_dose(
    world: Path, concept: Concept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = job(world, tmp_path, (concept,), held_out=True)
    order: list[str] = []
    real = Steerer.cache

    def cache(self: Steerer, ids: Any) -> Any:
        order.append(" ".join(vocabulary()[number] for number in ids))
        return real(self, ids)

    bench = intervene._Bench(one)  # compares with hooks on a prompt of its own
    monkeypatch.setattr(intervene, "_Bench", lambda _: bench)
    monkeypatch.setattr(Steerer, "cache", cache)
    run(one)
    scored, others = split(concept, one.design)
    assert order == [sentence.text for sentence in (*others, *scored)]


def test_a_concept_that_no_feature_speaks_of_is_told_and_the_rest_goes_on(
    world: Path, concept: Concept, tmp_path: Path
) -> None:
    silent = make_concept(tmp_path / "concepts", "music", ["sky", "violin"])
    unspelt = make_concept(tmp_path / "concepts", "tool", ["hammer"])
    said: list[str] = []
    found, rows = run(job(world, tmp_path / "out", (silent, concept, unspelt), bands=(*BANDS, Band(low=0.8, high=0.9))), said)
    assert {row["concept"] for row in rows} == {"color"}
    assert found["manifest"]["sites"][str(SITE)]["silent"] == {"music": NOBODY, "tool": intervene.UNSPELT}
    assert f"{SITE} music: left out, no feature speaks of it" in said
    assert found["manifest"]["sites"][str(SITE)]["empty_arms"] == ["0.8-0.9"]
    nothing, rows = run(job(world, tmp_path / "none", (silent,)))
    assert (rows, nothing["table"]["arms"]) == ([], [])
    assert nothing["regressions"][0]["coefficients"] is None


def test_another_model_is_steered_along_differences_in_means(world: Path, concept: Concept, tmp_path: Path) -> None:
    deep = save_model(tmp_path / "deep", gpt2(n_layer=5))
    model = load_model(str(deep), lambda _: None, dtype="float32")
    catalogue = Catalogue(world / "catalogue")
    places = same_depth((SITE, LATE), catalogue, model)
    assert places == {SITE: Site(layer=2, submodule="resid_post"), LATE: Site(layer=4, submodule="mlp_out")}
    for focus in ("feature", "token", "prompt"):
        one = job(world, tmp_path / focus, (concept,), focus=focus, model=model, places=places)
        found, rows = run(one)
        assert len(rows) == 2 * (1 + 7 * EACH) * 3
        assert found["manifest"]["sites"][str(SITE)]["place"] == "resid_post.2"
        model = load_model(str(deep), lambda _: None, dtype="float32")  # the prompt focus takes a model over
    with pytest.raises(UsageError, match="neurons are those of the source"):
        run(job(world, tmp_path / "n", (concept,), focus="neuron", model=model, places=places))


def test_degrees_come_from_the_clusters_where_there_are_any(world: Path, concept: Concept, tmp_path: Path) -> None:
    import pyarrow as pa

    folder = tmp_path / "clusters" / "sites" / str(SITE)
    folder.mkdir(parents=True)
    degree = np.tile([1, 3, 8, 30], WIDTH // 4)
    columns = {"cut": [0.4] * WIDTH + [0.3] * WIDTH, "neuron": [*range(WIDTH)] * 2, "degree": [*degree.tolist(), *[99] * WIDTH]}
    pq.write_table(pa.table(columns).take(list(range(2 * WIDTH))[::-1]), folder / "neurons.parquet")
    found, rows = run(job(world, tmp_path / "out", (concept,), focus="neuron", clusters=tmp_path / "clusters"))
    assert all(row["degree"] == degree[row["candidate"]] for row in rows)
    assert found["manifest"]["sites"][str(SITE)]["degrees_of"] == "clusters"
    assert {row["dose"] for row in rows} == {0.0, 0.5, 2.0, 5.0, 10.0, 20.0}
    assert len(found["table"]["by_dose"]) == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": 0}, "targets: 0 is not above 0"),
        ({"sentences": -1}, "sentences: -1"),
        ({"focus": "prompt", "doses": (2.0,)}, "has no dose"),
        ({"focus": "prompt", "held_out": True}, "has no dose"),
        ({"doses": (float("inf"),)}, "finite"),
        ({"bands": ()}, "no band"),
    ],
)
def test_a_design_that_makes_no_sense_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Design(**({"focus": "feature"} | change))


def test_held_out_sentences_must_be_there(concept: Concept) -> None:
    with pytest.raises(UsageError, match="all 8 sentences are scored"):
        split(concept, Design(focus="feature", sentences=8, held_out=True))


def test_weights_other_than_the_catalogues_are_refused(tmp_path: Path) -> None:
    save_model(tmp_path / "model", gpt2(n_layer=2))
    make_catalogue(tmp_path / "catalogue", tmp_path / "model")
    save_model(tmp_path / "model", gpt2())
    with pytest.raises(UsageError, match="are not those that the catalogue"):
        source_model(Catalogue(tmp_path / "catalogue"), lambda _: None)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_concept(tmp_path / "prompts" / "concepts")
    (tmp_path / "evals").mkdir()
    (tmp_path / "evals" / "x.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_verb_prints_tables_or_json_and_writes_below_reports(
    project: Path, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "reports").mkdir()
    (project / "reports" / "catalogue-tiny").symlink_to(world / "catalogue")
    line = ["intervene", "--source", "tiny", "--concept", "color", "--sentences", "2", "--site", str(SITE)]
    assert execute(line) == 0
    out, err = capsys.readouterr()
    assert all(text in out for text in ("similarity_matched", "0.4-1", "log odds shift", "B weighted cosine", "interference"))
    assert "peak memory" in err
    assert (project / "reports" / "intervene-tiny-feature" / "effects.parquet").is_file()
    assert execute([*line, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"manifest", "table", "regressions"}
    other = save_model(project / "other", gpt2(n_layer=4))
    assert execute([*line, "--model", str(other), "--out", str(project / "o"), "--model-site", "resid_post.0"]) == 0
    assert json.loads((project / "o" / "manifest.json").read_text())["sites"][str(SITE)]["place"] == "resid_post.0"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--site", "resid_post.9"], "has no site resid_post.9"),
        (["--concept", "colour"], "did you mean 'color'?"),
        (["--band", "0.9"], "is no band"),
        (["--model-site", "resid_post.1"], "--model-site without --model"),
        (["--focus", "neuron", "--model", "MODEL"], "neurons are those of the source"),
        (["--model", "MODEL", "--model-site", "resid_post.7"], "the model has layers 0 to 2"),
    ],
)
@pytest.mark.usefixtures("project")
def test_bad_requests_end_with_a_hint_and_code_2(
    more: list[str], message: str, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = [str(world / "model") if word == "MODEL" else word for word in more]
    line = ["intervene", "--source", "tiny", "--catalogue", str(world / "catalogue"), *more]
    assert execute(line) == 2
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("project")
def test_a_missing_catalogue_and_anothers_are_told(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["intervene", "--source", "tiny"]) == 2
    assert "hint: harness map catalogue" in capsys.readouterr().err
    assert execute(["intervene", "--source", "other", "--catalogue", str(world / "catalogue")]) == 2
    assert "is the catalogue of tiny" in capsys.readouterr().err


def test_without_statsmodels_nothing_is_run(
    world: Path, concept: Concept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "statsmodels.regression.linear_model", None)
    with pytest.raises(MissingExtraError, match="statsmodels"):
        run(job(world, tmp_path / "out", (concept,)))
    assert not (tmp_path / "out").exists()
