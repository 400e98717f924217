"""A run as one HTML file that needs no network and no other file.

:func:`render` takes the output of ``verify --json``.  All text from a lab is
escaped; the only markup passed through is that of the drawings and charts of
this package.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape as escape_html
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from testbed.claims.model import JUDGEMENTS, WALK, texts
from testbed.claims.observation import spread
from testbed.registry import ROLES
from testbed.report import charts, picture, walks
from testbed.report.data import current, tested
from testbed.report.words import Words, words
from testbed.walk.model import Walk
from testbed.walk.render.words import pieces

TEMPLATES = Path(__file__).parent / "templates"
ORDER = (
    "confirmed", "conditional", "contradicted", "inconclusive", "skipped", "not testable",
    "failed", "undecided",
)  # fmt: skip
OTHER_THAN_SAID = ("contradicted", "conditional")
#: Approximate octets of all evidence in a report, and the output lengths to try until it fits.
BUDGET = 2_000_000
LIMITS = (1_000_000, 20_000, 10_000, 6_000, 4_000, 2_500, 1_600, 1_000, 600)
MARKUP = 160  # octets of markup for each piece of evidence

PACKET = re.compile(
    r"(?P<time>\d+\.\d+) (?:(?P<smac>[0-9a-f:]{17}) > (?P<dmac>[0-9a-f:]{17}) )?"
    r"(?:(?P<src>[0-9a-f.:]+) > (?P<dst>[0-9a-f.:]+) (?P<what>.+?) "
    r"ttl (?P<ttl>\d+) ip-id (?P<id>\d+) length (?P<length>\d+)|(?P<rest>(?:ARP|ethertype) .+))"
)


def render(run: Mapping[str, Any], *, lang: str = "en") -> str:
    """Render the report of a run, given as ``verify --json`` writes it.

    Raises UsageError for data of another version, or for a language without
    translation.
    """
    run = current(run)
    spoken = words(lang, of_run(run))
    page = _Page(run, spoken)
    style, script = stylesheet(), _asset("report.js")
    template = environment(spoken).get_template("report.html.j2")
    return template.render(
        lang=spoken.tag,
        page=page,
        run=run,
        style=Markup(style),  # noqa: S704  our own file
        script=Markup(script),  # noqa: S704  our own file
        style_hash=digest(style),
        script_hash=digest(script),
    )


def of_run(run: Mapping[str, Any]) -> set[str]:
    """Return the languages in which a run has claims or titles."""
    found = {lang for claim in run["claims"] for lang in claim["translations"]}
    for document in run["documents"]:
        found |= {document["claims_in"], document["language"], *document["titles"]}
    return found


def stylesheet() -> str:
    """Return the style of the page, and of the drawings in it."""
    return _asset("report.css") + _asset("walk.css")


@functools.cache
def environment(spoken: Words) -> Environment:
    """Return the templates in the language of ``spoken``."""
    found = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        extensions=["jinja2.ext.i18n", "jinja2.ext.do"],
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.install_gettext_callables(  # type: ignore[attr-defined]  # of the extension
        spoken.gettext, spoken.ngettext, newstyle=True
    )
    found.filters |= {
        "duration": duration,
        "memory": memory,
        "pieces": pieces,
        "slug": slug,
        "ticks": ticks,
        "quotes": quotes,
    }
    return found


def _asset(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def digest(text: str) -> str:
    """Hash one of our styles or scripts for the page's Content-Security-Policy."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def duration(seconds: float) -> str:
    """Format a duration for reading.

    >>> duration(0.0042), duration(0.25), duration(58.13), duration(247)
    ('4 ms', '250 ms', '58.1 s', '4 min 7 s')
    """
    if seconds < 0.001:
        return "< 1 ms"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"


def memory(size: float) -> str:
    """Format octets as GiB.

    >>> memory(8 << 30)
    '8.0 GiB'
    """
    return f"{size / (1 << 30):.1f} GiB"


def slug(text: str) -> str:
    """Turn a text into part of an id or of an attribute."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text)


def quotes(text: str) -> Markup:
    """Escape text between tags but keep quotes: JSON is full of them.

    >>> quotes('{"a": "<b>"}')
    Markup('{"a": "&lt;b&gt;"}')
    """
    return Markup(escape_html(text, quote=False))  # noqa: S704  it is escaped


def ticks(text: str) -> Markup:
    """Escape text of the catalogue, and mark up `this` as code.

    >>> ticks("`ip <x>` & more")
    Markup('<code>ip &lt;x&gt;</code> &amp; more')
    """
    parts = re.split(r"`([^`\n]+)`", text)
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if index % 2 else escape(part)
        for index, part in enumerate(parts)
    )


# -- evidence ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of evidence as shown.  ``form`` is judgement, packets or text."""

    form: str
    what: str
    seen: str = ""
    good: bool | None = None
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    shown: int = 0  #: characters or packets of ``whole`` that are shown
    whole: int = 0

    @property
    def is_cut(self) -> bool:
        return self.shown < self.whole


def piece(what: str, seen: str, limit: int) -> Piece:
    """Prepare a piece of evidence, cut to ``limit`` characters of output."""
    if what in JUDGEMENTS:
        return Piece("judgement", what, seen, JUDGEMENTS[what])
    if what.startswith(WALK):
        return Piece("text", what)  # it is drawn with the claim
    packets = _packets(seen, limit) if what.startswith("tcpdump ") else None
    if packets is not None:
        rows, columns, whole = packets
        return Piece("packets", what, columns=columns, rows=rows, shown=len(rows), whole=whole)
    seen = seen.rstrip("\n")
    if len(seen) > limit:
        return Piece("text", what, seen[:limit], shown=limit, whole=len(seen))
    return Piece("text", what, _readable(seen))


def _readable(seen: str) -> str:
    """Format JSON with a line for each item; return any other text unchanged.

    Only white space between the items is changed.
    """
    if not seen.startswith("[{") or "\n" in seen:
        return seen
    try:
        things = json.loads(seen)
    except ValueError:
        return seen
    lines = [json.dumps(one, ensure_ascii=False, separators=(",", ":")) for one in things]
    told = "[" + ",".join(lines) + "]"
    return "[" + ",\n ".join(lines) + "]" if told == seen else seen


def _packets(seen: str, limit: int) -> tuple[list[list[str]], list[str], int] | None:
    """Return a capture's packets as rows, their columns, and the number of packets."""
    lines = seen.splitlines()
    found = [PACKET.fullmatch(line) for line in lines]
    if not lines or not all(found):
        return None
    taken, size = [], 0
    for line, match in zip(lines, found, strict=True):
        size += len(line)
        if size > limit:
            break
        taken.append(match)
    rows, began = [], float(lines[0].split()[0])
    for match in filter(None, taken):
        fields = match.groupdict("")
        rows.append([
            f"{(float(fields['time']) - began) * 1000:.3f}",
            f"{fields['smac']} → {fields['dmac']}" if fields["smac"] else "",
            f"{fields['src']} → {fields['dst']}" if fields["src"] else "",
            fields["what"] or fields["rest"],
            fields["ttl"],
            fields["id"],
            fields["length"],
        ])  # fmt: skip
    return rows, ["ms", "MAC", "IP", "packet", "TTL", "IP ID", "length"], len(lines)


@dataclass(slots=True)
class Sight:
    """Evidence from one lab, or from several with identical evidence."""

    labs: list[str]
    seconds: float
    evidence: Sequence[Mapping[str, str]]
    pieces: list[Piece] = field(default_factory=list)
    is_left_out: bool = False

    @property
    def size(self) -> int:
        return sum(len(one["what"]) + len(one["seen"]) + MARKUP for one in self.evidence)


def fit(sights: Iterable[Sight], budget: int = BUDGET) -> int:
    """Turn evidence into pieces that fit together; return an output's length limit.

    Long outputs are cut first.  If that is not enough, only the first of the labs on
    which a claim ended alike is kept: see :meth:`_Page.sights`.
    """
    given = list(sights)

    def total(limit: int) -> int:
        return sum(
            len(one["what"])
            + MARKUP
            + (0 if one["what"].startswith(WALK) else min(limit, len(one["seen"])))
            for sight in given
            if not sight.is_left_out
            for one in sight.evidence
        )

    limit = next((limit for limit in LIMITS if total(limit) <= budget), LIMITS[-1])
    for sight in given:
        if not sight.is_left_out:
            sight.pieces = [piece(one["what"], one["seen"], limit) for one in sight.evidence]
    return limit


# -- claims -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a claim on a group of labs where every detail is the same."""

    verdict: str
    expected: str
    why: str
    why_told: str  #: in the report's language, as in a ClaimView
    reason: str
    problem: str
    as_expected: bool
    labs: tuple[str, ...]
    judged: list[Piece] = field(default_factory=list)  #: the deciding evidence, of the first lab


@dataclass(slots=True)
class ClaimView:
    """A claim as shown."""

    data: Mapping[str, Any]
    verdict: str
    outcomes: list[Outcome]
    elsewhere: Mapping[str, list[str]]  #: labs that could not decide it, by reason
    sights: list[Sight]
    seconds: float
    walks: list[tuple[str, walks.WalkView]]  #: paths of packets, of one lab, each with its name
    #: Claim and reason in the report's language, empty where there is no translation.
    statement: str
    why_told: str
    lang: str  #: the language of the claim's own texts

    def __getattr__(self, name: str) -> Any:
        return self.data[name]

    @property
    def differs(self) -> bool:
        return len({outcome.verdict for outcome in self.outcomes}) > 1

    @property
    def labs(self) -> list[str]:
        return [lab for outcome in self.outcomes for lab in outcome.labs]

    @property
    def search(self) -> str:
        return " ".join([self.data["id"], *self.data["needs"]])


@dataclass(frozen=True, slots=True)
class Heading:
    """A document's title in its own language, and a translation if the report's is another."""

    title: str
    language: str
    translation: str
    translated_to: str
    claims_in: str
    link: str

    @classmethod
    def of(cls, document: Mapping[str, Any], lang: str) -> Heading:
        """Return the heading for a report in a language; a title is in English if not in that."""
        titles, own = document["titles"], document["language"]
        to = lang if lang in titles else "en"
        other = "" if own in {lang, to} or _same(own, lang) else titles.get(to, "")
        link = document["link"] if document["link"].startswith(("https://", "http://")) else ""
        return cls(document["title"], own, other, to, document["claims_in"], link)

    @property
    def text(self) -> str:
        """The title in the report's language, if there is one, as plain text."""
        return self.translation or self.title


@dataclass(slots=True)
class DocumentView:
    """A document with its claims in the order of its text."""

    number: str
    heading: Heading
    claims: list[ClaimView]
    counts: Counter[str]


@dataclass(slots=True)
class LabView:
    """A lab as shown."""

    data: Mapping[str, Any]
    facts: list[str]
    counts: Counter[str]
    unexpected: int
    picture: Markup
    routes: list[tuple[str, Mapping[str, str]]]
    uplinks: list[str]


@dataclass(slots=True)
class Measured:
    """Measurements on a lab, and the claims that they belong to."""

    lab: str
    facts: str
    claims: list[ClaimView] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)


@dataclass(slots=True)
class Chart:
    """Figures measured side by side."""

    data: Mapping[str, Any]
    svg: Markup
    rows: list[tuple[str, str, str, str]]


class _Page:
    """The data for the template."""

    def __init__(self, run: Mapping[str, Any], spoken: Words) -> None:
        self.run = run
        self.words = spoken
        self.lab_order = [lab["lab"] for lab in run["labs"]]
        self._found: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
        for lab in run["labs"]:
            for finding in lab["findings"]:
                self._found.setdefault(finding["claim"], []).append((lab["lab"], finding))
        self._headings = {
            document["id"]: Heading.of(document, spoken.lang) for document in run["documents"]
        }
        self.title = self._title()
        self.claims = [self._claim(claim, _texts(claim, spoken.lang)) for claim in run["claims"]]
        self.by_id = {claim.data["id"]: claim for claim in self.claims}
        self.limit, self.left_out = self._fit()
        self.documents = self._documents()
        self.counts = Counter(claim.verdict for claim in self.claims)
        self.verdicts = [verdict for verdict in ORDER if self.counts[verdict]]
        self.kinds = sorted({claim.data["kind"] for claim in self.claims})
        self.unexpected = [claim for claim in self.claims if not claim.data["as_expected"]]
        otherwise = [claim for claim in self.claims if claim.data["as_expected"]]
        self.otherwise = [
            (verdict, [claim for claim in otherwise if claim.verdict == verdict])
            for verdict in OTHER_THAN_SAID
            if any(claim.verdict == verdict for claim in otherwise)
        ]
        self.labs = [self._lab(lab) for lab in run["labs"]]
        self.measured = self._measured()
        self.failed = [
            (lab["lab"], check)
            for lab in run["labs"]
            for check in lab["checks"]
            if check["outcome"] == "failed"
        ]
        self.checks = sum(len(lab["checks"]) for lab in run["labs"])
        self.troubles = [
            (lab["lab"], trouble)
            for lab in run["labs"]
            for trouble in (*([lab["error"]] if lab["error"] else []), *lab["broken"])
        ]
        cut_off = any(lab["interrupted"] for lab in run["labs"])
        self.tested = tested(run)
        self.is_good = self.tested and not (
            self.unexpected or self.failed or self.troubles or cut_off
        )
        self.versions = self._versions()
        self.bar = self._bar(self.counts)

    # -- claims

    def _claim(self, claim: Mapping[str, Any], told: Mapping[str, str]) -> ClaimView:
        found = self._found.get(claim["id"], [])
        outcomes = _outcomes(((lab, f) for lab, f in found if f["verdict"] != "skipped"), told)
        elsewhere: dict[str, list[str]] = {}
        for lab, finding in found:
            if finding["verdict"] == "skipped":
                elsewhere.setdefault(_reason(finding), []).append(lab)
        return ClaimView(
            data=claim,
            verdict=_verdict(claim, found),
            outcomes=outcomes,
            elsewhere=elsewhere,
            sights=_sights(found),
            seconds=sum(finding["seconds"] for _, finding in found),
            walks=self._walks(claim["id"], found),
            statement=told.get(claim["claim"], ""),
            why_told=told.get(claim["why"], ""),
            lang=self._headings[claim["document"]].claims_in,
        )

    def in_language(self, lang: str) -> Markup:
        """Return the attribute for text in a language, nothing if it is the page's own."""
        return Markup("") if _same(lang, self.words.tag) else Markup(' lang="{}"').format(lang)

    def _title(self) -> str:
        """Return the title of the page: those of the catalogues, else a general one."""
        used = [source for source in self.run["catalogues"] if source["title"]]
        lang = self.words.lang
        titles = [source["titles"].get(lang, source["title"]) for source in used]
        _ = self.words.gettext
        return " · ".join(titles) or _("Container networking, put to the test")

    def _fit(self) -> tuple[int, int]:
        """Return the length limit of an output, and how many labs' evidence is left out."""
        sights = [sight for claim in self.claims for sight in claim.sights]
        left_out = 0
        least = sum(
            len(one["what"]) + min(LIMITS[-1], len(one["seen"])) + MARKUP
            for sight in sights
            for one in sight.evidence
        )
        if least > BUDGET:
            for claim in self.claims:
                for outcome in claim.outcomes:
                    alike = [s for s in claim.sights if set(s.labs) & set(outcome.labs)]
                    for sight in alike[1:]:
                        sight.is_left_out = True
                        left_out += 1
        return fit(sights), left_out

    def _walks(
        self, claim: str, found: Iterable[tuple[str, Mapping[str, Any]]]
    ) -> list[tuple[str, walks.WalkView]]:
        """Return the paths of packets of the first lab that has some."""
        for lab, finding in found:
            saved = [one["seen"] for one in finding["evidence"] if one["what"].startswith(WALK)]
            walked = [walk for text in saved if (walk := _walk(text))]
            if walked:
                return [
                    (lab, walks.view(walk, self.words, id=f"walk-{slug(claim)}-{number}"))
                    for number, walk in enumerate(walked)
                ]
        return []

    def _documents(self) -> list[DocumentView]:
        grouped: dict[str, list[ClaimView]] = {}
        for claim in self.claims:
            grouped.setdefault(claim.data["document"], []).append(claim)
        return [
            DocumentView(name, self._headings[name], claims, Counter(c.verdict for c in claims))
            for name, claims in grouped.items()
        ]

    # -- labs

    def _lab(self, lab: Mapping[str, Any]) -> LabView:
        drawn = lab.get("picture") or {}
        _ = self.words.gettext
        svg = picture.draw(
            drawn,
            id=f"picture-{slug(lab['lab'])}",
            title=f"{_('The network of')} {lab['lab']}",
            translate=_,
        ) if drawn else ""  # fmt: skip
        return LabView(
            data=lab,
            facts=describe_facts(lab["facts"]),
            counts=Counter(_verdict_of(finding) for finding in lab["findings"]),
            unexpected=sum(not finding["as_expected"] for finding in lab["findings"]),
            picture=Markup(svg),  # noqa: S704  made of elements, which escape their text
            routes=[
                (node["name"], route) for node in drawn.get("nodes", ()) for route in node["routes"]
            ],
            uplinks=[
                name
                for name, network in ((lab["topology"] or {}).get("networks") or {}).items()
                if network.get("uplink")
            ],
        )

    def facts_of(self, lab: str) -> str:
        facts = next((view.facts for view in self.labs if view.data["lab"] == lab), [])
        return " · ".join(facts)

    def _versions(self) -> list[tuple[str, str]]:
        """Return each component's versions over all labs, in the order of the labs."""
        found: dict[str, dict[str, None]] = {}
        for lab in self.run["labs"]:
            for part, version in lab["versions"].items():
                name = re.sub(r"-\d[\d.]*$", "", part)  # docker-29 is another docker
                found.setdefault(name, {})[str(version)] = None
        return [(part, ", ".join(versions)) for part, versions in found.items()]

    # -- drawings

    def _measured(self) -> list[Measured]:
        found: dict[str, Measured] = {}
        count = 0
        for claim in self.claims:
            for lab, finding in self._found.get(claim.data["id"], ()):
                if not finding["measurements"]:
                    continue
                on = found.setdefault(lab, Measured(lab, self.facts_of(lab)))
                on.claims.append(claim)
                for data in finding["measurements"]:
                    if not any(chart.data == data for chart in on.charts):  # for another claim
                        count += 1
                        on.charts.append(self._chart(lab, data, f"chart-{count}"))
        for lab in self.run["labs"]:
            for check in lab["checks"]:
                for data in check.get("measurements", ()):  # records of older versions have none
                    name = lab["lab"]
                    on = found.setdefault(name, Measured(name, self.facts_of(name)))
                    count += 1
                    on.charts.append(self._chart(name, data, f"chart-{count}"))
        return [found[lab] for lab in self.lab_order if lab in found]

    @staticmethod
    def _chart(lab: str, data: Mapping[str, Any], id: str) -> Chart:
        title = f"{data['what']}, {data['unit']} ({lab})"
        svg = charts.bars(data["series"], data["unit"], id=id, title=title)
        rows = [
            (
                name,
                f"{statistics.median(figures):.4g}",
                f"{spread(figures):.2g}",
                ", ".join(f"{figure:.4g}" for figure in figures),
            )
            for name, figures in data["series"].items()
        ]
        return Chart(data, Markup(svg), rows)  # noqa: S704  made of elements

    def _bar(self, counts: Mapping[str, int]) -> list[tuple[str, float, float]]:
        """Return each verdict with its offset and width in a bar of 100."""
        total = sum(counts.values()) or 1
        found: list[tuple[str, float, float]] = []
        at = 0.0
        for verdict in ORDER:
            if counts[verdict]:
                part = 100 * counts[verdict] / total
                found.append((verdict, round(at, 3), round(part, 3)))
                at += part
        return found

    def bar_of(self, counts: Mapping[str, int]) -> list[tuple[str, float, float]]:
        return self._bar(counts)


def _verdict_of(finding: Mapping[str, Any]) -> str:
    return finding["verdict"] or "failed"


def _verdict(claim: Mapping[str, Any], found: Sequence[Any]) -> str:
    """Return the verdict, "failed" if a check broke, "undecided" if there was none."""
    return claim["verdict"] or ("failed" if found else "undecided")


def _outcomes(
    found: Iterable[tuple[str, Mapping[str, Any]]], told: Mapping[str, str]
) -> list[Outcome]:
    grouped: dict[tuple[Any, ...], list[tuple[str, Mapping[str, Any]]]] = {}
    for lab, finding in found:
        key = (
            _verdict_of(finding),
            finding["expected"] or "",
            finding["why"],
            _reason(finding),
            finding["problem"],
            finding["as_expected"],
        )
        grouped.setdefault(key, []).append((lab, finding))
    outcomes = []
    for (verdict, expected, why, reason, problem, good), alike in grouped.items():
        labs = tuple(lab for lab, _ in alike)
        judged = _judged(alike[0][1])
        why_told = told.get(why, "")
        outcomes.append(
            Outcome(verdict, expected, why, why_told, reason, problem, good, labs, judged)
        )
    return outcomes


def _walk(text: str) -> Walk | None:
    """Return a saved walk; None for one that this version cannot read."""
    try:
        return Walk.from_dict(json.loads(text))
    except ValueError:  # a UsageError is one, too
        return None


def _reason(finding: Mapping[str, Any]) -> str:
    """Return the reason of a finding without parts that the report states itself."""
    reason: str = finding["reason"].removeprefix("Skipped: ")
    expected = f"expected {finding['expected']}"
    if reason.startswith(expected):
        reason = reason.removeprefix(expected).removeprefix(":").strip()
    return reason


def _judged(finding: Mapping[str, Any]) -> list[Piece]:
    """Return the evidence that decided a finding."""
    return [
        piece(one["what"], one["seen"], LIMITS[0])
        for one in finding["evidence"]
        if one["what"] in JUDGEMENTS
    ]


def _sights(found: Iterable[tuple[str, Mapping[str, Any]]]) -> list[Sight]:
    """Return the evidence of each lab; labs with identical evidence are merged."""
    sights: list[Sight] = []
    for lab, finding in found:
        if not finding["evidence"]:
            continue
        for sight in sights:
            if sight.evidence == finding["evidence"]:
                sight.labs.append(lab)
                sight.seconds += finding["seconds"]
                break
        else:
            sights.append(Sight([lab], finding["seconds"], finding["evidence"]))
    return sights


def describe_facts(facts: Mapping[str, str]) -> list[str]:
    """Describe the distinguishing facts of a lab in a few words.

    >>> describe_facts({"docker": "29.0.1", "firewall": "nftables", "provider": "netns"})
    ['Docker 29.0.1', 'nftables']
    """
    return [words for role in ROLES.usable().values() for words in role.described(facts)]


def _texts(claim: Mapping[str, Any], lang: str) -> Mapping[str, str]:
    """Return a claim's texts in another language, by its own texts."""
    found = claim["translations"].get(lang)
    return texts(claim, found) if found else {}


def _same(one: str, other: str) -> bool:
    """Tell whether two language tags mean the same language: ``zh`` and ``zh-Hans`` do."""
    return one.partition("-")[0] == other.partition("-")[0]
