"""Which ids of a vocabulary belong to a concept: the documented rule, spelt out case by case."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from harness.errors import CapabilityError
from harness.lexicon import matches, require_resolved, resolve
from harness.packs.concepts import find_concept
from harness.providers.vocabulary import Vocabulary
from harness.records import Lexicon

TOKENS = ["<s>", "dog", " dog", "Dog", " DOG", "  dog", "dogs", "cat", " c", "at", " wom", "bat", "."]


def vocabulary() -> Vocabulary:
    """Tokens whose texts are given; words are encoded by the longest tokens that fit."""
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(TOKENS)}, unk_token="."))
    tokenizer.add_special_tokens([AddedToken("<s>", special=True)])
    return Vocabulary(tokenizer)


def ids(lexicon: Lexicon) -> list[str]:
    assert lexicon.token_ids is not None
    return [TOKENS[i] for i in lexicon.token_ids]


def lexicon_of(*words: str, first_token: bool = False) -> Lexicon:
    return resolve(replace(find_concept("animal"), words=words), vocabulary(), first_token=first_token)


def test_one_leading_space_and_case_do_not_matter_and_nothing_else_is_forgiven() -> None:
    lexicon = lexicon_of("dog", "wombat")
    assert ids(lexicon) == ["dog", " dog", "Dog", " DOG"]
    assert lexicon.resolved_share == 0.5
    assert [token for token in TOKENS if matches(token, lexicon.words)] == ids(lexicon), "text and ids follow one rule"


def test_a_special_token_is_no_word() -> None:
    assert ids(lexicon_of("<s>", "cat")) == ["cat"]


def test_equal_lexicons_have_equal_digests_and_others_have_not() -> None:
    assert lexicon_of("dog", "cat").digest == lexicon_of("cat", "dog").digest != lexicon_of("dog").digest


def test_a_word_of_several_tokens_counts_by_its_first_one_only_if_asked() -> None:
    pieces = {" wom": 0, "bat": 1, "<unk>": 2}
    tokenizer = Tokenizer(models.WordPiece(pieces, unk_token="<unk>", continuing_subword_prefix=""))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([])
    found = {}
    for first_token in (False, True):
        concept = replace(find_concept("animal"), words=("wombat",))
        found[first_token] = resolve(concept, Vocabulary(tokenizer), first_token=first_token)
    assert [found[flag].token_ids.tolist() for flag in (False, True)] == [[], [0]]  # type: ignore[union-attr]
    assert [found[flag].resolved_share for flag in (False, True)] == [0.0, 1.0]


def test_without_a_vocabulary_tokens_are_matched_by_text() -> None:
    lexicon = resolve(find_concept("animal"), None, first_token=False)
    assert (lexicon.token_ids, lexicon.resolved_share) == (None, None)
    require_resolved(lexicon, target="t", min_resolved=0.9)


def test_a_lexicon_that_the_vocabulary_hardly_spells_is_refused_with_what_helps() -> None:
    lexicon = lexicon_of("dog", "wombat", "ocelot", "ibex")
    require_resolved(lexicon, target="t", min_resolved=0.25)
    with pytest.raises(CapabilityError, match=r"t has one token for only 25% of the words of 'animal'.*needs 30%") as caught:
        require_resolved(lexicon, target="t", min_resolved=0.3)
    assert caught.value.hint is not None
    assert "first_token" in caught.value.hint
