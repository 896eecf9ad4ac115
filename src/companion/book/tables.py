"""Tables for the book's pages; toxic text is shown considerately, masked by default."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from pandas.io.formats.style import Styler

from companion.book import published_values
from companion.book.censor import censored
from companion.mechanism.exam import Outcome
from companion.mechanism.trials import Trial
from companion.metrics.estimates import Estimate


def samples(rows: pd.DataFrame) -> Styler:
    """A table of texts, masked and HTML-escaped, without an index, aligned to the left."""
    masked = rows.reset_index(drop=True).map(lambda cell: censored(cell) if isinstance(cell, str) else cell)
    return masked.style.hide(axis="index").format(escape="html").set_properties(**{"text-align": "left"})


def numbers(rows: pd.DataFrame) -> Styler:
    """A table of numbers with intervals: one line per row, in small type; the page scrolls one too wide."""
    small = {"text-align": "left", "font-size": "0.8rem"}
    cells = {"white-space": "nowrap", "padding": "0.15rem 0.8rem 0.15rem 0"}
    shown = rows.reset_index(drop=True).style.hide(axis="index").format(escape="html")
    heads = [{"selector": "th", "props": list(small.items())}]
    return shown.set_properties(**small, **cells).set_table_styles(heads)


def method_row(name: str, outcome: Outcome, base: Outcome, seed: int = 0) -> dict[str, str]:
    """A line of a table of methods: metrics with intervals, changes against ``base`` paired by text."""
    s = outcome.summary(base, seed)
    rise = s["perplexity_rise"]
    factor = Estimate(1 + rise.value, 1 + rise.low, 1 + rise.high, rise.n)
    return {
        "method": name,
        "toxicity": f"{s['toxicity']:.3f}",
        "drop": f"{s['drop']:.0%}",
        "perplexity": f"{s['perplexity']:.3g}",
        "perplexity / base": f"{factor:.3g}",
        "F1": f"{s['f1']:.3f}",
    }


def published(intervention: str, source: str, setting: str = "gpt2-medium") -> str:
    """Toxicity / perplexity / F1 of a row of the papers' tables, for a column beside our own.

    Raises
    ------
    ValueError
        If the table has no such row, or several.
    """
    rows = published_values.rows(intervention=intervention, source=source, setting=setting)
    rows = rows.set_index("metric").value
    if not rows.index.is_unique or "toxicity" not in rows:
        raise ValueError(f"'{intervention}' of {source} is not one row of published.csv")
    return f"{rows['toxicity']:.3f} / {rows['perplexity']:.2f} / {rows['f1']:.3f}"


def trial_row(trial: Trial, outcome: Outcome, base: Outcome, seed: int = 0) -> dict[str, str]:
    """:func:`method_row` of a trial, with the published row that it repeats beside it."""
    row = method_row(trial.label, outcome, base, seed)
    return {**row, "published": published(*trial.published) if trial.published else ""}


def verdict_row(texts: str, method: str, s: Mapping[str, Estimate]) -> dict[str, str | int]:
    """A line of chapter 11's tables: what a method makes of some texts, from a verdict's summary."""
    return {
        "set": texts,
        "method": method,
        "toxicity": f"{s['toxicity']:.3f}",
        "drop": f"{s['drop']:.0%}",
        "lexical": f"{s['lexical'].value:.3f}",
        "similarity": f"{s['similarity']:.3f}",
        "BERTScore": f"{s['bertscore'].value:.3f}",
        "BLEU": f"{s['bleu'].value:.2f}",
        "perplexity": f"{s['perplexity'].value:.1f}",
        "perplexity / original": f"{s['perplexity_ratio']:.2f}",
        "J": f"{s['joint']:.3f}",
        "graded J": f"{s['graded']:.3f}",
        "changed": f"{s['changed'].value:.0%}",
        "n": s["drop"].n,
    }
