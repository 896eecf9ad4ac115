"""What a user would otherwise do: delete bad words, ask a chat model; and MaRCo's own masks, deleted.

Each takes texts and returns texts, in order. Refilling without experts is in
:mod:`companion.marco.evaluation.rewrites`. CondBERT and ParaGeDi, the paper's baselines, need weights that
cannot be had offline; their published numbers stand beside ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache

import torch
from transformers import PreTrainedTokenizerBase

from companion.lm import generation, tokens
from companion.lm.models import LanguageModel
from companion.marco.denoisers.protocol import Denoiser
from companion.marco.rewriting import words
from companion.metrics.estimates import TOXIC
from companion.toxicity.lexical import LexicalScorer

REQUEST = (
    "Rewrite the following sentence so that it is polite and inoffensive. Keep its meaning. "
    "Reply with the sentence only.\n\n"
)
NEW_TOKENS = 64  # of an answer, at most


@cache
def _word_score(word: str) -> float:
    """Toxicity of a word by itself, by the lexical scorer."""
    return float(LexicalScorer()([word])[0])


def toxic_words(sentence: words.Sentence) -> list[int]:
    """Indices of the words that the lexical scorer finds toxic by themselves."""
    maskable = [j for j, word in enumerate(sentence.words) if word.maskable]
    return [j for j in maskable if _word_score(sentence.spelling(j).lower()) >= TOXIC]


def delete(denoiser: Denoiser, texts: Iterable[str]) -> list[str]:
    """Leave toxic words out (*Delete* of Logacheva et al., 2022), with our lexical scorer as the lexicon."""
    sentences = [words.split(denoiser, text) for text in tokens.checked(texts)]
    return [without(sentence, toxic_words(sentence)) for sentence in sentences]


def without(sentence: words.Sentence, chosen: Sequence[int]) -> str:
    """The text without some of its words, with single spaces."""
    text = sentence.text
    for j in sorted(chosen, reverse=True):
        word = sentence.words[j]
        text = text[: word.start] + text[word.end :]
    return re.sub(r"\s+", " ", text).strip()


def ask(lm: LanguageModel, texts: Iterable[str]) -> list[str]:
    """Prompt a language model to rewrite politely, in its chat format if it has one; take its first line."""
    chats = [_chat(lm, REQUEST + text) for text in tokens.checked(texts)]
    with torch.inference_mode():
        answers = generation.generate(lm, chats, new_tokens=NEW_TOKENS, stop=_line_ends(lm.tokenizer)).texts
    return [(answer.strip().splitlines() or [""])[0].strip().strip('"') for answer in answers]


@cache
def _line_ends(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens with a line end after something else, and those of a line end alone."""
    spelled = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    return [i for i, text in enumerate(spelled) if "\n" in text]


def _chat(lm: LanguageModel, request: str) -> str:
    if lm.tokenizer.chat_template is None:
        return request + "\n\n"
    chat = [{"role": "user", "content": request}]
    text = lm.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    return text  # type: ignore[return-value]  # ids only if it is to tokenize
