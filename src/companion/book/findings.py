"""Sentences for the landing page on what was found: each is chosen by a verdict."""

from __future__ import annotations

from collections.abc import Mapping

from companion.book import claims
from companion.book.claims import Results, Verdict

# What a verdict on a claim says, for a reader who has not met the claim. *In part* is made of *holds*.
SAYINGS: Mapping[str, Mapping[Verdict, str]] = {
    "dpo": {
        Verdict.HOLDS: "**DPO lowers toxicity** by more than trainings on shuffled preferences do, "
        "which have nothing to teach.",
        Verdict.NOT: "**DPO hardly lowers toxicity** beyond what trainings on shuffled preferences do, "
        "which have nothing to teach.",
        Verdict.OPEN: "**Whether that is more** than trainings on shuffled preferences bring, which have "
        "nothing to teach, **cannot be told**.",
    },
    "not-enough": {
        Verdict.HOLDS: "**Switching toxic neurons off is not enough**: the DPO model is less toxic than the "
        "base model without its 200 most toxic neurons.",
        Verdict.NOT: "**Switching toxic neurons off does as much**: the DPO model is hardly less toxic than "
        "the base model without its 200 most toxic neurons.",
        Verdict.OPEN: "**Whether switching toxic neurons off is enough** to do what DPO does **cannot be "
        "told**.",
    },
    "share": {
        Verdict.HOLDS: "**Toxic neurons hold a larger share** of DPO's change than of the difference between "
        "two readings of one model.",
        Verdict.NOT: "**The share of toxic neurons tells little of DPO**: of the difference between two "
        "readings of one model, they hold nearly the same.",
        Verdict.OPEN: "**Whether toxic neurons hold a larger share** of DPO's change than of the difference "
        "between two readings of one model **cannot be told**.",
    },
    "marco": {
        Verdict.HOLDS: "**MaRCo's rewrites are less toxic** than the sentences that they replace.",
        Verdict.NOT: "**MaRCo's rewrites are hardly less toxic** than the sentences that they replace.",
        Verdict.OPEN: "**Whether MaRCo's rewrites are less toxic** than the sentences that they replace "
        "**cannot be told**.",
    },
    "marco-better": {
        Verdict.HOLDS: "In toxicity, meaning and fluency together they are better than deleting words.",
        Verdict.NOT: "In toxicity, meaning and fluency together they are hardly better than deleting words.",
        Verdict.OPEN: "Whether they are better than deleting words, in toxicity, meaning and fluency "
        "together, cannot be told.",
    },
}


def of(results: Results, edition: Results) -> dict[str, str]:
    """A sentence on each claim of the landing page, by its id: what the verdict of these results says.

    Where they cannot tell, the edition of the same profile is asked, which rests on more.
    """
    here, there = (
        {ruling.claim.id: ruling.verdict for ruling in claims.rulings(found)} for found in (results, edition)
    )
    quotes = {claim.id: claim.quote for claim in claims.load()}
    said = {}
    for one in SAYINGS:
        more = here.get(one) is Verdict.OPEN and there.get(one, Verdict.OPEN) is not Verdict.OPEN
        sentence = _saying(one, (there if more else here).get(one), quotes[one])
        said[one] = f"{sentence} (So says the edition; this run is too small for it.)" if more else sentence
    return said


def _saying(claim: str, verdict: Verdict | None, quote: str) -> str:
    if verdict is None:
        return f"This run does not test whether {quote}."
    if verdict is Verdict.PART:
        return f"By one scorer of two, but not by the other: {SAYINGS[claim][Verdict.HOLDS]}"
    return SAYINGS[claim][verdict]
