"""What a run would take, chapter by chapter, and whether it fits: from shapes, work and measured rates."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from companion.errors import CompanionError
from companion.lm import models, processes
from companion.plan import shapes, work
from companion.plan.shapes import Shape
from companion.plan.work import Phase
from companion.profiles import Profile

RATES = tomllib.loads(Path(__file__).with_name("rates.toml").read_text(encoding="utf-8"))
GIB = 2.0**30
COUNTS = (1, 2, 4, 8)  # cards that are tried
CARD = 80 * GIB  # a card's memory if nothing is said of it
COPIES = 8  # of the weights: no chapter has more, gradients and optimiser counted


@dataclass(frozen=True)
class Machine:
    """``cards`` GPUs of ``memory`` bytes each; without any the memory is the computer's."""

    cards: int
    memory: float

    @classmethod
    def here(cls) -> Machine:
        """This machine, with as many processes as a run would have."""
        if not models.usable_cuda():
            return cls(0, float(psutil.virtual_memory().total))
        return cls(processes.count(), float(torch.cuda.get_device_properties(0).total_memory))

    @classmethod
    def of(cls, cards: int | None, gib: float | None) -> Machine:
        """So many cards of so many GiB; what is not said is this machine's, and 80 GiB if it has no card."""
        here = cls.here()
        chosen = here.cards if cards is None else cards
        memory = here.memory if bool(chosen) == bool(here.cards) else CARD
        return cls(chosen, memory if gib is None else gib * GIB)

    def besides(self, chapter: str) -> float:
        """Bytes of libraries, and of scorers where a chapter has them."""
        known = RATES["besides"]
        if self.cards:
            return known["card"]
        return known["cpu"] + known["scorers"] * (chapter in work.SCORING)

    def __str__(self) -> str:
        if not self.cards:
            return f"a CPU with {self.memory / GIB:.0f} GiB"
        return f"{self.cards} × {self.memory / GIB:.0f} GiB"


@dataclass(frozen=True)
class Chapter:
    """A chapter's fullest stretch and its bytes on the fullest card; hours, None if no rate is known."""

    name: str
    phase: str
    bytes: float
    hours: float | None
    fits: bool


@dataclass(frozen=True)
class Plan:
    """What a profile would take on a machine; bytes, and hours of the chapters that fit."""

    profile: Profile
    shape: Shape
    machine: Machine
    chapters: list[Chapter]
    download: float
    disk: float
    host: float

    @property
    def fitting(self) -> list[str]:
        return [chapter.name for chapter in self.chapters if chapter.fits]

    @property
    def too_large(self) -> list[Chapter]:
        return [chapter for chapter in self.chapters if not chapter.fits]

    @property
    def hours(self) -> float:
        return sum((chapter.hours or 0.0 for chapter in self.chapters if chapter.fits), 0.0)

    def says(self, chapter: Chapter) -> str:
        """Whether a chapter fits; within a tenth of the memory an estimate cannot be sure."""
        near = chapter.bytes > 0.9 * self.machine.memory
        return ("barely" if near else "yes") if chapter.fits else "no"

    def refusal(self) -> str:
        """One sentence for a plan in which something does not fit: what, by how much, and what would do."""
        worst = max(self.too_large, key=lambda chapter: chapter.bytes)
        names = ", ".join(chapter.name for chapter in self.too_large)
        rest = f"run only {' '.join(self.fitting)}" if self.fitting else "take a smaller model"
        return (
            f"{self.shape.name} does not fit on {self.machine} in: {names}; {worst.name} takes "
            f"{worst.bytes / GIB:.0f} GiB ({worst.phase}): {smallest(self)}, or {rest}."
        )


def plan(profile: Profile, chapters: Sequence[str], machine: Machine, *, stored: bool = False) -> Plan:
    """Estimate a run of some chapters; nothing is loaded or downloaded.

    ``stored``: the DPO model that chapters build on may be in the store, from another machine even.

    Raises
    ------
    CompanionError
        If the shape of the model is not known.
    """
    shape, rows = shapes.of(profile.model), list[Chapter]()
    for name in chapters:
        taken = _taken(work.phases(name, profile), name, shape, machine)
        if name in work.ON_DPO and not stored:
            before = _taken([work.training(profile)], name, shape, machine)
            taken += [one for one in before if one[0] > machine.memory]
        most, what = max(taken, default=(machine.besides(name), "no model"))
        rows.append(Chapter(name, what, most, _hours(name, profile, shape, machine), most <= machine.memory))
    kept = sum(work.trainings(row.name, profile) for row in rows if row.fits)
    other_models = profile.experts == "bart" and work.MARCO.intersection(chapters)
    besides = RATES["besides"]["download"] if other_models else 0.0
    download = (shape.download or 4.0 * shape.parameters) + besides
    # a checkpoint of weights and averages stands beside the one before it, and the best weights by them
    disk = download + 4.0 * shape.parameters * (kept + 5 * bool(kept)) + RATES["besides"]["disk"]
    host = 4.0 * shape.parameters * max(1, machine.cards)
    return Plan(profile, shape, machine, rows, download, disk, host)


def _taken(phases: Iterable[Phase], name: str, shape: Shape, machine: Machine) -> list[tuple[float, str]]:
    """Bytes of each stretch of a chapter, all counted, and what it is."""
    return [(machine.besides(name) + needed(phase, shape, machine), phase.what) for phase in phases]


def needed(phase: Phase, shape: Shape, machine: Machine) -> float:
    """Bytes of models and work on the fullest card, or in a computer without cards."""
    from companion.plan import tracing  # which imports what trains: a run that has room need not wait for it

    one, cards = 4.0 * shape.parameters, max(1, machine.cards)
    copies = phase.copies + (phase.more if cards > 1 else 0)
    found = copies * one + 4 * phase.others
    if not phase.trained:
        return found + tracing.beside_weights(shape.name, phase.kind, phase.rows, phase.width)
    # RMSprop on a card takes the square roots of all averages at once: as many bytes again as the weights
    roots = one if machine.cards else 0.0
    if phase.shared and cards > 1:
        # weights and gradients of what is put together: a layer, the next one, and what is outside of layers
        whole = 8 * (shape.outside + 2 * shape.layer)
        passing = tracing.kept_for_gradient(shape.name, -(-phase.rows // cards)) + whole
        parts = 3 if phase.kind == "comparing" else 2  # what it is compared with is cut, too
        return found + parts * one / cards + max(passing, (one + roots) / cards)
    passing = tracing.beside_weights(shape.name, phase.kind, phase.rows)
    return found + 2 * one + max(passing, one + roots)


def smallest(found: Plan) -> str:
    """The least setting in which all chapters fit: more such cards, or larger ones."""

    def fullest(cards: int) -> float:
        names, machine = [chapter.name for chapter in found.chapters], Machine(cards, math.inf)
        phases = [(name, list(work.phases(name, found.profile))) for name in names]
        phases += [(name, [work.training(found.profile)]) for name in names if name in work.ON_DPO]
        return max(one for name, some in phases for one, _ in _taken(some, name, found.shape, machine))

    if not found.machine.cards:
        return f"all fit in {fullest(0) / GIB:.0f} GiB"
    most = {cards: fullest(cards) for cards in COUNTS}
    enough = [cards for cards in COUNTS if most[cards] <= found.machine.memory]
    if enough:
        return f"all fit on {enough[0]} such cards"
    cards = min(COUNTS, key=lambda cards: (most[cards], cards))
    return f"all fit on {cards} {'card' if cards == 1 else 'cards'} of {most[cards] / GIB:.0f} GiB"


def refuse(profile: Profile, chapters: Sequence[str]) -> None:
    """Refuse to begin what cannot end on this machine.

    Where eight copies of the weights take no more than half of the memory, or the model's shape is not
    known, nothing is looked at: what has room need not wait.

    Raises
    ------
    CompanionError
        If a chapter does not fit: the sentence has the numbers.
    """
    try:
        parameters = shapes.of(profile.model).parameters
    except CompanionError:
        return
    machine = Machine.here()
    if COPIES * 4 * parameters <= machine.memory / 2:
        return
    if (found := plan(profile, chapters, machine, stored=True)).too_large:
        raise CompanionError(found.refusal())


def _hours(chapter: str, profile: Profile, shape: Shape, machine: Machine) -> float | None:
    """Hours of a chapter at the measured rates; what is dealt out is divided by the number of cards.

    On a CPU much of the time is not the model's, so that its passes say too little: there are none.
    """
    done, n, rates = work.amounts(chapter, profile), machine.cards, RATES["card"]
    if done is None or not n:
        return None
    each = {kind: seconds(rates[kind], shape.parameters) for kind in ("write", "read", "learn", "steer")}
    passes = done.written / 1000 * each["write"] + done.read / 1000 * each["read"]
    step = math.ceil(profile.dpo_batch / rates["pairs"]) * each["learn"]
    total = passes / (n if done.shared else 1) + done.learned * step
    total += done.steered * each["steer"] / n + done.scored / 1000 * rates["score"]
    return total / 3600


def seconds(measured: Sequence[Sequence[float]], parameters: int | float) -> float:
    """Seconds of a piece of work for a model of so many parameters.

    ``measured`` has pairs of parameters and seconds. Between two of them the logarithms are interpolated;
    beyond the largest, time grows with the arithmetic, which is proportional to the parameters, and below the
    smallest it shrinks with it.
    """
    sizes, times = zip(*measured, strict=True)
    if parameters <= sizes[0] or parameters >= sizes[-1]:
        size, time = measured[0 if parameters <= sizes[0] else -1]
        return time * parameters / size
    above = next(i for i, size in enumerate(sizes) if size > parameters)
    low, high = math.log(sizes[above - 1]), math.log(sizes[above])
    share = (math.log(parameters) - low) / (high - low)
    return times[above - 1] ** (1 - share) * times[above] ** share
