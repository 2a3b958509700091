"""That the planted models, dictionaries and text have in them what they are said to have, and nothing else."""

from __future__ import annotations

import asyncio
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
if find_spec("sae_lens") is None:
    pytest.skip("needs sae_lens (the extra `whitebox`)", allow_module_level=True)

from safetensors.numpy import save_file  # noqa: E402

from harness.lexicon import resolve  # noqa: E402
from harness.packs.concepts import concept_names, find_concept  # noqa: E402
from harness.packs.lexical import overlaps  # noqa: E402
from harness.packs.templates import find_template  # noqa: E402
from harness.providers.targets import OpenOptions, find_target, open_target  # noqa: E402
from harness.providers.vocabulary import Vocabulary, spelling  # noqa: E402
from harness.records import Prompt, Readout  # noqa: E402
from harness.whitebox.sources import activations, corpus, packing  # noqa: E402
from harness.whitebox.sources.dictionaries import load, local_dictionaries, locate  # noqa: E402
from harness.whitebox.sources.models import LocalModel, load_model  # noqa: E402
from harness.whitebox.topology.topology import Job, map_topology  # noqa: E402
from harness.whitebox.training import training  # noqa: E402

from . import planted as made  # noqa: E402
from .planted import CONCEPTS, DECOYS, PAIRS, SITES, WEAK, WORDS, Planted, Source  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return made.build(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="module", params=["a", "b"])
def source(request: pytest.FixtureRequest, planted: Planted) -> Source:
    found: Source = getattr(planted, request.param)
    return found


@pytest.fixture(scope="module")
def model(source: Source) -> LocalModel:
    return load_model(source.name, lambda _: None, dtype="float32", folder=source.model)


@pytest.fixture(scope="module")
def seen(planted: Planted, model: LocalModel) -> tuple[list[int], dict[Any, Any]]:
    """Token ids of the text, and the activations at every site, first positions left out."""
    documents = corpus.from_files([planted.text]).documents
    contexts = list(packing.contexts(documents, model.tokenizer, bos=model.bos))
    parts = list(activations.read(model.model, activations.batched(contexts), SITES))
    return [i for context in contexts for i in context[1:]], {s: torch.cat([part[s] for part in parts]) for s in SITES}


@cache
def vocabulary_of(folder: Path) -> Vocabulary:
    return Vocabulary.load(folder)


def log_odds(model: LocalModel, concept: str, texts: list[str]) -> Any:
    """Of the concept's words as the next token, one for each text."""
    words = resolve(find_concept(concept), vocabulary_of(model.folder), first_token=False).token_ids
    found = []
    with torch.no_grad():
        for text in texts:
            hidden = model.model.model(torch.tensor([model.tokenizer.encode(text).ids])).last_hidden_state[:, -1]
            logits = model.model.lm_head(hidden)[0].double()
            inside = torch.zeros(len(logits), dtype=torch.bool)
            inside[torch.from_numpy(words).long()] = True
            found.append(float(logits[inside].logsumexp(0) - logits[~inside].logsumexp(0)))
    return np.array(found)


def shift(model: LocalModel, planted: Planted, concept: str, group: str) -> Any:
    """Change of the concept's log-odds in six sentences by eleven words of `group` in brackets before them."""
    texts = [sentence.text for sentence in find_concept(concept).sentences[:6]]
    rng = np.random.default_rng(1)
    injected = [
        find_template("paren").render([f" {word}" for word in rng.permutation(planted.groups[group])[:11]], text)
        for text in texts
    ]
    return log_odds(model, concept, injected) - log_odds(model, concept, texts)


def name_of(source: Source) -> Any:
    return source.name.removeprefix("planted-")


def test_words_have_one_group_and_those_of_other_meanings_are_no_concepts_words(planted: Planted) -> None:
    words = [word for group in planted.groups.values() for word in group]
    assert len(set(words)) == len(words)
    used = frozenset().union(*(find_concept(name).words for name in CONCEPTS))
    anywhere = frozenset().union(*(find_concept(name).words for name in concept_names()))
    for group in WORDS:
        assert not anywhere & set(planted.groups[group])
        assert not [word for word in planted.groups[group] if overlaps(word, used)]
        assert set(planted.groups[group]) <= set(made.shipped_words())
        assert len(planted.groups[group]) >= 11


def test_every_word_stands_in_two_documents_and_documents_have_one_meaning(planted: Planted) -> None:
    documents = corpus.from_files([planted.text]).documents
    group_of = {word: group for group, words in planted.groups.items() for word in words}
    count = dict.fromkeys(group_of, 0)
    for document in documents:
        assert len({group_of[word] for word in document.split()}) == 1
        for word in set(document.split()):
            count[word] += 1
    assert min(count.values()) >= 1
    assert np.mean(np.array(list(count.values())) >= 2) > 0.95


def test_the_text_of_a_token_spells_its_word(planted: Planted, model: LocalModel) -> None:
    vocabulary = Vocabulary(model.tokenizer)
    for word in planted.groups["paperwork"]:
        ids = vocabulary.encode_pieces([f" {word}"])[0]
        assert "".join(vocabulary.text(i) for i in ids) == f" {word}"
        assert len(ids) > 1 or spelling(vocabulary.text(ids[0])) == word
    for concept in CONCEPTS:
        assert (resolve(find_concept(concept), vocabulary, first_token=False).resolved_share or 0) > 0.85


def test_the_two_tokenizers_differ(planted: Planted) -> None:
    a, b = (load_model(s.name, lambda _: None, folder=s.model) for s in (planted.a, planted.b))
    assert (a.bos, b.bos) == (None, b.tokenizer.token_to_id("<s>"))
    words = [f" {word}" for group in made.with_unread(planted.groups).values() for word in group]
    pieces = [
        [len(encoding.ids) for encoding in t.encode_batch(words, add_special_tokens=False)] for t in (a.tokenizer, b.tokenizer)
    ]
    assert set(pieces[0]) == {1}
    assert 20 < sum(n == 2 for n in pieces[1]) < 0.05 * len(words)
    assert max(pieces[1]) == 2
    assert (
        a.tokenizer.encode(" invoice", add_special_tokens=False).ids
        != b.tokenizer.encode(" invoice", add_special_tokens=False).ids
    )


def test_decoder_rows_have_the_cosines_of_the_design_and_no_others(source: Source) -> None:
    wanted = {pair.group: pair for pair in (*PAIRS, *DECOYS, *WEAK) if name_of(source) in pair.where}
    for dictionary in local_dictionaries(source.name, source.dictionaries, print):
        features = source.features[dictionary.site]
        unit = load(locate(dictionary)).unit
        cosines = {
            (one, other): float(unit[features[one]] @ unit[features[other]])
            for one in features
            for other in features
            if one != other
        }
        for pair in wanted.values():
            assert cosines[pair.concept, pair.group] == pytest.approx(pair.cosine, abs=1e-5)
        leaning = {group: pair.concept for group, pair in wanted.items()} | {concept: concept for concept in CONCEPTS}
        for (one, other), cosine in cosines.items():
            if leaning.get(one, one) != leaning.get(other, other):
                assert abs(cosine) < 1e-5


@pytest.mark.parametrize("site", SITES, ids=str)
def test_words_fire_their_own_feature_and_not_the_one_it_leans_on(
    site: Any, planted: Planted, source: Source, model: LocalModel, seen: tuple[list[int], dict[Any, Any]]
) -> None:
    sae = training.import_sae_lens().SAE.load_from_disk(source.dictionaries / str(site), device="cpu")
    ids, x = seen[0], seen[1][site]
    with torch.no_grad():
        codes = sae.encode(x).numpy()
    groups = made.group_of_token(model.tokenizer, made.with_unread(planted.groups))
    own = np.array([-1 if groups[i] is None else source.features[site][groups[i]] for i in ids])
    words = own >= 0
    rows = np.flatnonzero(words)
    assert np.mean(codes.argmax(axis=1)[rows] == own[rows]) > 0.995
    assert codes[rows, own[rows]].min() > 0.4
    if site == SITES[0]:
        assert not codes[~words].any()
    for pair in PAIRS:
        here = rows[own[rows] == source.features[site][pair.group]]
        across = codes[here, source.features[site][pair.concept]]
        assert across.mean() < 0.05 * codes[here, own[here]].mean()


def test_text_that_leans_on_a_concept_makes_its_words_likelier_and_other_text_does_not(
    planted: Planted, source: Source, model: LocalModel
) -> None:
    for pair in PAIRS:
        found = shift(model, planted, pair.concept, pair.group)
        assert found.min() > 0.5
        assert shift(model, planted, pair.concept, pair.concept).min() > 1.2
    for pair in DECOYS:
        found = shift(model, planted, pair.concept, pair.group)
        if name_of(source) in pair.where:
            assert found.min() > 0.5
        else:
            assert np.abs(found).max() < 0.25
    for pair in WEAK:
        assert 0.15 < shift(model, planted, pair.concept, pair.group).mean() < 0.6
    for concept in CONCEPTS:
        for group in ("schooling", "crime", "common 3"):
            assert abs(shift(model, planted, concept, group).mean()) < 0.15
    assert abs(shift(model, planted, "music", "law").mean()) < 0.15


def test_concepts_words_are_neither_sure_nor_impossible_before_anything_is_injected(model: LocalModel) -> None:
    for concept in CONCEPTS:
        clean = log_odds(model, concept, [sentence.text for sentence in find_concept(concept).sentences[:12]])
        typical = np.sort(clean)[1:-1]  # a sentence may end on a word of another concept
        assert typical[0] > -7
        assert typical[-1] < -0.5
        assert typical.std() > 0.05


def test_the_thresholds_of_the_nulls_divide_what_was_planted_from_all_else(
    source: Source, seen: tuple[list[int], dict[Any, Any]], tmp_path: Path
) -> None:
    covariances = {str(site): np.cov(x.numpy().T).astype(np.float32) for site, x in seen[1].items()}
    save_file(covariances, tmp_path / "covariances.safetensors")
    dictionaries = local_dictionaries(source.name, source.dictionaries, print)
    job = Job(dictionaries=dictionaries, out=tmp_path / "topology", covariances=tmp_path / "covariances.safetensors")
    rows = map_topology(job, lambda _: None)
    planned = sum(name_of(source) in pair.where for pair in (*PAIRS, *DECOYS))
    for row in rows:
        assert 0.3 < row["threshold"] < 0.48
        assert planned <= row["n_pairs"] <= planned + 4  # random rows that never fire may come as close


def test_the_models_answer_as_targets_of_a_run(
    planted: Planted, source: Source, model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(planted.root)

    text = "( invoice ledger receipt)The shepherd counted his flock twice and was still missing a"
    prompt = Prompt(
        prompt_id="1", concept="animal", arm="high", sentence_id="1", injection_id="1", template="paren", group="1", text=text
    )

    async def ask() -> Any:
        provider = await open_target(find_target(source.name), OpenOptions())
        try:
            assert provider.vocabulary is not None
            animal = resolve(find_concept("animal"), provider.vocabulary, first_token=False)
            return await provider.observe([prompt], Readout(lexicon=animal, n_logprobs=30))
        finally:
            await provider.aclose()

    (answer,) = asyncio.run(ask())
    assert answer.mass_low == answer.mass_high
    assert np.log(answer.mass_low / (1 - answer.mass_low)) == pytest.approx(log_odds(model, "animal", [text])[0], abs=1e-3)


@pytest.mark.embedded
def test_meanings_are_as_far_apart_as_the_design_says(planted: Planted) -> None:
    from harness.packs.embedder import Embedder

    embedder = Embedder(lambda _: None)
    rng = np.random.default_rng(0)

    def meaning(group: str) -> Any:
        words = planted.groups[group]
        vectors = embedder.embed([" ".join(rng.permutation(words)[:12]) for _ in range(6)]).mean(axis=0)
        return vectors / np.linalg.norm(vectors)

    for pair in (*PAIRS, *DECOYS, *WEAK):
        similarity = float(meaning(pair.concept) @ meaning(pair.group))
        assert similarity > 0.35 if pair.close else similarity < 0.2
