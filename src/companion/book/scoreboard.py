"""The scoreboard: the papers' claims beside what this run, the editions and both scorers say of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from companion.book import claims, editions, plots, record
from companion.book.claims import Claim, Results, Ruling, Verdict
from companion.metrics.estimates import Estimate

THIS_RUN = "this run"
COLOURS = {
    Verdict.HOLDS: plots.DPO,
    Verdict.PART: plots.CONTROL,
    Verdict.NOT: plots.ACCENT,
    Verdict.OPEN: plots.BASE,
}


def columns(profile: str) -> dict[str, Results]:
    """Results by column: of the run at hand (without one, of its profile's edition) and of the editions."""
    made = {name: editions.load(name)["results"] for name in editions.names()}
    here = _current(profile) or made.pop(profile, {})
    return {THIS_RUN: here, **{f"edition {name}": found for name, found in made.items()}}


def _current(profile: str) -> Results:
    """Results of the run at hand; none in Colab, which has no runs, nor the tools of the book's makers."""
    try:
        from companion.book import runs
    except ModuleNotFoundError:
        return {}
    return runs.current(profile)


def table(found: Mapping[str, Results]) -> pd.DataFrame:
    """A row per claim: what was published, and in each column contrast, second scorer's, and verdict."""
    listed = claims.load()
    said = {column: {r.claim.id: r for r in claims.rulings(results)} for column, results in found.items()}
    return pd.DataFrame(
        {
            "claim": claim.quote,
            "source": claim.place,
            "published": claim.published,
            **{
                column: _cell(claim, results, said[column].get(claim.id)) for column, results in found.items()
            },
        }
        for claim in listed
    )


def verdicts(results: Results) -> dict[str, str]:
    """The verdict on each claim that these results test, by its id."""
    return {ruling.claim.id: str(ruling.verdict) for ruling in claims.rulings(results)}


BADGES = {Verdict.HOLDS: "success", Verdict.PART: "warning", Verdict.NOT: "danger", Verdict.OPEN: "muted"}


def badges(chapter: str, said: Mapping[str, Any]) -> str:
    """The verdicts on a chapter's claims as Markdown, each a link to the scoreboard; empty if it has none.

    ``said`` are the texts of a run, among them what the scoreboard stores: verdicts corrected for all claims.
    """
    lines = []
    for claim in claims.load():
        verdict = said.get("scoreboard_" + claim.id.replace("-", "_"))
        if chapter in (claim.chapter, *claim.also) and verdict in list(Verdict):
            colour = BADGES[Verdict(verdict)]
            lines.append(f"{{bdg-ref-{colour}}}`{verdict} <12_scoreboard>` {claim.quote}")
    return "\\\n".join(lines)


def conclude(*ids: str) -> None:
    """Store ``verdict_{id}`` for a chapter's prose: what its contrasts say of claims, in a sentence.

    Corrected for the contrasts of this chapter only; the scoreboard corrects for all. What an edition, which
    rests on more, says otherwise is said, too.
    """
    asked = [claim for claim in claims.load() if claim.id in ids]
    for ruling in claims.rulings(record.recorded(), asked):
        name = "verdict_" + ruling.claim.id.replace("-", "_")
        record.text(name, f"**{ruling.verdict}** ({ruling.because}){_elsewhere(ruling)}")


def _elsewhere(ruling: Ruling) -> str:
    """What editions say that is not what this run says."""
    said = []
    for name in editions.names():
        found = verdicts(editions.load(name)["results"]).get(ruling.claim.id)
        if found not in (None, Verdict.OPEN, ruling.verdict):
            said.append(f"; in the edition of the profile *{name}* it **{found}**")
    return "".join(said)


def _cell(claim: Claim, results: Results, ruling: Ruling | None) -> str:
    if ruling is None:
        return "not in this run"
    beside = [f"second scorer {_shown(results[claim.second])}"] if claim.second in results else []
    nulls = [null for null in claim.nulls if null in results]
    if nulls:  # the one that looks most like an effect
        nearest = max(nulls, key=lambda null: (results[null]["value"] - claim.zero) / claim.least)
        beside.append(f"nothing there {_shown(results[nearest])}")
    return "; ".join([f"**{ruling.verdict}**: {_shown(results[claim.result])}", *beside])


def _shown(result: Mapping[str, Any]) -> str:
    e = estimate(result)
    return f"{e:+.3f}, n = {e.n:,}"


def estimate(result: Mapping[str, Any]) -> Estimate:
    """A recorded result as an estimate."""
    return Estimate(result["value"], result["low"], result["high"], result["n"])


def figure(results: Results) -> Figure:
    """Each contrast in units of its least interesting effect: 0 is nothing, 1 is enough to matter.

    A mark per claim with its interval, hollow for its nulls, in the colour of its verdict.
    """
    found = claims.rulings(results)
    figure, ax = plt.subplots(figsize=(7.5, 0.48 * len(found) + 1.4))
    for row, ruling in enumerate(found):
        claim, colour = ruling.claim, COLOURS[ruling.verdict]
        shown = {claim.result: ("o", colour, 0.0), claim.second: ("s", "none", 0.17)}
        shown |= dict.fromkeys(claim.nulls, ("|", "none", -0.17))
        for name, (marker, face, off) in shown.items():
            if name in results:
                e = _scaled(results[name], claim)
                ax.errorbar(
                    e.value,
                    row + off,
                    xerr=plots.reach([e]),
                    fmt=marker,
                    color=colour,
                    mfc=face,
                    ms=5,
                    lw=1.2,
                )
    ax.axvline(0, color=plots.INK, lw=1)
    ax.axvline(1, color=plots.INK, lw=1, ls="--")
    ax.set(
        yticks=range(len(found)),
        yticklabels=[ruling.claim.quote for ruling in found],
        ylim=(len(found) - 0.5, -0.5),
        xlabel="effect, in units of the least that would matter (dashed)",
        title="Does that result hold?",
    )
    ax.set_xscale("symlog", linthresh=2)
    return figure


def picture(results: Results) -> Figure:
    """The shares of gross of the four groups for DPO, and for the base model against itself.

    With intervals over blocks of prompts; the second panel is what the same accounting shows of nothing.
    """
    panels = {"own": "DPO model against base model", "null_prompts": "base model against itself"}
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.4), sharey=True)
    for ax, (key, title) in zip(axes, panels.items(), strict=True):
        found = [results.get(f"controls_{key}_{group}") for group in plots.GROUPS]
        for x, (result, colour) in enumerate(zip(found, plots.GROUPS.values(), strict=True)):
            if result and result["value"] is not None:
                e = estimate(result)
                ax.bar(x, 100 * e.value, yerr=100 * plots.reach([e]), color=colour, width=0.7, **_WHISKERS)
                ax.annotate(f"{e.value:.0%}", (x, 2), ha="center", color="white", weight="bold")
        ax.set(xticks=range(4), xticklabels=[f"{of}\n{sign}" for of, sign in _OF_GROUPS], title=title)
    axes[0].set_ylabel("share of the reduction, %")
    figure.tight_layout()
    return figure


_WHISKERS: dict[str, Any] = {"capsize": 4, "error_kw": {"ecolor": plots.INK}}
_OF_GROUPS = [(kind, sign) for kind in ("toxic,", "anti-toxic,") for sign in ("positive", "negative")]


def _scaled(result: Mapping[str, Any], claim: Claim) -> Estimate:
    value, low, high = ((result[key] - claim.zero) / claim.least for key in ("value", "low", "high"))
    return Estimate(value, min(low, high), max(low, high), result["n"])
