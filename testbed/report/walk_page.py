"""A walk as an HTML page of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from markupsafe import Markup

from testbed import __version__
from testbed.report.html import digest, environment, stylesheet
from testbed.report.walks import view
from testbed.report.words import words

if TYPE_CHECKING:
    from testbed.walk.compare import Difference
    from testbed.walk.model import Walk


def page(walk: Walk, *, lang: str = "en", difference: Difference | None = None) -> str:
    """Return a walk as one HTML file, which loads nothing and has no script.

    With ``difference``, that to another walk is shown first. Raises UsageError for a language
    without translation.
    """
    spoken = words(lang)
    style = stylesheet()
    return (
        environment(spoken)
        .get_template("walk.html.j2")
        .render(
            lang=spoken.tag,
            version=__version__,
            walk=view(walk, spoken, id="walk"),
            difference=difference,
            style=Markup(style),  # noqa: S704  our own file
            style_hash=digest(style),
        )
    )
