"""What a user would otherwise do: delete bad words, ask a chat model. (Refilling without experts: :mod:`companion.marco.evaluation.rewrites`.)

Each takes texts and returns texts, in order. CondBERT and ParaGeDi, the paper's baselines, need
weights that cannot be had offline; their published numbers stand beside ours.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

import torch
from transformers import PreTrainedTokenizerBase

from companion.lm import generation, tokens
from companion.lm.generation import Sampling
from companion.lm.models import LanguageModel
from companion.marco.denoisers.protocol import Denoiser
from companion.marco.rewriting import words
from companion.toxicity.lexical import LexicalScorer

REQUEST = "Rewrite the following sentence so that it is polite and inoffensive. Keep its meaning. Reply with the sentence only.\n\n"


@cache
def _word_score(word: str) -> float:
    """Toxicity of a word by itself, by the lexical scorer."""
    return float(LexicalScorer()([word])[0])


def toxic_words(sentence: words.Sentence, threshold: float = 0.5) -> list[int]:
    """Indices of the words that the lexical scorer finds toxic by themselves."""
    return [
        i
        for i, w in enumerate(sentence.words)
        if w.maskable and _word_score(sentence.text[w.start : w.end].lower()) >= threshold
    ]


def delete(denoiser: Denoiser, texts: Sequence[str]) -> list[str]:
    """Leave toxic words out (*Delete* of Logacheva et al., 2022), with our lexical scorer as the lexicon."""
    found = []
    for text in tokens.checked(texts):
        sentence = words.split(denoiser, text)
        for i in reversed(toxic_words(sentence)):
            word = sentence.words[i]
            text = text[: word.start] + text[word.end :]
        found.append(re.sub(r"\s+", " ", text).strip())
    return found


def ask(
    lm: LanguageModel, texts: Sequence[str], *, new_tokens: int = 64, sampling: Sampling | None = None
) -> list[str]:
    """Prompt a language model to rewrite politely, in its chat format if it has one; its first line is the answer."""
    chats = [_chat(lm, REQUEST + text) for text in tokens.checked(texts)]
    with torch.inference_mode():
        answers = generation.generate(
            lm, chats, new_tokens=new_tokens, sampling=sampling, stop=_line_ends(lm.tokenizer)
        ).texts
    return [(answer.strip().splitlines() or [""])[0].strip().strip('"') for answer in answers]


@cache
def _line_ends(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens with a line end after something else, and those of a line end alone."""
    return [
        i
        for i, text in enumerate(tokenizer.batch_decode([[i] for i in range(len(tokenizer))]))
        if "\n" in text
    ]


def _chat(lm: LanguageModel, request: str) -> str:
    if lm.tokenizer.chat_template is None:
        return request + "\n\n"
    return lm.tokenizer.apply_chat_template(
        [{"role": "user", "content": request}], tokenize=False, add_generation_prompt=True
    )
