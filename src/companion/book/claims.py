"""The papers' claims, ``data/claims.toml``, and what results say of each.

A claim is tested by one contrast: a recorded result with its 95 % interval, the value that it has if nothing
is there (``zero``), and the least effect that would matter (``least``; negative if the claim says *lower*).
Its ``nulls`` are results of the same kind in which nothing is there: the same rule must fail on them.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from scipy.stats import t

from companion import paths
from companion.errors import CompanionError

SIGNIFICANT = 0.05
Results = Mapping[str, Mapping[str, Any]]  # of ``results.json``: value, low, high by name


class Verdict(StrEnum):
    """What results say of a claim."""

    HOLDS = "holds"
    PART = "holds in part"
    NOT = "does not hold here"
    OPEN = "cannot be told"


@dataclass(frozen=True)
class Claim:
    """What a paper says, and the contrast that tests it.

    ``second`` is the same contrast under the second scorer, which chose nothing; ``also`` are chapters that
    are about the claim, too.
    """

    id: str
    chapter: str
    source: str
    place: str
    quote: str
    published: str
    contrast: str
    zero: float
    least: float
    result: str
    second: str = ""
    nulls: tuple[str, ...] = ()
    also: tuple[str, ...] = ()

    @property
    def tested_by(self) -> list[str]:
        """Names of all results that decide."""
        return [name for name in (self.result, self.second, *self.nulls) if name]


@dataclass(frozen=True)
class Ruling:
    """The verdict on a claim, and what decided it, as the end of a sentence."""

    claim: Claim
    verdict: Verdict
    because: str


def load() -> list[Claim]:
    """The claims in the order of the chapters."""
    with (paths.DATA / "claims.toml").open("rb") as file:
        listed = tomllib.load(file)["claim"]
    lists = ("nulls", "also")
    return [Claim(**one | {name: tuple(one.get(name, ())) for name in lists}) for one in listed]


def rule(result: Mapping[str, Any], zero: float, least: float) -> Verdict:
    """What one interval says of an effect in the direction of ``least``.

    It *holds* if the interval excludes ``zero`` and reaches ``least``, *does not hold here* if no effect in
    the interval is as large as ``least``, and *cannot be told* if the interval has room for both.
    """
    low, high = _effect(result, zero, least)
    if high < abs(least):
        return Verdict.NOT
    return Verdict.HOLDS if low > 0 else Verdict.OPEN


def _effect(result: Mapping[str, Any], zero: float, least: float) -> tuple[float, float]:
    """The interval as an effect that is positive if the claim is true."""
    ends = [(end - zero) * (1 if least > 0 else -1) for end in (result["low"], result["high"])]
    return min(ends), max(ends)


def rulings(results: Results, claims: Sequence[Claim] | None = None) -> list[Ruling]:
    """Verdicts on the claims whose contrast the results have; all together they err in 5 % at most (Holm).

    Raises
    ------
    CompanionError
        If a contrast has no interval.
    """
    tested = [claim for claim in (load() if claims is None else claims) if claim.result in results]
    for claim in tested:
        if results[claim.result].get("low") is None:
            raise CompanionError(f"'{claim.result}', the contrast of '{claim.id}', has no interval.")
    sure = holm([_p_value(results[claim.result], claim.zero) for claim in tested])
    return [_ruling(claim, results, held) for claim, held in zip(tested, sure, strict=True)]


def _ruling(claim: Claim, results: Results, sure: bool) -> Ruling:
    verdict = rule(results[claim.result], claim.zero, claim.least)
    for null in claim.nulls:
        if null in results and rule(results[null], claim.zero, claim.least) is Verdict.HOLDS:
            return Ruling(claim, Verdict.OPEN, "the same rule passes where nothing is there")
    if verdict is Verdict.HOLDS and not sure:
        return Ruling(claim, Verdict.OPEN, "one of so many contrasts may come out like this by chance")
    if claim.second not in results:
        return Ruling(claim, verdict, _REASON[verdict])
    other = rule(results[claim.second], claim.zero, claim.least)
    if other is verdict:
        return Ruling(claim, verdict, f"{_REASON[verdict]}, under both scorers")
    if Verdict.HOLDS in (verdict, other):
        return Ruling(claim, Verdict.PART, "only one of the two scorers says so")
    return Ruling(claim, Verdict.OPEN, "one scorer has room for an effect that matters, the other has not")


_REASON = {
    Verdict.HOLDS: "the interval excludes no effect and reaches one that matters",
    Verdict.NOT: "no effect in the interval would matter",
    Verdict.OPEN: "the interval has room for none and for one that matters",
}


def _p_value(result: Mapping[str, Any], zero: float) -> float:
    """Two-sided, of Student's t with the interval's width and two degrees of freedom less than units.

    So it is for a run against the mean of others (:func:`companion.metrics.estimates.beyond`): few units
    make far values more likely than a normal distribution says. With many units the two are the same.
    """
    freedom = max(1, result.get("n", 10**6) - 2)
    error = (result["high"] - result["low"]) / (2 * t.ppf(0.975, freedom))
    away = abs(result["value"] - zero)
    return 2 * float(t.sf(away / error, freedom)) if error else float(away == 0)


def holm(p_values: Iterable[float]) -> list[bool]:
    """Which of several tests remain significant (Holm, 1979)."""
    p_values = list(p_values)
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    kept = [False] * len(p_values)
    for rank, i in enumerate(order):
        if p_values[i] > SIGNIFICANT / (len(p_values) - rank):
            break
        kept[i] = True
    return kept
