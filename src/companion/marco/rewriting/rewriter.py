"""Fill the blanks with a product of experts.

The base model reads the original text, expert and anti-expert the masked one; the next token
maximises α_base·z_base/T + α_expert·z_expert − α_anti·z_anti. Hallinan et al. (2023), section 2.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from companion.errors import CompanionError
from companion.lm import models, tokens
from companion.lm.generation import KEPT
from companion.marco.denoisers import adapters
from companion.marco.denoisers.protocol import ROLES, Denoiser
from companion.marco.rewriting import choosing, masking, settings, words
from companion.marco.rewriting.choosing import Candidate
from companion.marco.rewriting.script import Script
from companion.marco.rewriting.settings import Settings
from companion.marco.rewriting.words import Sentence

BATCH = 64  # sentences written together


@dataclass(frozen=True)
class Rewrite:
    """A sentence, its words' divergences, which of them were masked, and the new text.

    Where the experts chose the sentence as it is, no word counts as masked. ``candidates`` are the rewrites
    that they chose among, best first.
    """

    original: str
    text: str
    sentence: Sentence = field(repr=False)
    divergence: Float[np.ndarray, "words"] = field(repr=False)
    masked: list[int] = field(default_factory=list)
    candidates: list[Candidate] = field(default_factory=list)


class Rewriter:
    """Rewrites sentences with a denoiser. The shipped one:

    >>> from companion.marco import Rewriter
    >>> [rewrite] = Rewriter.load()(["What a stupid idea!"])
    >>> rewrite.text
    'What a great idea!'
    """

    def __init__(self, denoiser: Denoiser, settings: Settings) -> None:
        self.denoiser, self.settings = denoiser, settings

    @classmethod
    def load(
        cls,
        folder: Path | None = None,
        *,
        cautious: bool = False,
        published: bool = False,
        several: bool = False,
        threshold: float | None = None,
        keeps: frozenset[str] = frozenset(),
    ) -> Rewriter:
        """The shipped adapters, or those of a folder, with the settings chosen for them.

        Parameters
        ----------
        cautious
            For text of any kind; the usual settings are for text that is toxic.
        published
            Mask and fill as the paper does (its settings for microaggressions).
        several
            Make several rewrites and let the experts choose one, or the text as it is.
        threshold
            Mask words from this score on.
        keeps
            Words that are never masked, in lower case.

        Raises
        ------
        CompanionError
            If adapters or settings are missing, or do not fit the model.
        """
        folder = folder or adapters.FOLDER
        if published:
            found = settings.PUBLISHED["microaggressions"]
        else:
            made = settings.chosen(folder)
            found = made.several if several else made.cautious if cautious else made.usual
            if several and found.choice is None:
                remedy = "make one with `companion make settings`"
                raise CompanionError(f"settings.json in '{folder}' has no choice among rewrites: {remedy}.")
        masks = replace(found.masking, keeps=keeps)
        if threshold is not None:
            masks = replace(masks, threshold=threshold)
        denoiser = adapters.load(models.load(models.EMBEDDED), folder)
        return cls(denoiser, replace(found, masking=masks))

    def __call__(self, texts: Iterable[str]) -> list[Rewrite]:
        """Rewrite each text; a text without a word to mask comes back as it is."""
        texts = tokens.checked(texts)
        sentences = [words.split(self.denoiser, text) for text in texts]
        masks = self.settings.masking
        scores = masking.measured(self.denoiser, sentences, masks)
        blanks = [masking.choose(score, masks) for score in scores]
        choice = self.settings.choice
        if choice is None:
            written = fill(self.denoiser, sentences, blanks, self.settings)
            ranked: list[list[Candidate]] = [[] for _ in texts]
        else:
            ways = [
                replace(self.settings, alpha_expert=expert, alpha_anti=anti, temperature=temperature)
                for expert, anti, temperature in choice.strengths
            ]
            made = zip(*(fill(self.denoiser, sentences, blanks, way) for way in ways), strict=True)
            ranked = choosing.candidates(self.denoiser, sentences, blanks, list(made), choice.loss)
            written = [choosing.best(*row, choice.least) for row in zip(texts, ranked, strict=True)]
            blanks = [
                masked if new != text else []
                for masked, new, text in zip(blanks, written, texts, strict=True)
            ]
        return [Rewrite(*row) for row in zip(texts, written, sentences, scores, blanks, ranked, strict=True)]


def product(
    logits: Float[Tensor, "role rows vocab"], strengths: Sequence[float]
) -> Float[Tensor, "rows vocab"]:
    """Product of experts in logits.

    The temperature divides the base model's only, also in greedy decoding, as published.
    """
    return torch.einsum("r,rnv->nv", torch.tensor(strengths, device=logits.device), logits)


def penalised(
    scores: Float[Tensor, "rows vocab"], seen: Int[Tensor, "rows pos"], penalty: float
) -> Float[Tensor, "rows vocab"]:
    """Push down tokens that stand in ``seen`` (−1: none): divide positive scores, multiply negative ones.

    Source: Keskar et al. (2019).
    """
    scores = torch.nn.functional.pad(scores, (0, 1))  # a place for −1
    at = seen.where(seen >= 0, scores.shape[-1] - 1)
    old = scores.gather(-1, at)
    return scores.scatter(-1, at, torch.where(old > 0, old / penalty, old * penalty))[:, :-1]


def fill(
    denoiser: Denoiser,
    sentences: Sequence[Sentence],
    chosen: Sequence[Sequence[int]],
    settings: Settings,
    cast: tuple[str, str, str] = ROLES,
) -> list[str]:
    """Write each sentence with the chosen words blanked; one without a blank keeps its text.

    ``cast`` is that of :func:`readers`; a role without strength is not asked.
    """

    def steps(i: int) -> tuple[int, int]:
        """About how many tokens are written one by one, and the length: equals go together."""
        sentence, masked = sentences[i], chosen[i]
        span = sentence.words[max(masked)].tokens.stop - sentence.words[min(masked)].tokens.start
        return span if settings.anchored else len(sentence.ids), len(sentence.ids)

    todo = sorted((i for i, masked in enumerate(chosen) if masked), key=steps)
    texts = [sentence.text for sentence in sentences]
    for start in range(0, len(todo), BATCH):
        rows = todo[start : start + BATCH]
        some = [sentences[i] for i in rows]
        sources = [sentences[i].masked(chosen[i], denoiser.mask_id) for i in rows]
        scripts = [
            Script(source, sentence, denoiser, settings.anchored)
            for source, sentence in zip(sources, some, strict=True)
        ]
        asked = [reader for reader in readers(some, sources, settings, cast) if reader.strength]
        written = write(denoiser, scripts, asked, settings.repetition_penalty)
        for i, ids in zip(rows, written, strict=True):
            texts[i] = denoiser.decode(ids)
    return texts


class Reader(NamedTuple):
    """A model in the product: its role, its strength, and what it reads for each target."""

    role: str
    strength: float
    sources: Sequence[list[int]]


def readers(
    sentences: Sequence[Sentence],
    sources: Sequence[list[int]],
    settings: Settings,
    cast: tuple[str, str, str] = ROLES,
) -> list[Reader]:
    """The three models of the product; ``cast`` says who plays base, expert and anti-expert.

    The base alone reads the originals, the others the sources with blanks.
    """
    read = [sentence.ids for sentence in sentences], sources, sources
    return [Reader(*row) for row in zip(cast, settings.strengths, read, strict=True)]


# Is told of each step before the choice: the scripts, what each model says (role, rows, vocab), the scores
# that the choice is made by (rows, vocab), −∞ where the script allows no token.
Observer = Callable[[list[Script], Float[Tensor, "role rows vocab"], Float[Tensor, "rows vocab"]], None]


def write(
    denoiser: Denoiser,
    scripts: Sequence[Script],
    readers: Sequence[Reader],
    repetition_penalty: float = 1.0,
    *,
    observer: Observer | None = None,
) -> list[list[int]]:
    """Write all scripts in step, greedily, with the product of the readers, and return their token ids."""
    begun = [list(script.written) for script in scripts]
    decoding = denoiser.begin(
        [r.role for r in readers for _ in scripts],
        [source for r in readers for source in r.sources],
        begun * len(readers),
    )
    strengths, ids = [r.strength for r in readers], None
    held = list(scripts)  # by the decoding: the others have ended
    while True:
        logits = decoding.step(ids).float().view(len(readers), len(held), -1).cpu()  # role, rows, vocab
        scores = product(logits, strengths)  # rows, vocab
        if repetition_penalty != 1.0:
            seen = tokens.pad([[-1, *script.written] for script in held], "left", -1).ids
            scores = penalised(scores, seen, repetition_penalty)
        for script, row in zip(held, scores, strict=True):
            script.restrict(row)
        if observer:
            observer(held, logits, scores)
        picked = scores.argmax(-1).tolist()
        taken = torch.tensor([script.take(token) for script, token in zip(held, picked, strict=True)])
        going = [k for k, script in enumerate(held) if not script.done]
        if not going:
            return [script.written for script in scripts]
        if len(going) <= KEPT * len(held):
            decoding.keep([r * len(held) + k for r in range(len(readers)) for k in going])
            held, taken = [held[k] for k in going], taken[going]
        ids = taken.repeat(len(readers))  # role · rows
