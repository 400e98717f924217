"""The HTML report: what is in it, in which order, and that nothing a lab said becomes markup."""

from __future__ import annotations

import ast
import functools
import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from catalogues import claims, shipped
from jinja2 import Environment
from jinja2.ext import extract_from_ast
from report_runs import CAPTURE, EVIL, broken_run, claim, finding, lab, piece, run

import testbed.report
from testbed import cli
from testbed.claims.load import ANCHORS
from testbed.claims.model import WALK
from testbed.errors import UsageError
from testbed.report import html, words
from testbed.report.data import to_dict
from testbed.suites.model import Check, LabRun, Results, Run, Selection
from testbed.walk.render import words as walk_words

REPORT = Path(testbed.report.__file__).parent
VOID = {"meta", "link", "input", "br", "img"}


class Page(HTMLParser):
    """The elements of a page, in order; fails where they are not well nested."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []  #: the innermost element, and its text
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes another"

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self._open[-1] if self._open else "", " ".join(data.split())))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def claims(self) -> list[dict[str, str | None]]:
        return [one for one in self.all("details") if one.get("class") == "claim"]

    @property
    def text(self) -> str:
        return " ".join(text for tag, text in self.texts if tag not in {"style", "script"})


@functools.cache
def report() -> str:
    """The report of the good run."""
    return html.render(run())


def page(data: dict[str, Any] | None = None) -> Page:
    return Page(html.render(data) if data else report())


# -- what is in it ----------------------------------------------------------------


def test_claims_are_in_the_order_of_the_catalogue() -> None:
    ids = ["same", "differs", "evil", "wrong", "maybe", "fast", "absent", "motive"]
    assert [one["id"] for one in page().claims()] == ids


def test_each_claim_says_what_it_can_be_filtered_by() -> None:
    found = {one["id"]: one for one in page().claims()}
    assert found["maybe"]["data-verdict"] == "conditional"
    assert found["maybe"]["data-kind"] == "isolation"
    assert found["motive"]["data-verdict"] == "not-testable"
    assert (found["same"]["data-labs"] or "").split() == ["docker-single", "docker-single-29"]
    assert not any("data-unexpected" in one for one in found.values())


def test_verdicts_are_counted() -> None:
    tile = r'class="count">(\d+)</span>\s*<span class="word">.*?</svg> ([a-z ]+)</span>'
    counts = re.findall(tile, report(), re.DOTALL)
    assert counts == [
        ("3", "confirmed"),
        ("1", "conditional"),
        ("2", "contradicted"),
        ("1", "skipped"),
        ("1", "not testable"),
    ]


def test_a_good_run_says_so() -> None:
    text = page().text
    assert "8 claims, 2 documents, 2 labs. All ended as expected." in text
    assert "Not as expected" not in text


def test_a_run_that_tested_nothing_says_so() -> None:
    part = LabRun("two-node", results=Results(checks=[Check("test_it", "skipped", 0.1, "why")]))
    text = page(to_dict(Run(Selection(), [part]))).text
    assert "Nothing was tested." in text
    assert "All ended as expected" not in text


def test_a_bad_run_says_what_went_wrong_first() -> None:
    shown = page(broken_run())
    text = shown.text
    assert "All ended as expected" not in text
    assert "2 did not end as expected. The run was interrupted." in text
    assert "expected confirmed, saw contradicted. docker0 is up" in text
    for told in ("LabError: the node is gone", "assert 1 == 2", "node1: dockerd died"):
        assert told in text
        assert text.index(told) < text.index("Differs from the documents")
    unexpected = [one["id"] for one in shown.claims() if "data-unexpected" in one]
    assert unexpected == ["same", "maybe"]
    assert next(c for c in shown.claims() if c["id"] == "maybe")["data-verdict"] == "failed"


def test_a_claim_that_no_lab_has_tried_is_undecided() -> None:
    data = run(labs=[lab("docker-single", [])], claims=[claim("same", "000", None)])
    assert page(data).claims()[0]["data-verdict"] == "undecided"


def test_what_the_documents_got_wrong_is_told_with_what_is_the_case() -> None:
    text = report()
    section = text[text.index('id="otherwise"') : text.index('id="measured"')]
    assert re.findall(r'href="#(\w+)"', section) == ["differs", "wrong", "maybe"]
    assert "What is so with wrong." in section
    assert "Since Docker 28 such packets are dropped." in section


def test_a_claim_with_several_outcomes_has_a_column_for_each() -> None:
    text = report()
    body = text[text.index('id="differs"') : text.index('id="evil"')]
    head = body[body.index("<thead>") : body.index("</thead>")]
    assert head.count('<th scope="col">') == 2
    assert "Docker 20.10.24 · iptables-nft" in head
    assert "Docker 29.8.1 · nftables" in head
    same = text[text.index('id="same"') : text.index('id="differs"')]
    assert '<table class="outcomes">' not in same


def test_the_same_evidence_of_two_labs_is_there_once() -> None:
    text = report()
    assert text.count("docker0-same") == 1


def test_a_capture_is_a_table() -> None:
    shown = html.piece("tcpdump on host:docker0", CAPTURE, 10_000)
    assert shown.form == "packets"
    assert list(shown.rows) == [
        ["0.000", "02:42:ac:11:00:02 → ff:ff:ff:ff:ff:ff", "",
         "ARP who-has 172.17.0.3 tell 172.17.0.2", "", "", ""],
        ["0.106", "02:42:ac:11:00:02 → 02:42:ac:11:00:03", "172.17.0.2:46036 → 172.17.0.3:80",
         "TCP SYN", "64", "14009", "60"],
        ["0.600", "", "172.17.0.3 → 172.17.0.2", "ICMP 0/0 id 7 seq 1", "63", "9", "84"],
    ]  # fmt: skip


def test_a_capture_that_is_too_long_says_how_much_is_shown() -> None:
    shown = html.piece("tcpdump on host:docker0", CAPTURE, 100)
    assert (len(shown.rows), shown.shown, shown.whole) == (1, 1, 3)
    assert shown.is_cut


@pytest.mark.parametrize("seen", ["no packets", "", f"{CAPTURE}\nand then it broke off"])
def test_what_is_no_list_of_packets_stays_text(seen: str) -> None:
    shown = html.piece("tcpdump on host:docker0", seen, 10_000)
    assert (shown.form, shown.seen) == ("text", seen)


def test_json_has_a_line_for_each_thing_and_is_changed_in_nothing_else() -> None:
    seen = '[{"a":1,"b":"ü"},{"a":[1,2]}]'
    shown = html.piece("node# ip -j link", seen, 1000).seen
    assert shown == '[{"a":1,"b":"ü"},\n {"a":[1,2]}]'
    for other in ('[{"a": 1}]', '[{"a":1e3}]', "[{", '[{"a":1}]\n[exit status 1]'):
        assert html.piece("node# ip -j link", other, 1000).seen == other


def test_a_long_output_is_cut_and_says_so() -> None:
    shown = html.piece("node# cat", "x" * 500, 100)
    assert (shown.seen, shown.shown, shown.whole) == ("x" * 100, 100, 500)
    assert not html.piece("node# cat", "x" * 100, 100).is_cut


@pytest.mark.thorough
def test_a_large_run_is_kept_small_and_says_what_it_left_out() -> None:
    """As many claims, labs and octets as the catalogue has, and then some."""
    names = [f"claim-{n}" for n in range(205)]
    labs = [
        lab(f"lab-{n}", [
            finding(name, evidence=[
                *[piece(f"node# cmd {n} {k}", f"{n}-{k}-" + "x" * 2400) for k in range(6)],
                piece("holds", "it is so"),
            ])
            for name in names
        ])
        for n in range(10)
    ]  # fmt: skip
    data = run(labs=labs, claims=[claim(name, "000") for name in names])
    text = html.render(data)
    assert len(text.encode()) < 3_000_000
    assert "Cut off here: 1000 of 2404 characters are shown." in text
    assert "Outputs of more than 1000 characters are cut, and say so." in text
    assert "Left out to keep this file small" in text


def test_a_small_run_is_not_cut() -> None:
    assert "are cut, and say so" not in report()


def test_measured_figures_are_charts_and_tables() -> None:
    text = report()
    section = text[text.index('id="measured"') : text.index('id="labs"')]
    assert section.count("<svg") - section.count('<svg class="icon"') == 1
    assert "9.1, 9.4, 9, 9.3, 9.2" in section
    for foreign in ("<script", "<style", "pygal.org"):
        assert foreign not in section


def test_figures_of_ordinary_checks_are_charts_too() -> None:
    data = run()
    series = {"link cut": [0.25, 0.5], "etcd killed": [0.0, 0.0]}
    figures = {
        "what": "until traffic flows again",
        "unit": "s",
        "series": series,
        "better": "lower",
    }
    check = {"name": "test_figures", "outcome": "passed", "seconds": 0.1, "problem": ""}
    old = dict(check)  # as a version has kept it that knew no figures of checks
    data["labs"][0]["checks"] = [old, {**check, "measurements": [figures]}]
    text = html.render(data)
    section = text[text.index('id="measured"') : text.index('id="labs"')]
    assert "until traffic flows again" in section
    assert "0.25, 0.5" in section
    for part in data["labs"]:
        part["findings"] = []
    data["claims"] = []
    assert '<ul class="decides">' not in html.render(data)


def test_versions_are_told_once_each() -> None:
    assert "20.10.24+dfsg1, 29.8.1" in page().text


def test_another_version_of_the_data_is_refused() -> None:
    others: list[Any] = [{"version": 1}, {}, []]
    for other in others:
        with pytest.raises(UsageError) as caught:
            html.render(other)
        assert caught.value.exit_code == 2


# -- safe, and by itself ------------------------------------------------------------


def test_nothing_that_was_said_becomes_markup() -> None:
    shown = page(broken_run())
    assert len(shown.all("script")) == 1
    assert shown.all("img") == []
    assert not any(name.startswith("on") for _, attributes in shown.elements for name in attributes)
    assert " ".join(EVIL.split()) in shown.text


def test_no_style_stands_in_an_attribute() -> None:
    """The page's own policy would not let it work."""
    assert [e for e in page(broken_run()).elements if "style" in e[1]] == []


def test_nothing_is_loaded() -> None:
    text = report()
    urls = set(re.findall(r'(?:href|src|action|xlink:href)="([^"#][^"]*)"', text))
    assert urls == {"data:,", "https://example.com/003"}, "a link is no file that is loaded"
    assert not re.search(r"@import|url\(", text)


def test_the_policy_names_the_page_s_own_style_and_script() -> None:
    text = report()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', text)
    assert "default-src 'none'" in policy
    for tag in ("style", "script"):
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert f"{tag}-src '{html.digest(inside)}'" in policy


def test_ids_are_unique_and_links_lead_somewhere() -> None:
    shown = page()
    ids = [attributes["id"] for _, attributes in shown.elements if attributes.get("id")]
    assert len(ids) == len(set(ids))
    for one in shown.all("a") + shown.all("use"):
        target = str(one["href"])
        outside = target == "https://example.com/003"
        assert outside or target.startswith("#filter?") or target[1:] in ids, target


def test_headings_leave_out_no_level() -> None:
    levels = [int(tag[1]) for tag, _ in page(broken_run()).elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))


# -- paths of packets ---------------------------------------------------------------


def test_the_path_of_a_packet_is_drawn_with_its_claim() -> None:
    text = report()
    (drawn,) = re.findall(r'<svg class="picture[^>]*aria-labelledby="walk-maybe-0', text)
    assert text.index('id="maybe"') < text.index(drawn) < text.index('id="fast"')
    assert "-A FLANNEL-FWD -s 100.96.0.0/16 -j ACCEPT" in page().text
    assert "unwrapped from vxlan 1" in page().text
    assert '{"format":1' not in text, "its data are shown as a drawing"


def test_of_several_labs_the_first_path_is_drawn() -> None:
    data = run()
    seen = data["labs"][0]["findings"][4]["evidence"]
    data["labs"][1]["findings"].append(finding("maybe", "conditional", evidence=seen))
    assert html.render(data).count('role="img" aria-labelledby="walk-maybe-') == 1


@pytest.mark.parametrize("saved", ["", "{", "[]", '{"format":1}', '{"format":9,"legs":[]}'])
def test_a_path_that_cannot_be_read_is_named_alone(saved: str) -> None:
    data = run()
    data["labs"][0]["findings"][4]["evidence"] = [piece(f"{WALK}a to b", saved)]
    text = html.render(data)
    assert f"{WALK}a to b" in text
    assert "walk-maybe-0" not in text


def test_the_path_is_told_in_the_language_of_the_report() -> None:
    shown = Page(html.render(run(), lang="zh")).text
    assert "解封装 vxlan 1" in shown
    assert "unwrapped" not in shown


# -- languages ----------------------------------------------------------------------


def messages() -> set[str]:
    """Every message that templates and modules ask for; of a plural, the plural."""
    found = set()
    environment = Environment(extensions=["jinja2.ext.i18n", "jinja2.ext.do"], autoescape=True)
    for path in (REPORT / "templates").glob("*.j2"):
        text = path.read_text(encoding="utf-8")
        for _, function, asked in extract_from_ast(environment.parse(text)):
            parts = asked if isinstance(asked, tuple) else (asked,)
            found.add(str(parts[1] if function == "ngettext" else parts[0]))
    for path in (*REPORT.glob("*.py"), Path(walk_words.__file__)):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "_":
                argument = call.args[0]
                if isinstance(argument, ast.Constant) or path.parent == REPORT:
                    found.add(ast.literal_eval(argument))
    return found | set(walk_words.SPOKEN)


def test_every_message_is_translated_and_no_other() -> None:
    chinese = words.words("zh").messages
    assert set(chinese) == messages()
    for message, translation in chinese.items():
        fields = re.compile(r"%\(\w+\)s|\{\w+\}")
        assert sorted(fields.findall(message)) == sorted(fields.findall(translation)), message


def test_every_verdict_and_kind_has_a_word() -> None:
    said = (REPORT / "templates/words.html.j2").read_text(encoding="utf-8")
    for word in words.FROM_CATALOGUE:
        assert f'"{word}": _(' in said


def test_the_report_speaks_chinese() -> None:
    shown = Page(html.render(run(), lang="zh"))
    assert shown.all("html")[0]["lang"] == "zh-Hans"
    assert "全部符合预期" in shown.text
    assert "What decided" not in shown.text


def test_a_title_in_another_language_has_its_translation_beside_it() -> None:
    """Without such a font Chinese characters are shown as boxes: the translation comes first."""
    english, chinese = (html.render(run(), lang=lang) for lang in ("en", "zh"))
    own = '<span class="meta" lang="zh">Docker网络</span>'
    assert re.search(rf"<span>Docker networking</span>\s*{own}", english)
    assert not re.search(r"[\u2e80-\uffef]", english.replace(own, ""))
    assert "Docker网络" in chinese
    assert "Docker networking" not in chinese
    title = '<span lang="en"><a href="https://example.com/003" rel="noreferrer">'
    assert title + "Kubernetes networking</a></span>" in chinese


def test_a_link_that_is_no_address_of_the_web_is_left_out() -> None:
    data = run()
    data["documents"][1]["link"] = "javascript:alert(1)"
    assert "javascript:" not in html.render(data)


@pytest.mark.parametrize("kind", ["sans", "mono"])
def test_each_family_of_fonts_names_some_with_chinese(kind: str) -> None:
    style = (REPORT / "templates/report.css").read_text(encoding="utf-8")
    found = dict(re.findall(r"--(cjk|sans|mono): (.+);", style))
    assert "var(--cjk)" in found[kind], "the picture's addresses and names are in the other family"
    assert {'"PingFang SC"', '"Microsoft YaHei"', '"Noto Sans CJK SC"'} <= {
        *found["cjk"].split(", ")
    }


def test_a_language_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match="'xx'"):
        html.render(run(), lang="xx")


def test_claims_and_reasons_are_told_in_chinese() -> None:
    """The catalogue's own, of a claim that is expected otherwise on some labs."""
    entry = claims()["trace-raw-policy-2"]
    text = shipped().translations["zh"][entry.id]
    other = entry.otherwise[1].why
    labs = [
        lab("old", [finding(entry.id, "contradicted", why=entry.why)]),
        lab("new", [finding(entry.id, "contradicted", why=other)]),
    ]
    said = {
        **entry.to_dict(),
        "translations": shipped().texts(entry.id),
        "verdict": "contradicted",
        "as_expected": True,
    }
    data = run(labs=labs, claims=[said])
    written = html.render(data, lang="zh")
    shown = Page(written).text
    for told in (text.claim, entry.claim, text.why, text.otherwise[1]):
        assert told in shown
        assert (f'lang="en">{told}' in written) == (told == entry.claim)
    for not_told in (entry.why, other):
        assert not_told not in shown
    assert text.claim not in Page(html.render(data)).text


def test_what_has_no_translation_stays_english() -> None:
    old = claim("old", "003", None, claim="As it was once.", why="As it was then.")
    data = run(labs=[], claims=[claim("x", "003"), old])
    shown = html.render(data, lang="zh")
    for told in ("The statement of x.", "As it was once.", "As it was then."):
        assert f'lang="en">{told}' in shown


# -- the command ----------------------------------------------------------------------


def test_the_command_writes_a_report(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(run()))
    target = tmp_path / "report.html"
    assert cli.run(["report", str(tmp_path / "run.json"), "--html", str(target)]) == 0
    assert target.read_text(encoding="utf-8") == report()


def test_the_command_says_what_is_wrong_with_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given, target = tmp_path / "run.json", tmp_path / "report.html"
    for text in ("{", '{"version": 1}'):
        given.write_text(text)
        assert cli.run(["report", str(given), "--html", str(target)]) == 2
        assert "testbed verify --json FILE" in capsys.readouterr().err
    assert not target.exists()


def test_no_claim_can_have_an_id_of_the_page() -> None:
    shown = page(broken_run())
    own = {one["id"] for one in shown.claims()}
    ids = {attributes["id"] for _, attributes in shown.elements if attributes.get("id")}
    assert [name for name in ids - own if not ANCHORS.fullmatch(str(name))] == []
    assert not any(ANCHORS.fullmatch(name) for name in claims())
