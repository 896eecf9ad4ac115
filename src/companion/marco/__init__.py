"""Paper 2: MaRCo. Hallinan et al. (2023). The steps in order:

===============  =======  ==================================================================================
package          chapter  step
===============  =======  ==================================================================================
``experts``      9        corrupt sentences; train a base, an expert and an anti-expert to restore them (2.1)
``denoisers``    9 to 11  what the three have in common: read a sentence with blanks, write it whole
``rewriting``    10       mask what expert and anti-expert disagree on (2.1), fill it with their product (2.2)
``evaluation``   11       baselines, judges, scores, ablations, settings (3 and 4)
``records``               what ``companion rewrite`` reads and writes
``command``               ``companion rewrite``
===============  =======  ==================================================================================

``from companion.marco import Rewriter`` is all that rewriting takes
(:class:`companion.marco.rewriting.rewriter.Rewriter`).
"""

from typing import Any


def __getattr__(name: str) -> Any:
    """``Rewriter``, imported when it is asked for: models take long to import."""
    if name == "Rewriter":
        from companion.marco.rewriting.rewriter import Rewriter

        return Rewriter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
