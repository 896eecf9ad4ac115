"""Show toxic text considerately: strong words keep their first letter."""

from __future__ import annotations

import re

# What is masked: shown text is for illustration, scorers always see the original. Some stems are strong
# wherever they stand in a word; short ones, which many harmless words contain (class, cocktail, Dickens), in
# some forms only.
STRONG = (
    "fuck|shit(?!ake)|cunt(?!horpe)|bitch|bastard|puss(?:y(?!cat|foot)|ies)|whore|slut(?!sky)|"
    "(?<!s)wank(?!el)|twat(?!er|ch)|bollock|piss(?!arr)|(?<!s)nigg(?=a(?!rd)|er|uh)|faggot|"
    "retard(?!ant)|trann(?=y|ies)|kike"
)

SHORT = "ass|arse|dick|cock|prick|tits|titties|spic(?!es)|chink|crap|fag|damn|turd"
BEFORE = "dumb|jack|bad|smart|fat|lard|lazy|hard|kick|candy|god"
AFTER = "s|es|ed|ing|it|py|hat|hats|wipe|wipes|hole|holes|head|heads|face|sucker|suckers|sucking"
_WORD = re.compile(rf"\b(\w*?)({STRONG})(\w*)", re.IGNORECASE)
_FORM = re.compile(rf"\b((?:{BEFORE})?)({SHORT})((?:{AFTER})?)\b", re.IGNORECASE)


def censored(text: str) -> str:
    """Replace all but the first letter of strong words by asterisks (``f***``)."""

    def hide(match: re.Match) -> str:
        before, stem, after = match.groups()
        return before + stem[0] + "*" * (len(stem) - 1) + _WORD.sub(hide, after)

    return _FORM.sub(hide, _WORD.sub(hide, text))
