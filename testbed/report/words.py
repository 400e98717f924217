"""What the report says, in the reader's language: a file of messages for each but English."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from testbed.claims.model import Kind, Verdict
from testbed.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

FOLDER = Path(__file__).parent / "locale"
#: By their name in the command line; the value is for the page's ``lang`` attribute.
LANGUAGES = {"en": "en", "zh": "zh-Hans"}
#: Words of the catalogue that the templates ask for by a variable.
FROM_CATALOGUE = (*get_args(Verdict), *get_args(Kind))


@dataclass(frozen=True, slots=True)
class Words:
    """Messages of one language, in gettext's manner: the English text is the key."""

    lang: str
    messages: Mapping[str, str]

    def gettext(self, message: str) -> str:
        return self.messages.get(message, message)

    def ngettext(self, singular: str, plural: str, n: float) -> str:
        """Of two messages that for ``n``; a language without plurals translates the plural."""
        if plural in self.messages:
            return self.messages[plural]
        return singular if n == 1 else plural


@functools.cache
def words(lang: str) -> Words:
    """The messages of a language.  Raises UsageError for one that there is no file of."""
    if lang not in LANGUAGES:
        raise UsageError(f"no report in {lang!r}", hint=f"there are: {', '.join(LANGUAGES)}")
    if lang == "en":
        return Words(lang, {})
    import yaml

    text = (FOLDER / f"{lang}.yaml").read_text(encoding="utf-8")
    return Words(lang, yaml.safe_load(text))
