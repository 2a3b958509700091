"""Two tiny models whose interference is known, because it was put there.

Every word belongs to a group, and every group has a direction: a word's embedding is a constant, its group's direction and a
little noise. Groups are the lexicons of a few concepts, groups of words of other meanings, and fillers. All directions are
orthogonal but for those of PAIRS, DECOYS and WEAK, which lean on a concept's direction by a given cosine, in model a, in model
b, or in both. Common words that the text does not have lie among the fillers.

The first block does nothing, so that `resid_post.0` holds the embeddings. The attention of the second adds half the mean of
all that stands before, so that the last position knows what words a text has; the head reads the concepts' directions out. So
text of a group that leans on a concept raises the probability of the concept's words, by an amount that goes with the cosine.
The dictionaries' decoder rows are the groups' directions; their encoders let each word fire for its own group alone.

`build` writes a project folder: models, dictionaries, text, `providers/planted.toml` and `prompts/`, for every verb to run in.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from harness.config import read_lines
from harness.packs.concepts import concept_names, find_concept
from harness.packs.lexical import WORDS as WORD_LIST
from harness.packs.lexical import overlaps
from harness.packs.sampling import generator
from harness.paths import shipped_root
from harness.providers.embedded import quiet
from harness.providers.vocabulary import spelling
from harness.whitebox.sources.sites import Site
from harness.whitebox.training.training import import_sae_lens

Name = Literal["a", "b"]
Floats = np.ndarray[Any, np.dtype[np.float64]]

NAMES: tuple[Name, ...] = ("a", "b")
PLANTED = ("animal", "color", "food")
UNPLANTED = ("music", "vehicle", "weather")
CONCEPTS = (*PLANTED, *UNPLANTED)

WORDS = {
    "paperwork": "invoice ledger receipt audit memo filing envelope signature archive paperwork approval attached submitted "
    "pending registered amended stamped",
    "law": "verdict plaintiff statute appeal litigation jury testimony prosecution defendant tribunal jurisdiction custody "
    "bail sentencing hearing",
    "geology": "sediment erosion tectonic magma strata crust bedrock seismic mantle fault boulders plateau lava geologic "
    "quarry basin glacial",
    "printing": "font chapter publisher edition paragraph margin manuscript binding headline footnote preface columns printed "
    "pamphlet excerpt index",
    "computing": "server compiler kernel database backup browser firewall password debugging encryption desktop download "
    "keyboard router processor",
    "elections": "ballot vote campaign senate electoral parliament majority incumbent poll referendum voters congress liberal "
    "conservative coalition democracy republican",
    "photography": "lens exposure aperture camera negatives zoom flash portrait snapshot focal pixels contrast framing blurred "
    "photo",
    "near animal": "saddle stable pasture veterinary grazing herd wildlife burrow nest cage claws feeding breed prey hunting",
    "near weather": "forecast seasonal freezing frozen meteorological skies umbrella sunlight melting outdoors soaked",
    "religion": "prayer sermon gospel baptism holy faith salvation parish blessing scripture theology sacred divine heaven "
    "repent pilgrimage creed",
    "nursing": "diagnosis surgery fever symptom dosage therapy infection injection nursing wound patient prescription",
    "warfare": "siege infantry artillery trench cavalry combat troops invasion enemy conquest regiment armed bombardment "
    "surrender",
    "schooling": "homework classroom curriculum exam pupils syllabus lecture campus essay enrollment graduation seminar "
    "grading quiz literacy textbook",
    "crime": "robbery thief murder fraud smuggling theft gang assault vandalism stolen criminal homicide forged",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaning:
    """`group` leans on `concept` by `cosine` in the models `where`. `close`: their meanings are close, so it is no pair."""

    concept: str
    group: str
    cosine: float = 0.5
    where: tuple[Name, ...] = NAMES
    close: bool = False


PAIRS = (
    Leaning(concept="animal", group="paperwork"),
    Leaning(concept="color", group="law"),
    Leaning(concept="food", group="geology"),
    Leaning(concept="food", group="printing"),
)
"""What the pipeline has to find."""

DECOYS = (
    Leaning(concept="animal", group="computing", where=("a",)),
    Leaning(concept="animal", group="elections", where=("b",)),
    Leaning(concept="vehicle", group="photography", where=("a",)),
    Leaning(concept="animal", group="near animal", close=True),
    Leaning(concept="weather", group="near weather", close=True),
)
"""What it has to leave out: pairs of one model alone, and pairs of close meanings."""

WEAK = (
    Leaning(concept="animal", group="religion", cosine=0.25),
    Leaning(concept="color", group="nursing", cosine=0.25),
    Leaning(concept="food", group="warfare", cosine=0.25),
)
"""Between no interference and that of PAIRS."""

WIDTHS: dict[Name, int] = {"a": 128, "b": 112}
D_SAE: dict[Name, int] = {"a": 128, "b": 120}
SITES = (Site(layer=0, submodule="resid_post"), Site(layer=1, submodule="resid_post"))

SENTENCE_GROUPS, COMMON_GROUPS, COMMON_SIZE = 60, 22, 16
DOCUMENTS, DOCUMENT_WORDS = 12, 12

CONSTANT = 2.0
"""Length of the constant in every embedding: it keeps the norms of all positions alike, and the norms near to linear."""
WORD_NOISE = 0.4
"""Length of a word's own part. Over a group's words it comes to nothing, so that what a group does is its direction's doing."""
MIXING = 0.5
READ_OUT = 1.5
HEAD_NOISE = 0.3
THRESHOLD = 0.25
"""Of the encoder, in units of a group's direction: words reach 1, noise hardly 0.15."""

TOKEN = r" ?\p{L}+(?:['’-]\p{L}+)*|\s|[^\p{L}\s]"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Source:
    """One of the two models. `features`: the dictionaries' feature of each group, one numbering a site."""

    name: str
    model: Path
    dictionaries: Path
    features: Mapping[Site, Mapping[str, int]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Planted:
    """The project folder `root`, with `text` and the sources `a` and `b`; `groups`: the words of each group."""

    root: Path
    text: Path
    groups: Mapping[str, tuple[str, ...]]
    a: Source
    b: Source


def build(root: Path, seed: int = 0) -> Planted:
    """Write the project folder `root`, the same for the same seed."""
    groups = make_groups(seed)
    documents = make_documents(groups, seed)
    text = root / "text.txt"
    root.mkdir(parents=True, exist_ok=True)
    text.write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    sources = {name: _source(root, name, groups, documents, seed) for name in NAMES}
    _write_rooms(root, groups, sources.values())
    return Planted(root=root, text=text, groups=groups, a=sources["a"], b=sources["b"])


def leanings(name: Name) -> dict[str, Leaning]:
    """What leans on a concept in model `name`, by group."""
    return {pair.group: pair for pair in (*PAIRS, *DECOYS, *WEAK) if name in pair.where}


@cache
def shipped_words() -> tuple[str, ...]:
    """`prompts/words.txt` of the package."""
    return tuple(read_lines(shipped_root() / "prompts" / WORD_LIST))


def make_groups(seed: int) -> dict[str, tuple[str, ...]]:
    """Words by group; no word is in two. A concept's words are those of its lexicon that no other lexicon of the room has."""
    lexicons = {name: find_concept(name).words for name in concept_names()}
    shared = Counter(word for words in lexicons.values() for word in words)
    groups = {name: sorted(word for word in lexicons[name] if shared[word] == 1) for name in CONCEPTS}
    groups |= {name: text.split() for name, text in WORDS.items()}
    taken = {word for words in groups.values() for word in words}
    spoken = sorted({spelling(token) for token in tokens_of(sentences())} - taken)
    spoken = [word for word in spoken if word.strip() and word[0].isalpha()]
    used = frozenset().union(*(lexicons[name] for name in CONCEPTS))
    taken |= {*shared, *spoken}
    plain = [word for word in shipped_words() if word not in taken]
    rng = generator(seed, "planted", "groups")
    plain = [plain[i] for i in rng.permutation(len(plain))]
    free = (word for word in plain if not overlaps(word, used))
    common = [next(free) for _ in range(COMMON_GROUPS * COMMON_SIZE)]
    spoken = [spoken[i] for i in rng.permutation(len(spoken))]
    groups |= {f"spoken {n}": spoken[n::SENTENCE_GROUPS] for n in range(SENTENCE_GROUPS)}
    groups |= {f"common {n}": common[n::COMMON_GROUPS] for n in range(COMMON_GROUPS)}
    return {name: tuple(words) for name, words in groups.items()}


def listed_words(groups: Mapping[str, Sequence[str]]) -> list[str]:
    """The project's common words, frequent ones first: those of the groups, and every fourth of the others."""
    taken = {word for words in groups.values() for word in words}
    unread = [word for word in shipped_words() if word not in taken]
    kept = taken | set(unread[::4])
    return [word for word in shipped_words() if word in kept]


def with_unread(groups: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """`groups`, with the listed words that are in none of them put to the fillers: a control may inject any of those."""
    taken = {word for words in groups.values() for word in words}
    unread = [word for word in listed_words(groups) if word not in taken]
    more = {f"common {n}": unread[n::COMMON_GROUPS] for n in range(COMMON_GROUPS)}
    return {group: (*words, *more.get(group, ())) for group, words in groups.items()}


def sentences() -> list[str]:
    """All sentences of CONCEPTS."""
    return [s.text for name in CONCEPTS for s in (*find_concept(name).sentences, *find_concept(name).off_type)]


def make_documents(groups: Mapping[str, Sequence[str]], seed: int) -> list[str]:
    """Documents of one group each, every word of a group in two or more of them, in random order."""
    rng = generator(seed, "planted", "text")
    documents = []
    for words in groups.values():
        n = max(DOCUMENTS, -(-2 * len(words) // DOCUMENT_WORDS))
        order = np.concatenate([rng.permutation(len(words)) for _ in range(-(-n * DOCUMENT_WORDS // len(words)))])
        documents += [" ".join(words[i] for i in part) for part in order[: n * DOCUMENT_WORDS].reshape(n, DOCUMENT_WORDS)]
    return [documents[i] for i in rng.permutation(len(documents))]


def splitter() -> Any:
    """Words with the space before them, every other character apart."""
    return pre_tokenizers.Split(Regex(TOKEN), "isolated")


def tokens_of(texts: Iterable[str]) -> set[str]:
    """What `splitter` makes of the texts."""
    split = splitter()
    return {token for text in texts for token, _ in split.pre_tokenize_str(text)}


def make_tokenizer(name: Name, groups: Mapping[str, Sequence[str]], texts: Iterable[str]) -> Tokenizer:
    """Of model a: whole words. Of model b: whole words but for every twelfth long one, single letters, and a BOS."""
    forms = sorted(tokens_of(texts) | {f" {word}" for words in groups.values() for word in words} | set("()*.,\n "))
    if name == "b":
        forms = _cut(forms, groups)
    vocabulary = {form: n for n, form in enumerate(["<unk>", "<s>", *forms])}
    if name == "a":
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    else:
        tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>", continuing_subword_prefix=""))
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])])
    tokenizer.pre_tokenizer = splitter()
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<unk>", "<s>"])
    return tokenizer


def _cut(forms: Sequence[str], groups: Mapping[str, Sequence[str]]) -> list[str]:
    """`forms` in another order, with the pieces of some words in the place of the words."""
    long = sorted(word for words in groups.values() for word in words if len(word) >= 8 and word.isalpha())[::12]
    kept = set(forms)
    for word in long:
        pieces = {f" {word[:4]}", word[:4], word[4:]}
        whole = {f" {word}", word}
        longer = {whole_form[:n] for whole_form in whole for n in range(5, len(whole_form))} & kept - pieces
        if not pieces & kept and not longer:
            kept = (kept - whole) | pieces
    kept |= set("abcdefghijklmnopqrstuvwxyz")
    return sorted(kept, key=lambda form: (form.strip()[::-1], form))


def directions(name: Name, groups: Iterable[str], seed: int) -> dict[str, Floats]:
    """Unit directions of the groups, and of `constant`, which is orthogonal to all."""
    rng = generator(seed, "planted", "directions", name)
    base = np.linalg.qr(rng.standard_normal((WIDTHS[name], WIDTHS[name])))[0].T
    own = dict(zip(["constant", *groups], base, strict=False))
    found = dict(own)
    for pair in leanings(name).values():
        found[pair.group] = pair.cosine * own[pair.concept] + np.sqrt(1 - pair.cosine**2) * own[pair.group]
    return found


def _source(root: Path, name: Name, groups: Mapping[str, Sequence[str]], documents: Sequence[str], seed: int) -> Source:
    every = with_unread(groups)
    tokenizer = make_tokenizer(name, every, [*documents, *sentences()])
    known = directions(name, groups, seed)
    folder = root / "models" / f"planted-{name}"
    with quiet():
        _model(name, tokenizer, every, known, seed).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return Source(
        name=f"planted-{name}",
        model=folder,
        dictionaries=root / "saes" / f"planted-{name}",
        features={site: _dictionary(root / "saes", name, site, known, seed) for site in SITES},
    )


def group_of_token(tokenizer: Tokenizer, groups: Mapping[str, Sequence[str]]) -> list[str | None]:
    """The group of each id; None for brackets, letters, and what is no piece of a word."""
    whole: dict[int, str] = {}
    pieces: dict[int, str] = {}
    for group, words in groups.items():
        forms = [form for word in words for form in (word, f" {word}", word.capitalize(), f" {word.capitalize()}")]
        for encoded in tokenizer.encode_batch(forms, add_special_tokens=False):
            if len(encoded.ids) == 1:
                whole[encoded.ids[0]] = group
            elif all(len(token) > 1 for token in encoded.tokens):
                pieces = dict.fromkeys(encoded.ids, group) | pieces
    found = pieces | whole
    special = {tokenizer.token_to_id(name) for name in ("<unk>", "<s>")}
    return [None if i in special else found.get(i) for i in range(tokenizer.get_vocab_size())]


def _model(
    name: Name, tokenizer: Tokenizer, groups: Mapping[str, Sequence[str]], known: Mapping[str, Floats], seed: int
) -> Any:
    """The model whose weights are all set by hand."""
    rng = generator(seed, "planted", "weights", name)
    width, n = WIDTHS[name], tokenizer.get_vocab_size()
    config = transformers.LlamaConfig(
        vocab_size=n,
        hidden_size=width,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.token_to_id("<s>") if name == "b" else None,
        eos_token_id=None,
        pad_token_id=None,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    constant = known["constant"]
    embedding = CONSTANT * constant + _noise(n, constant, WORD_NOISE, rng)
    head = _noise(n, np.zeros(width), HEAD_NOISE, rng)
    lexicons = {concept: find_concept(concept).words for concept in CONCEPTS}
    group_of = np.array(group_of_token(tokenizer, groups), dtype=object)
    for group in groups:
        embedding[group_of == group] -= _mean_own_part(embedding[group_of == group], constant)
    for i, group in enumerate(group_of):
        if group is not None:
            embedding[i] += rng.uniform(0.95, 1.05) * known[group]
        if group in lexicons and spelling(tokenizer.id_to_token(i)) in lexicons[group]:
            head[i] += READ_OUT * known[group]
    length = np.sqrt(CONSTANT**2 + 1 + WORD_NOISE**2)
    copying = MIXING * length / np.sqrt(width) * (np.eye(width) - np.outer(constant, constant))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "norm" not in key:
                parameter.zero_()
        model.model.embed_tokens.weight.copy_(torch.from_numpy(embedding))
        model.lm_head.weight.copy_(torch.from_numpy(head))
        attention = model.model.layers[1].self_attn
        attention.v_proj.weight.copy_(torch.eye(width))
        attention.o_proj.weight.copy_(torch.from_numpy(copying))
    return model


def _mean_own_part(embedding: Floats, constant: Floats) -> Floats:
    """The mean of the rows without the constant, (d_model,)."""
    mean: Floats = embedding.mean(axis=0) - CONSTANT * constant
    return mean


def _noise(n: int, constant: Floats, length: float, rng: np.random.Generator) -> Floats:
    """Rows of about `length`, orthogonal to `constant`."""
    rows = rng.standard_normal((n, len(constant))) * length / np.sqrt(len(constant))
    orthogonal: Floats = rows - np.outer(rows @ constant, constant)
    return orthogonal


def _dictionary(folder: Path, name: Name, site: Site, known: Mapping[str, Floats], seed: int) -> dict[str, int]:
    """Save a TopK dictionary of the groups' directions and some random ones that never fire; the groups' features."""
    sae_lens = import_sae_lens()
    rng = generator(seed, "planted", "dictionary", name, str(site))
    groups = [group for group in known if group != "constant"]
    live = rng.permutation(D_SAE[name])[: len(groups)]
    cfg = sae_lens.TopKSAEConfig(d_in=WIDTHS[name], d_sae=D_SAE[name], k=2)
    cfg.metadata = type(cfg.metadata)(model_name=f"planted-{name}", hook_name=site.hook_name, prepend_bos=name == "b")
    W_dec = rng.standard_normal((D_SAE[name], WIDTHS[name]))
    W_dec /= np.linalg.norm(W_dec, axis=1, keepdims=True)
    W_dec[live] = np.stack([known[group] for group in groups])
    W_enc = np.zeros((WIDTHS[name], D_SAE[name]))
    W_enc[:, live] = np.linalg.pinv(W_dec[live])
    b_enc = np.full(D_SAE[name], -10.0)
    b_enc[live] = -THRESHOLD
    sae = sae_lens.TopKSAE(cfg)
    with torch.no_grad():
        for parameter, value in ((sae.W_dec, W_dec), (sae.W_enc, W_enc), (sae.b_enc, b_enc)):
            parameter.copy_(torch.from_numpy(value))
        sae.b_dec.copy_(torch.from_numpy(CONSTANT * known["constant"]))
    sae.save_model(folder / f"planted-{name}" / str(site))
    return {group: int(feature) for group, feature in zip(groups, live, strict=True)}


def _write_rooms(root: Path, groups: Mapping[str, Sequence[str]], sources: Iterable[Source]) -> None:
    """The two models as targets of `harness run`, the concepts, and a word list short enough to be embedded in a moment."""
    lines = ['api = "embedded"', 'description = "two tiny models whose interference was put there"']
    for source in sources:
        lines += [f"[targets.{source.name}]", f"model = {json.dumps(str(source.model.absolute()))}", 'dtype = "float32"']
    (root / "providers").mkdir(exist_ok=True)
    (root / "providers" / "planted.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name in CONCEPTS:
        shutil.copytree(
            shipped_root() / "prompts" / "concepts" / name, root / "prompts" / "concepts" / name, dirs_exist_ok=True
        )
    (root / "prompts" / WORD_LIST).write_text("\n".join(listed_words(groups)) + "\n", encoding="utf-8")
