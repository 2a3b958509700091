"""What a gate tells machines and people: JUnit, Markdown and annotations, whatever the texts in them hold."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from markdown_it import MarkdownIt

from harness.gate.outputs import JUNIT, SUMMARY, write_outputs
from harness.gate.result import Difference, GateResult, Score, Unit
from harness.masking import Mask

KEY = "sk-outputs-test-0123456789"
RESULT = GateResult(
    decision="fail",
    exit_code=1,
    reason="the target lost 0.3 nat, more than the 0.1 that pass",
    metric="clean_log_odds",
    unit="nat",
    arm=None,
    control=None,
    margin=0.1,
    alpha=0.01,
    method="anytime",
    score=Score(estimate=-0.3, ci_low=-0.4, ci_high=-0.2, n_units=80, n_clusters=40),
    n_cap=100,
    n_planned=80,
    n_failed=1,
    max_failed_share=0.02,
    n_requests=82,
    failures={"HTTP 500": 1},
    concepts={
        "animal": Score(estimate=-0.5, ci_low=-0.7, ci_high=-0.3, n_units=40, n_clusters=20),
        "food": Score(estimate=-0.1, ci_low=-0.3, ci_high=0.1, n_units=40, n_clusters=20),
        "tool": Score(reason="no sentence of it was asked"),
    },
    units=[Unit(concept="animal", arm="clean", prompt="The dog", baseline=-1.0, run=-3.0)],
    differences=[Difference(key="revision", baseline="abc", run="def")],
    run={"target": "my-model", "model": "m"},
    baseline={"name": "my-model", "model": "m"},
)
PASSED = replace(RESULT, decision="pass", exit_code=0)
NASTY = "a|b`c\n## <script>alert(1)</script> [x](http://evil.example) *b* _i_ @all $x$ \x1b[0m ]]> & \u202e www.evil.example"


@pytest.fixture(autouse=True)
def _outside_github(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)


def written(result: GateResult, folder: Path) -> tuple[ET.Element, str]:
    """The suite of junit.xml, and summary.md."""
    write_outputs(result, folder)
    root = ET.parse(folder / JUNIT).getroot()
    assert root.tag == "testsuites"
    (suite,) = root
    return suite, (folder / SUMMARY).read_text(encoding="utf-8")


def outcomes(suite: ET.Element) -> dict[str | None, str]:
    """How each case ended, by its name: the element in it, or `passed`."""
    ended = {}
    for case in suite.findall("testcase"):
        tags = {child.tag for child in case} & {"failure", "error", "skipped"}
        ended[case.get("name")] = "".join(tags) or "passed"
    return ended


@pytest.mark.parametrize(
    ("decision", "exit_code", "expected"),
    [
        ("pass", 0, "passed"),
        ("fail", 1, "failure"),
        ("inconclusive", 1, "failure"),
        ("inconclusive", 0, "skipped"),
        ("incomplete", 3, "error"),
    ],
)
def test_the_gates_case_ends_as_the_gate_did(tmp_path: Path, decision: str, exit_code: int, expected: str) -> None:
    suite, _ = written(replace(RESULT, decision=decision, exit_code=exit_code), tmp_path)
    assert outcomes(suite)["gate"] == expected


def test_the_counts_of_the_suite_are_those_of_its_cases(tmp_path: Path) -> None:
    suite, _ = written(RESULT, tmp_path)
    ended = outcomes(suite)
    assert ended == {"gate": "failure", "animal": "failure", "food": "passed", "tool": "skipped"}
    assert [suite.get(name) for name in ("tests", "failures", "errors", "skipped")] == ["4", "2", "0", "1"]
    failure = suite.find("testcase[@name='gate']/failure")
    assert failure is not None
    assert failure.get("message") == RESULT.reason
    assert "-0.3000 [-0.4000, -0.2000] nat" in (failure.text or "")


def test_no_case_is_red_where_the_gate_passed(tmp_path: Path) -> None:
    suite, summary = written(PASSED, tmp_path)
    assert set(outcomes(suite).values()) == {"passed", "skipped"}
    assert "below the margin by themselves: animal" in summary, "yet the summary says it"


def test_the_summary_answers_first_and_then_shows_what_moved(tmp_path: Path) -> None:
    _, summary = written(RESULT, tmp_path)
    first, answer, *rest = [line for line in summary.splitlines() if line]
    assert first == "### Gate failed: my-model"
    assert answer == f"**{RESULT.reason}**"
    assert "| **all** | -0.3000 | [-0.4000, -0.2000] | 80 | 40 |" in rest
    assert "| animal | clean | <code>The dog</code> | -1.0000 | -3.0000 |" in rest
    assert "| revision | <code>abc</code> | <code>def</code> |" in rest


def nasty(text: str) -> GateResult:
    """`text` wherever one from elsewhere may stand."""
    return replace(
        RESULT,
        reason=text,
        failures={text: 1},
        concepts={text: Score(reason=text), "food": RESULT.concepts["food"]},
        units=[Unit(concept=text, arm=text, prompt=text, baseline=0.0, run=0.0)],
        differences=[Difference(key=text, baseline=text, run=text)],
        run={"target": text},
    )


def tokens(summary: str) -> list[str]:
    """What a reader of Markdown makes of it: the kinds of its blocks and of what stands inside their lines, in order."""
    found = []
    for block in MarkdownIt("gfm-like", {"html": True, "linkify": False}).parse(summary):
        found += [block.type, *(f"{child.type} {child.content}" * (child.type != "text") for child in block.children or [])]
    return [kind for kind in found if kind]


def test_no_text_can_change_the_layout_of_the_summary(tmp_path: Path) -> None:
    _, plain = written(nasty("plain"), tmp_path / "plain")
    _, summary = written(nasty(NASTY), tmp_path / "nasty")
    assert [kind.replace("text_special", "") for kind in tokens(summary)] == tokens(plain)
    assert not set(summary) & set("\x1b\u202e")
    assert "://" not in summary, "no address becomes a link"
    assert "www." not in summary


def test_no_text_can_break_the_xml(tmp_path: Path) -> None:
    suite, _ = written(nasty(NASTY), tmp_path)
    case = suite.find("testcase[@name='gate']/failure")
    assert case is not None
    assert "<script>alert(1)</script>" in (case.get("message") or "")
    assert len(suite.findall("testcase")) == 3


def test_a_long_prompt_is_cut_and_few_are_listed(tmp_path: Path) -> None:
    many = [Unit(concept="animal", arm="clean", prompt="word " * 1000, baseline=0.0, run=1.0)] * 50
    _, summary = written(replace(RESULT, units=many), tmp_path)
    assert summary.count("word word") < 400
    assert summary.count("…</code>") == 10


def test_no_output_holds_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    Mask(KEY)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    told = f"HTTP 401: Incorrect key {KEY}"
    leaky = replace(
        RESULT,
        reason=told,
        failures={told: 1},
        units=[Unit(concept=KEY, arm="clean", prompt=told, baseline=0.0, run=0.0)],
        differences=[Difference(key="server", baseline=told, run=told)],
        run={"target": KEY},
    )
    write_outputs(leaky, tmp_path)
    texts = [path.read_text(encoding="utf-8") for path in tmp_path.iterdir()] + [capsys.readouterr().out]
    assert len(texts) == 3
    for text in texts:
        assert "***" in text.replace("&#42;", "*")
        assert KEY not in re.sub(r"&#(\d+);", lambda found: chr(int(found[1])), text)


def test_the_jobs_summary_is_appended_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "step.md"
    page.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    _, summary = written(RESULT, tmp_path / "out")
    assert page.read_text() == "before\n" + summary + "\n"


@pytest.mark.parametrize(
    ("decision", "exit_code", "level"),
    [("pass", 0, "notice"), ("fail", 1, "error"), ("inconclusive", 0, "warning"), ("incomplete", 3, "error")],
)
def test_github_gets_one_annotation(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    decision: str,
    exit_code: int,
    level: str,
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    write_outputs(replace(RESULT, decision=decision, exit_code=exit_code, reason="100% lost, or so"), tmp_path)
    (line,) = capsys.readouterr().out.splitlines()
    found = re.fullmatch(r"::(\w+) title=([^,:]*)::(.*)", line)
    assert found is not None
    assert found[1] == level
    assert found[2] == f"Gate {decision.replace('pass', 'passed').replace('fail', 'failed')}%3A my-model"
    assert found[3].startswith("100%25 lost, or so%0A")


def test_nothing_is_printed_outside_github(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_outputs(RESULT, tmp_path)
    assert capsys.readouterr() == ("", "")
