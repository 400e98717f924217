"""The report's words in the reader's language, from message files."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from testbed.claims.model import Kind, Verdict
from testbed.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

FOLDER = Path(__file__).parent / "locale"
#: Keys are the command line's names, values are for the page's ``lang`` attribute.
LANGUAGES = {"en": "en", "zh": "zh-Hans"}
#: Words of the catalogue that the templates translate through a variable.
FROM_CATALOGUE = (*get_args(Verdict), *get_args(Kind))


@dataclass(frozen=True, slots=True)
class Words:
    """Messages of one language, as in gettext: the English text is the key."""

    lang: str
    tag: str  #: for the page's ``lang`` attribute
    messages: Mapping[str, str] = field(hash=False)

    def gettext(self, message: str) -> str:
        return self.messages.get(message, message)

    def ngettext(self, singular: str, plural: str, n: float) -> str:
        """Return the message for ``n``; languages without plurals translate the plural."""
        if plural in self.messages:
            return self.messages[plural]
        return singular if n == 1 else plural


def words(lang: str, others: Collection[str] = ()) -> Words:
    """Return the messages of a language.

    A language of ``others``, those of the claims, has the messages of its base language (``zh``
    for ``zh-Hant``), else English ones.  Raises UsageError for any other language.
    """
    if lang in LANGUAGES:
        return _words(lang)
    if lang in others:
        base = _words(lang.partition("-")[0] if lang.partition("-")[0] in LANGUAGES else "en")
        return Words(lang, base.tag, base.messages)
    known = ", ".join(dict.fromkeys([*LANGUAGES, *sorted(others)]))
    raise UsageError(f"no translation of the report for {lang!r}", hint=f"languages: {known}")


@functools.cache
def _words(lang: str) -> Words:
    if lang == "en":
        return Words(lang, LANGUAGES[lang], {})
    import yaml

    text = (FOLDER / f"{lang}.yaml").read_text(encoding="utf-8")
    return Words(lang, LANGUAGES[lang], yaml.safe_load(text))
