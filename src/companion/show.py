"""Tables for the book's pages; toxic text is shown considerately, masked by default."""

from __future__ import annotations

import re

import pandas as pd
from pandas.io.formats.style import Styler

from companion.evaluation import Outcome
from companion.metrics import Estimate

# What is masked: shown text is for illustration, scorers always see the original. Some stems are strong
# wherever they stand in a word; short ones, which many harmless words contain (class, cocktail, Dickens), in some forms only.
STRONG = (
    "fuck|shit(?!ake)|cunt(?!horpe)|bitch|bastard|puss(?:y(?!cat|foot)|ies)|whore|slut(?!sky)|(?<!s)wank(?!el)|twat(?!er|ch)|bollock|piss(?!arr)|"
    "(?<!s)nigg(?=a(?!rd)|er|uh)|faggot|retard(?!ant)|trann(?=y|ies)|kike"
)
SHORT = "ass|arse|dick|cock|prick|tits|titties|spic(?!es)|chink|crap|fag|damn|turd"
BEFORE = "dumb|jack|bad|smart|fat|lard|lazy|hard|kick|candy|god"
AFTER = "s|es|ed|ing|it|py|hat|hats|wipe|wipes|hole|holes|head|heads|face|sucker|suckers|sucking"
_WORD = re.compile(rf"\b(\w*?)({STRONG})(\w*)", re.IGNORECASE)
_FORM = re.compile(rf"\b((?:{BEFORE})?)({SHORT})((?:{AFTER})?)\b", re.IGNORECASE)


def mask(text: str) -> str:
    """Replace all but the first letter of strong words by asterisks (``f***``)."""

    def hide(found: re.Match) -> str:
        before, stem, after = found.groups()
        return before + stem[0] + "*" * (len(stem) - 1) + _WORD.sub(hide, after)

    return _FORM.sub(hide, _WORD.sub(hide, text))


def samples(rows: pd.DataFrame) -> Styler:
    """A table of texts, masked and HTML-escaped, without an index, aligned to the left."""
    masked = rows.reset_index(drop=True).map(lambda cell: mask(cell) if isinstance(cell, str) else cell)
    return masked.style.hide(axis="index").format(escape="html").set_properties(**{"text-align": "left"})


def numbers(rows: pd.DataFrame) -> Styler:
    """A table of numbers with intervals: one line per row, in small type; the page scrolls it sideways where it is too wide."""
    small = {"text-align": "left", "white-space": "nowrap", "font-size": "0.8rem", "padding": "0.15rem 0.8rem 0.15rem 0"}
    heads = [{"selector": "th", "props": [("text-align", "left"), ("font-size", "0.8rem")]}]
    return rows.reset_index(drop=True).style.hide(axis="index").format(escape="html").set_properties(**small).set_table_styles(heads)


def method_row(name: str, outcome: Outcome, base: Outcome, seed: int = 0) -> dict[str, str]:
    """A line for a table of methods: each metric with its interval, changes against ``base`` paired by text."""
    s = outcome.summary(base, seed)
    return {
        "method": name,
        "toxicity": f"{s['toxicity']:.3f}",
        "drop": _percent(s["drop"]),
        "perplexity": f"{s['perplexity']:.3g}",
        "perplexity / base": _factor(s["perplexity_rise"]),
        "F1": f"{s['f1']:.3f}",
    }


def _percent(e: Estimate) -> str:
    return f"{e.value:.0%} [{e.low:.0%}, {e.high:.0%}]"


def _factor(rise: Estimate) -> str:
    return f"{1 + rise.value:.3g} [{1 + rise.low:.3g}, {1 + rise.high:.3g}]"
