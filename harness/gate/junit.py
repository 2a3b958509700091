"""The gate's result as JUnit XML: one suite, a case for the gate and one for each concept."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from harness.gate.presentable import details, is_beyond, measured, subject
from harness.gate.result import GateResult, Score


def junit_xml(result: GateResult) -> str:
    """`fail` is a failure, `incomplete` an error; `inconclusive` is a failure where it fails the build, else skipped.

    A concept's case fails only where the gate fails and that concept lies below the margin: the gate decides over all.
    """
    root = ET.Element("testsuites")
    suite = ET.SubElement(root, "testsuite", name=f"harness gate: {subject(result)}")
    properties = ET.SubElement(suite, "properties")
    for name, value in _properties(result).items():
        ET.SubElement(properties, "property", name=name, value=value)
    _gate_case(suite, result)
    for concept, score in result.concepts.items():
        _concept_case(suite, result, concept, score)
    cases = suite.findall("testcase")
    suite.set("tests", str(len(cases)))
    for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(attribute, str(sum(case.find(tag) is not None for case in cases)))
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _properties(result: GateResult) -> dict[str, str]:
    sides = {f"{side}.{key}": str(value) for side in ("baseline", "run") for key, value in getattr(result, side).items()}
    return {"decision": result.decision, "metric": result.metric, "margin": f"{result.margin:g} {result.unit}", **sides}


def _gate_case(suite: ET.Element, result: GateResult) -> None:
    case = ET.SubElement(suite, "testcase", classname=f"harness.gate.{subject(result)}", name="gate")
    outcome = _outcome(result)
    if outcome is not None:
        ET.SubElement(case, outcome, type=result.decision, message=result.reason).text = "\n".join(details(result))
    else:
        ET.SubElement(case, "system-out").text = "\n".join([result.reason, *details(result)])


def _outcome(result: GateResult) -> str | None:
    """The element that says how the gate ended; none for a pass."""
    if result.decision == "pass":
        return None
    if result.decision == "incomplete":
        return "error"
    return "failure" if result.exit_code else "skipped"


def _concept_case(suite: ET.Element, result: GateResult, concept: str, score: Score) -> None:
    case = ET.SubElement(suite, "testcase", classname=f"harness.gate.{subject(result)}.concepts", name=concept)
    told = measured(score, result.unit)
    if score.estimate is None:
        ET.SubElement(case, "skipped", message=told)
    elif result.decision == "fail" and is_beyond(score, result.margin):
        ET.SubElement(case, "failure", type="fail", message=f"{told} is below -{result.margin:g} {result.unit}")
    else:
        ET.SubElement(case, "system-out").text = told
