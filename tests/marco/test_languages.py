"""What is taken for another language, and that English is not."""

from __future__ import annotations

import json

import pytest

from companion import paths
from companion.marco.rewriting.languages import other_language, small_words
from companion.marco.rewriting.words import FUNCTION_WORDS

SAID = {
    "Du bist so ein Idiot, und das weißt du.": "German",
    "Tu es vraiment un idiot, tais-toi et lis le manuel.": "French",
    "Eres un idiota y no sabes nada de esto.": "Spanish",
    "Você é um idiota e não sabe de nada.": "Portuguese",
    "Sei proprio un idiota e non capisci niente.": "Italian",
    "Je bent een idioot en je weet er niets van.": "Dutch",
    "Du är en idiot och det vet alla.": "Swedish, Norwegian or Danish",
    "Jesteś głupi i nic nie wiesz o tym.": "Polish",
    "Sen çok aptal bir adamsın ve bunu biliyorsun.": "Turkish",
    "Kamu sangat bodoh dan tidak tahu apa yang terjadi.": "Indonesian",
    "Ești un idiot și nu știi nimic despre asta, dar vorbești.": "Romanian",
    "Olet idiootti ja se on kaikki mitä minä tiedän.": "Finnish",
    "Ты ничего не понимаешь.": "another script",
    "你什么都不懂": "another script",
}


@pytest.mark.parametrize("text", SAID)
def test_other_languages_are_told(text):
    assert other_language(text) == SAID[text]


@pytest.mark.parametrize(
    "text",
    ["", "?!", "😀😡", "You are so stupid.", "moron", "die die die", "w o m e n", "Señor, you are late."],
)
def test_english_and_what_is_no_language_is_not(text):
    assert other_language(text) is None


@pytest.mark.parametrize(
    "name", ["comments/comments", "sentences/overt", "sentences/subtle", "sentences/groups"]
)
def test_none_of_the_books_texts_is_taken_for_another_language(name):
    lines = (paths.DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    assert [text for line in lines if other_language(text := json.loads(line)["text"])] == []


def test_the_lists_hold_small_words_of_two_letters_and_more():
    for name, words in small_words().items():
        assert len(words) > 40 and min(map(len, words)) > 1, name
        assert len(words & FUNCTION_WORDS) < 10, name
