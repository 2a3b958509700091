"""The gate from end to end: an accepted baseline, a target that is asked, a run that is judged, and what is written."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from harness.cli.main import execute as command
from harness.errors import CapabilityError, FileFormatError, HarnessError, StorageError, UnreachableError, UsageError
from harness.gate import asking
from harness.gate.baseline import read_baseline
from harness.gate.gate import accept, accept_run, ask_gate, judge_run
from harness.gate.order import Order, Rule
from harness.paths import reports_dir
from harness.records import Capabilities, Mode
from harness.reports.reading import read_run

from ..providers import stub_server
from ..providers.test_endpoint_run import ENDPOINT, serving
from .conftest import AGREEMENT, Moved

AT_ONCE = 24
N_CLUSTERS = 6 * 12


@pytest.fixture
def order(project: Path, make_eval: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> Order:
    """The small eval, with a baseline of the unmoved target, looked at every `AT_ONCE` clusters."""
    monkeypatch.setattr(asking, "AT_ONCE", AT_ONCE)
    order = Order(target="scripted", eval=make_eval(), baseline=project / "base.json", out=project / "first")
    asyncio.run(accept(order, Moved()))
    return replace(order, out=project / "gate")


def test_an_unmoved_target_passes_and_is_not_asked_everything(order: Order) -> None:
    target = Moved()
    result = asyncio.run(ask_gate(order, target))
    assert (result.decision, result.exit_code) == ("pass", 0)
    assert result.score.estimate == 0.0
    assert result.score.n_clusters == 2 * AT_ONCE < N_CLUSTERS == result.n_cap
    assert result.n_requests == len(target.asked) == len(set(target.asked)) == 4 * AT_ONCE
    assert [look.n_clusters for look in result.looks] == [AT_ONCE, 2 * AT_ONCE]
    assert result.reason == "agreement did not change [-0.0640, 0.0000], within the margin of 0.1 of 1"


def test_a_moved_target_fails_at_once_and_the_prompts_that_moved_are_named(order: Order) -> None:
    result = asyncio.run(ask_gate(order, Moved(lambda prompt: 0.6 if prompt.concept < "m" else 0.3)))
    assert (result.decision, result.exit_code) == ("fail", 1)
    assert result.score.n_clusters == AT_ONCE
    assert result.score.estimate == pytest.approx(-0.45, abs=0.1)
    assert {unit.concept for unit in result.units[:8]} <= {c for c in result.concepts if c < "m"}
    assert result.units[0].run == pytest.approx(0.4, abs=0.01)


def test_what_earlier_runs_left_in_the_journal_is_no_answer(order: Order) -> None:
    asyncio.run(ask_gate(order, Moved()))
    again = Moved(lambda _: 0.6)
    assert asyncio.run(ask_gate(order, again)).decision == "fail"
    assert again.asked


def test_an_interrupted_gate_goes_on_only_if_told_to(order: Order) -> None:
    class Gone(Moved):
        async def observe(self, prompts, readout):  # type: ignore[no-untyped-def]
            if len(self.asked) > 2 * AT_ONCE:
                raise KeyboardInterrupt
            return await super().observe(prompts, readout)

    def interrupted() -> None:
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(ask_gate(order, Gone()))

    interrupted()
    resumed = Moved()
    result = asyncio.run(ask_gate(replace(order, resume=True), resumed))
    assert result.decision == "pass"
    assert result.n_planned == 4 * AT_ONCE > len(resumed.asked)
    interrupted()
    anew = Moved()
    asyncio.run(ask_gate(order, anew))
    assert len(anew.asked) == 4 * AT_ONCE
    assert order.out is not None
    assert not list(order.out.parent.glob(".*journal*"))


def test_a_gate_that_could_not_be_found_again_leaves_no_journal(order: Order) -> None:
    class Broken(Moved):
        async def observe(self, *_):  # type: ignore[no-untyped-def]
            raise UnreachableError("gone")

    with pytest.raises(UnreachableError):
        asyncio.run(ask_gate(replace(order, out=None), Broken()))
    assert not list(reports_dir().glob(".*journal*"))


@pytest.mark.parametrize(("setting", "code"), [("fail", 3), ("pass", 0)])
def test_too_few_clusters_are_inconclusive_and_a_setting_says_what_that_means(order: Order, setting: str, code: int) -> None:
    result = asyncio.run(ask_gate(replace(order, rule=Rule(max_clusters=10, inconclusive=setting)), Moved()))
    assert (result.decision, result.exit_code) == ("inconclusive", code)
    assert result.n_cap == result.score.n_clusters == 10
    assert "10 clusters do not decide" in result.reason


def test_a_target_at_the_margin_is_asked_up_to_the_cap(order: Order) -> None:
    result = asyncio.run(ask_gate(order, Moved(lambda _: 0.1)))
    assert result.decision == "inconclusive"
    assert result.score.n_clusters == N_CLUSTERS


def test_a_margin_and_an_alpha_of_one_s_own_stand_in_for_the_eval_s(order: Order) -> None:
    moved = Moved(lambda _: 0.3)
    assert asyncio.run(ask_gate(order, moved)).decision == "fail"
    result = asyncio.run(ask_gate(replace(order, rule=Rule(margin=0.5, alpha=0.2)), moved))
    assert (result.decision, result.margin, result.alpha) == ("pass", 0.5, 0.2)
    with pytest.raises(FileFormatError, match="margin"):
        asyncio.run(ask_gate(replace(order, rule=Rule(margin=-1)), moved))
    with pytest.raises(UsageError, match="--max-clusters 0"):
        asyncio.run(ask_gate(replace(order, rule=Rule(max_clusters=0)), moved))


def test_too_many_failures_are_incomplete_and_never_passed(order: Order) -> None:
    target = Moved(fails=lambda prompt: prompt.concept == "food")
    result = asyncio.run(ask_gate(order, target))
    assert (result.decision, result.exit_code) == ("incomplete", 3)
    assert result.failures == {"HTTP 500": result.n_failed}
    assert "prompts failed" in result.reason


def test_a_target_that_fails_throughout_is_not_asked_to_the_end(order: Order) -> None:
    target = Moved(fails=lambda _: True)
    assert asyncio.run(ask_gate(order, target)).decision == "incomplete"
    assert len(set(target.asked)) == 2 * AT_ONCE


def test_the_folder_holds_the_answer_in_every_form_and_the_run_that_was_made(order: Order) -> None:
    result = asyncio.run(ask_gate(order, Moved()))
    assert order.out is not None
    names = {path.name for path in order.out.iterdir()}
    assert names >= {"gate.json", "report.html", "junit.xml", "summary.md", "run.html", "manifest.json", "trials.parquet"}
    assert json.loads((order.out / "gate.json").read_text()) == asdict(result)
    assert result.folder == str(order.out)
    asked = pq.read_table(order.out / "observations.parquet")
    assert asked.num_rows == result.n_planned == read_run(order.out).manifest["counts"]["planned"]
    assert set(asked.column("arm").to_pylist()) == {"clean", "related"}


def test_a_folder_that_holds_something_else_is_left_alone(order: Order) -> None:
    assert order.out is not None
    order.out.mkdir()
    (order.out / "thesis.txt").write_text("mine")
    with pytest.raises(StorageError, match="no gate's folder"):
        asyncio.run(ask_gate(order, Moved()))
    with pytest.raises(StorageError, match="no gate's folder"):
        judge_run(order.out.parent / "first", order.baseline_path, out=order.out.parent / "first")
    assert (order.out / "thesis.txt").read_text() == "mine"


def test_a_finished_run_is_judged_by_the_two_way_interval(order: Order, project: Path) -> None:
    asyncio.run(
        accept(replace(order, baseline=project / "other.json", out=project / "moved"), Moved(lambda p: len(p.text) % 5 / 8))
    )
    same = judge_run(project / "first", order.baseline_path, out=project / "judged")
    moved = judge_run(project / "moved", order.baseline_path, out=project / "judged")
    assert (same.decision, moved.decision) == ("pass", "fail")
    assert moved.method == "two-way"
    assert moved.score.n_units == 2 * N_CLUSTERS
    assert moved.run["run_id"] == "moved"
    assert json.loads((project / "judged" / "gate.json").read_text())["decision"] == "fail"


def test_a_run_that_lacks_prompts_of_the_baseline_is_refused(order: Order, project: Path) -> None:
    argv = ["run", "--target", "scripted", "--eval", order.eval, "--concept", "animal", "--out", str(project / "part")]
    assert command(argv) == 0
    with pytest.raises(UsageError, match="prompts were not asked") as refused:
        judge_run(project / "part", order.baseline_path)
    assert "'sentences': 12" in str(refused.value.hint)


def test_a_run_that_answered_from_its_journal_says_so(order: Order, project: Path) -> None:
    argv = ["run", "--target", "scripted", "--eval", order.eval, "--out", str(project / "run")]
    assert command(argv) == command(argv) == 0
    result = judge_run(project / "run", accept_run(project / "run", project / "own.json", eval_name=order.eval))
    assert result.decision == "pass"
    assert "came from its journal" in result.reason


def test_another_eval_pack_or_scoring_is_refused_before_anything_is_asked(order: Order, make_eval: Callable[..., str]) -> None:
    target = Moved()
    make_eval(AGREEMENT.replace("0.1", "0.2"))
    with pytest.raises(UsageError, match=r"eval_digest is [0-9a-f]{12}\.\.\. and was") as refused:
        asyncio.run(ask_gate(order, target))
    assert "--accept" in str(refused.value.hint)
    make_eval()
    with pytest.raises(UsageError, match="pack_digest"):
        asyncio.run(ask_gate(replace(order, pack="lexical"), target))
    assert not target.asked


def test_another_model_behind_the_target_is_told_and_decides_nothing(order: Order) -> None:
    target = Moved()
    target.info = replace(target.info, revision="new", settings={"dtype": "float32"})
    result = asyncio.run(ask_gate(order, target))
    assert result.decision == "pass"
    assert {(d.key, d.baseline, d.run) for d in result.differences} == {
        ("revision", "unknown", "new"),
        ("settings.dtype", "unknown", "float32"),
    }


def test_another_tokenizer_is_refused(order: Order) -> None:
    target = Moved()
    target.info = replace(target.info, tokenizer_digest="f" * 64)
    with pytest.raises(UsageError, match=r"tokenizer_digest is f{12}\.\.\. and was unknown"):
        asyncio.run(ask_gate(order, target))
    assert not target.asked


@pytest.mark.parametrize(
    "gate",
    [
        'metric = "delta_log_odds"\narm = "related"\ncontrol = "matched"',
        'metric = "count_success"\narm = "related"',
        'metric = "delta_mass"\narm = "related"',
        'metric = "clean_log_odds"',
    ],
)
def test_every_metric_passes_what_did_not_move(project: Path, make_eval: Callable[..., str], gate: str) -> None:
    order = Order(
        target="scripted", eval=make_eval(gate + "\nmargin = 0.9\nbound = 1.5\nalpha = 0.05"), baseline=project / "b.json"
    )
    asyncio.run(accept(replace(order, out=project / "run"), Moved()))
    asked = asyncio.run(ask_gate(replace(order, out=project / "gate"), Moved()))
    judged = judge_run(project / "run", order.baseline_path, out=project / "judged")
    assert asked.score.estimate == judged.score.estimate
    assert abs(judged.score.estimate or 0.0) < 0.05
    if "log_odds" not in gate:  # what lists hide leaves log-odds wide open
        assert (asked.decision, judged.decision) == ("pass", "pass")


def test_words_that_lose_their_mass_fail_a_gate_about_it(project: Path, make_eval: Callable[..., str]) -> None:
    class Known(Moved):
        def _words(self, prompt):  # type: ignore[no-untyped-def]
            injected = 0.0 if prompt.arm == "clean" else 0.4 * (1 - self.moved(prompt))
            return {" dog": 0.1 + injected, " cat": 0.3, " the": 0.6 - injected}

    spec = 'metric = "delta_mass"\narm = "related"\nmargin = 0.05\nalpha = 0.05\nbound = 0.5'
    order = Order(target="scripted", eval=make_eval(spec), baseline=project / "b.json", out=project / "gate")
    asyncio.run(accept(replace(order, out=project / "run"), Known()))
    assert asyncio.run(ask_gate(order, Known())).decision == "pass"
    assert {
        c for c, score in asyncio.run(ask_gate(order, Known(lambda _: 1.0))).concepts.items() if (score.estimate or 0) < -0.3
    }


def test_a_target_that_only_draws_cannot_be_asked_about_agreement(order: Order) -> None:
    target = Moved()
    able = Capabilities(token_ids=False, max_logprobs=0, mode=Mode.SAMPLED, max_prompts_per_request=1)
    target.info = replace(target.info, capabilities=able)
    with pytest.raises(CapabilityError, match="shows no log-probabilities"):
        asyncio.run(accept(order, target))


def test_a_baseline_is_not_made_of_failures(order: Order) -> None:
    before = order.baseline_path.read_bytes()
    with pytest.raises(UsageError, match="makes no baseline"):
        asyncio.run(accept(order, Moved(fails=lambda prompt: prompt.concept == "animal")))
    assert order.baseline_path.read_bytes() == before


def test_an_eval_without_a_gate_makes_no_baseline(project: Path) -> None:
    with pytest.raises(UsageError, match="declares no gate") as refused:
        asyncio.run(accept(Order(target="scripted", eval="transfer", baseline=project / "b.json"), Moved()))
    assert "[gate]" in str(refused.value.hint)


def test_a_crossed_design_has_one_cluster_a_concept(project: Path, make_eval: Callable[..., str]) -> None:
    order = Order(target="scripted", eval=make_eval(design="crossed"), baseline=project / "b.json", out=project / "run")
    asyncio.run(accept(order, Moved()))
    clusters = read_baseline(project / "b.json").clusters
    assert len(clusters) == 6
    assert {len(cluster.prompts) for cluster in clusters} == {12 + 12 * 12}


def test_the_command_accepts_then_passes_and_prints_the_answer_first(
    project: Path, make_eval: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["--eval", make_eval(), "--target", "scripted"]
    (project / "evals").mkdir()
    (project / "evals" / "mine.toml").write_text("")  # makes this folder a project, so that reports lie here
    assert command(["gate", *own, "--accept"]) == 0
    assert (project / "reports" / "baselines" / "small-scripted.json").is_file()
    capsys.readouterr()
    assert command(["gate", *own]) == 0
    assert capsys.readouterr().out.startswith("PASS: agreement did not change")
    assert command(["gate", *own, "--json", "--max-clusters", "5"]) == 3
    assert json.loads(capsys.readouterr().out)["decision"] == "inconclusive"
    gate = min((project / "reports").glob("*-gate"))
    assert command(["gate", str(gate)]) == 2  # it stopped early, so it lacks prompts of the baseline


def test_a_limit_that_is_reached_ends_a_gate_with_what_it_heard(order: Order, capsys: pytest.CaptureFixture[str]) -> None:
    assert order.baseline is not None
    argv = ["gate", "--eval", order.eval, "--target", "scripted", "--baseline", str(order.baseline)]
    assert command([*argv, "--accept"]) == 0
    capsys.readouterr()
    # A look at 24 clusters takes two batches of each of the six concepts.
    assert command([*argv, "--json", "--max-requests", "15"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert (told["decision"], told["score"]["n_clusters"]) == ("inconclusive", AT_ONCE)
    assert told["reason"].endswith("and --max-requests 15 is reached")
    assert command([*argv, "--max-requests", "3"]) == 3
    assert "a higher limit lets it ask on" in capsys.readouterr().err
    assert command([*argv, "--max-cost", "1"]) == 2
    assert "declares no prices" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "name either a finished run or a --target"),
        (["somewhere", "--target", "scripted"], "name either a finished run or a --target"),
        (["--target", "scripted", "--resume"], "--resume needs the --out"),
        (["--target", "scripted", "--max-requests", "0"], "--max-requests 0: must be at least 1"),
        (["--target", "scripted", "--max-cost", "0"], "--max-cost 0: must be above 0"),
        (["--target", "scripted", "--baseline", "none.json"], "none.json: no such baseline"),
        (["nowhere"], "nowhere: no such folder"),
    ],
)
@pytest.mark.usefixtures("project")
def test_what_does_not_go_together_is_told(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["gate", *argv]) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")


def test_errors_are_the_harness_s_own(order: Order) -> None:
    with pytest.raises(HarnessError):
        asyncio.run(ask_gate(replace(order, target="nobody"), Moved()))


def test_an_endpoint_is_held_to_its_baseline_over_http(
    project: Path, make_eval: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = stub_server.stub_logprobs
    (project / "providers").mkdir()
    (project / "providers" / "stub.toml").write_text(ENDPOINT)
    stub = stub_server.StubServer()
    argv = ["gate", "--target", "stub", "--eval", make_eval()]
    with serving(stub):
        monkeypatch.setenv("STUB_URL", stub.base_url)
        assert command([*argv, "--accept"]) == 0
        asked = len(stub.requests)
        assert command(argv) == 0
        assert len(stub.requests) > asked
        monkeypatch.setattr(stub_server, "stub_logprobs", lambda ids: trained([*ids, 1]))
        assert command(argv) == 1
