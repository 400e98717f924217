"""The summary of a run in Markdown, for the page of a CI job."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import report_runs

from testbed import cli
from testbed.report import markdown

if TYPE_CHECKING:
    from pathlib import Path


def tables(text: str) -> list[list[list[str]]]:
    """The tables of a text: their rows, each of which has as many cells as the first."""
    found: list[list[list[str]]] = []
    before = ""
    for line in text.splitlines():
        if line.startswith("|"):
            if not before.startswith("|"):
                found.append([])
            cells = line.replace("\\|", "").strip("|").split("|")
            found[-1].append([cell.strip() for cell in cells])
        before = line
    for rows in found:
        assert {len(row) for row in rows} == {len(rows[0])}
    return found


def test_a_good_run_is_one_row_for_each_lab() -> None:
    text = markdown.render(report_runs.run())
    assert text.splitlines()[0] == "### ✅ testbed: 6 claims on 2 labs, all as expected"
    labs, versions = tables(text)
    assert labs[2] == ["docker-single", "0.6 s", "6", "-", "1", "-", "-", "2.5 s"]
    assert labs[3] == ["docker-single-29", "0.6 s", "2", "-", "-", "-", "-", "2.5 s"]
    assert [row[0] for row in versions[2:]] == ["docker", "etcd"]


def test_the_headline_counts_as_the_last_line_on_the_terminal() -> None:
    """Claims that were decided, and labs with nodes: not the part for claims that need none."""
    run: dict[str, Any] = json.loads(json.dumps(report_runs.run()))
    without, left_out = json.loads(json.dumps(run["labs"][:1] * 2))
    without |= {"lab": "no lab", "topology": None}
    left_out |= {"lab": "other", "topology": None, "absent": "not built", "findings": []}
    run["labs"] += [without, left_out]
    assert "6 claims on 2 labs" in markdown.render(run).splitlines()[0]
    run["labs"] = [without]
    assert "6 claims on no lab" in markdown.render(run).splitlines()[0]


def test_all_that_went_wrong_is_named() -> None:
    text = markdown.render(report_runs.broken_run())
    assert text.startswith("### ❌")
    _, wrong, _ = tables(text)
    seen = {(lab, name.replace("\\", "")) for lab, name, _, _ in wrong[2:]}
    assert seen == {
        ("docker-single", "same"),
        ("docker-single", "maybe"),
        ("docker-single", "tests/test_a.py::test_it"),
        ("docker-single-29", "the lab"),
        ("docker-single-29", "a suite"),
    }


def claims(run: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {claim["id"]: claim for claim in run["claims"]}


@pytest.mark.parametrize("complete", [True, False])
def test_a_claim_that_no_lab_decided_counts_where_all_labs_took_part(complete: bool) -> None:
    run: dict[str, Any] = json.loads(json.dumps(report_runs.run(complete=complete)))
    claims(run)["motive"] |= {"verdict": None, "as_expected": False}
    assert ("motive" in markdown.render(run)) == complete


def test_a_run_that_tested_nothing_is_not_good() -> None:
    run: dict[str, Any] = json.loads(json.dumps(report_runs.run()))
    for lab in run["labs"]:
        lab["findings"] = [one for one in lab["findings"] if one["verdict"] == "skipped"]
    assert markdown.render(run).startswith("### ❌ testbed: nothing was tested")


@pytest.mark.parametrize(
    "text", ["a|b", "a\nb", "<script>x</script>", "[x](http://y)", "\x1b[31mred", "`a`", "\\|"]
)
def test_the_words_of_a_lab_are_no_markup(text: str) -> None:
    run: dict[str, Any] = json.loads(json.dumps(report_runs.broken_run()))
    run["labs"][0]["findings"][4]["problem"] = text
    (row,) = [line for line in markdown.render(run).splitlines() if "| maybe |" in line]
    plain = row.replace("\\\\", "").replace("\\|", "").replace("\\<", "")
    plain = plain.replace("\\[", "").replace("\\`", "")
    assert plain.count("|") == 5
    assert not {"<", "[", "`", "\x1b"} & set(plain)


def test_a_long_list_is_cut() -> None:
    run: dict[str, Any] = json.loads(json.dumps(report_runs.broken_run()))
    run["labs"][0]["broken"] = [f"suite {number} {'x' * 1000}" for number in range(500)]
    text = markdown.render(run)
    assert len(text) < 1 << 16
    assert "405 more" in text


def test_a_summary_is_added_to_what_is_there(tmp_path: Path) -> None:
    run, summary, page = tmp_path / "run.json", tmp_path / "summary", tmp_path / "report.html"
    run.write_text(json.dumps(report_runs.run()))
    summary.write_text("before\n")
    for _ in range(2):
        assert cli.run(["report", str(run), "--markdown", str(summary)]) == 0
    text = summary.read_text()
    assert text.startswith("before\n### ")
    assert text.count("###") == 2
    assert not page.exists()
    assert cli.run(["report", str(run), "--markdown", str(summary), "--html", str(page)]) == 0
    assert page.stat().st_size
    assert summary.read_text().count("###") == 3


def damaged() -> list[dict[str, Any]]:
    """Records with the version of a whole one."""
    whole = json.dumps(report_runs.run())
    without, other, inner = json.loads(whole), json.loads(whole), json.loads(whole)
    del without["labs"]
    other["labs"] = 5
    del inner["labs"][0]["findings"][0]["verdict"]
    return [{"version": without["version"]}, without, other, inner]


@pytest.mark.parametrize("record", damaged(), ids=["empty", "no labs", "odd labs", "no verdict"])
def test_a_damaged_record_is_wrong_use_and_nothing_is_written(
    record: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, summary, page = tmp_path / "run.json", tmp_path / "summary", tmp_path / "report.html"
    run.write_text(json.dumps(record))
    for words in (["--html", str(page)], ["--markdown", str(summary)]):
        assert cli.run(["report", str(run), *words]) == 2
        assert str(run) in capsys.readouterr().err
    assert cli.run(["report", str(run), "--markdown", str(summary), "--html", str(page)]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize("words", [[], ["--html", "-", "--markdown", "-"]])
def test_a_report_needs_one_place(words: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run.json"
    run.write_text(json.dumps(report_runs.run()))
    assert cli.run(["report", str(run), *words]) == 2
