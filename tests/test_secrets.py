"""A canary key is sent to endpoints that say it back in every way; nothing that a command prints or writes may hold it.

What is looked for is ten characters of the key in a row, read plainly and after undoing what an encoding may have done.
"""

from __future__ import annotations

import base64
import binascii
import html
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote_plus

import pyarrow.parquet as pq
import pytest

from harness.cli.main import execute
from harness.masking import MASK, Mask, hide_keys

from .leaky_server import LeakyServer

KEY = 'sk-canary/7f+3Aq"9w\\Zx=4Lm8Rt2&vB6'
PIECE = 10

ENDPOINT = """
api = "{api}"
base_url_env = "LEAKY_URL"
key_env = "LEAKY_KEY"
auth = "{auth}"
prices = {{ input_per_million = 1.0, output_per_million = 1.0 }}
limits = {{ attempts = 1, timeout_s = 20 }}
[targets.leaky]
model = "m"
answers_as = ["*"]
"""
KINDS = {
    "bearer": ("completions", "Authorization"),
    "api-key": ("chat", "api-key"),
    "x-api-key": ("anthropic", "x-api-key"),
}
RUN = ("run", "--pack", "lexical", "--target", "leaky", "--concept", "animal", "--limit", "2")


def readings(text: str) -> Iterator[str]:
    """`text` as it stands, and with one encoding undone."""
    yield text
    yield unquote_plus(text)
    yield html.unescape(text)
    yield re.sub(r"\\u([0-9a-fA-F]{4})", lambda found: chr(int(found[1], 16)), text)
    yield re.sub(r"\\(.)", r"\1", text)
    for run in re.findall(r"[\w+/-]{12,}", text, re.ASCII):
        for start in range(4):
            part = run[start:].replace("-", "+").replace("_", "/")
            try:
                yield base64.b64decode(part[: len(part) // 4 * 4]).decode("latin-1")
            except binascii.Error:
                continue


def tells(text: str) -> bool:
    """Whether the text gives the key away."""
    pieces = [KEY[i : i + PIECE] for i in range(len(KEY) - PIECE + 1)]
    return any(piece in reading for reading in readings(text) for piece in pieces)


def contents(path: Path) -> Iterator[str]:
    """A file as bytes, and what its format hides."""
    yield path.read_bytes().decode("latin-1")
    if path.suffix == ".parquet":
        yield json.dumps(pq.read_table(path).to_pylist(), default=str)
    if path.suffix == ".sqlite":
        with closing(sqlite3.connect(path)) as db:
            for (table,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                for row in db.execute(f"SELECT * FROM {table}"):
                    yield from (_unpacked(value) for value in row)


def _unpacked(value: object) -> str:
    if not isinstance(value, bytes):
        return str(value)
    try:
        return zlib.decompress(value).decode("latin-1")
    except zlib.error:
        return value.decode("latin-1")


@pytest.fixture
def canary(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a cache and a temporary folder inside, and the key in the environment."""
    (project / "providers").mkdir()
    for name in ("cache", "tmp"):
        (project / name).mkdir()
    monkeypatch.setenv("HARNESS_CACHE", str(project / "cache"))
    monkeypatch.setenv("TMPDIR", str(project / "tmp"))
    monkeypatch.setenv("LEAKY_KEY", KEY)
    return project


def declare(project: Path, kind: str = "bearer") -> None:
    (project / "providers/leaky.toml").write_text(ENDPOINT.format(api=KINDS[kind][0], auth=kind))


def clean(project: Path, *told: str) -> None:
    """Fails where anything that was told or written gives the key away."""
    for text in told:
        assert not tells(text), text
    files = [path for path in project.rglob("*") if path.is_file() and path.name != ".env"]
    assert files
    for path in files:
        for text in contents(path):
            assert not tells(text), f"{path.name}: {[p for p in [text] if len(p) < 2000]}"


def test_the_search_finds_the_key_in_every_spelling() -> None:
    from .leaky_server import ESCAPED, spellings

    escaped = "".join(f"\\u{ord(char):04x}" for char in KEY)
    for spelling in spellings(KEY).split(" "):
        if spelling != "Bearer":
            assert tells(f"x{spelling.replace(ESCAPED, escaped)}y"), spelling
    assert not tells("the key sk-can... is wrong, " + "A" * 200)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spares_probe", [False, True], ids=["from the start", "once it runs"])
@pytest.mark.parametrize("place", [None, "error", "page", "redirect", "header", "text", "model", "version", "models"])
def test_no_place_of_an_answer_brings_the_key_out(
    canary: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    spares_probe: bool,
    place: str | None,
) -> None:
    declare(canary, kind)
    with LeakyServer(auth=KINDS[kind][1], place=place, spares_probe=spares_probe).running() as server:
        monkeypatch.setenv("LEAKY_URL", server.base_url)
        code = execute([*RUN, "--draws", "2", "--json", "--out", "run"])
    told = capsys.readouterr()
    assert server.keys == {KEY}, told.err  # the key was sent, in the header that the file declares
    clean(canary, told.out, told.err)
    if place in (None, "header", "text", "version", "models"):
        assert code == 0, told.err
        assert (canary / "run/report.html").is_file()
    elif place in ("error", "page", "redirect"):
        assert code == 3
        assert "***" in told.err or place == "page", "that something was hidden is shown"


@pytest.mark.parametrize("place", [None, "error", "page", "redirect", "header", "text", "model", "version", "models"])
def test_a_check_of_the_target_tells_no_key(
    canary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: str | None
) -> None:
    declare(canary)
    with LeakyServer(place=place).running() as server:
        monkeypatch.setenv("LEAKY_URL", server.base_url)
        for more in ((), ("--json",)):
            execute(["targets", "check", "leaky", *more])
    told = capsys.readouterr()
    assert server.keys == {KEY}
    clean(canary, told.out, told.err)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500])
def test_a_refusal_of_any_kind_tells_no_key(
    canary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], status: int
) -> None:
    declare(canary)
    with LeakyServer(place="error", status=status).running() as server:
        monkeypatch.setenv("LEAKY_URL", server.base_url)
        assert execute([*RUN, "--out", "run"]) != 0
    told = capsys.readouterr()
    assert f"HTTP {status}" in told.err
    clean(canary, told.out, told.err)


def test_what_asks_nothing_tells_no_key(
    canary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    declare(canary)
    monkeypatch.setenv("LEAKY_URL", "http://127.0.0.1:9/v1")
    for argv in (["targets", "show", "leaky"], ["targets", "list"], [*RUN, "--dry-run"], [*RUN, "--dry-run", "--json"]):
        assert execute(list(argv)) == 0
    assert execute([*RUN, "--out", "run"]) == 3
    told = capsys.readouterr()
    clean(canary, told.out, told.err)


@pytest.mark.parametrize("limit", [("--max-requests", "20"), ("--max-cost", "0.0001"), ("--max-seconds", "0.2")])
def test_a_run_that_a_limit_stops_tells_no_key(
    canary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], limit: tuple[str, str]
) -> None:
    declare(canary)
    with LeakyServer(place="text").running() as server:
        monkeypatch.setenv("LEAKY_URL", server.base_url)
        assert execute([*RUN, *limit, "--out", "run"]) in (0, 3)
    told = capsys.readouterr()
    clean(canary, told.out, told.err)


@pytest.mark.parametrize(
    "line",
    [
        'key_env = "sk-canary/7f+3Aq9w"',
        'key_env = "{KEY}"',
        'headers = {{ Authorization = "Bearer {KEY}" }}',
        'headers = {{ X-API-Key = "{KEY}" }}',
        'api_key = "{KEY}"',
        'auth = "{KEY}"',
        'limits = {{ attempts = "{KEY}" }}',
        'description = "{KEY}',
        "key = {KEY}",
    ],
)
def test_a_key_in_the_wrong_place_of_a_file_is_refused_without_being_said(
    canary: Path, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    """People paste keys where names belong; the file is theirs, what is printed is not."""
    toml_key = KEY.replace("\\", "\\\\").replace('"', '\\"')
    text = (
        f'api = "completions"\nbase_url = "http://127.0.0.1:9/v1"\n{line.format(KEY=toml_key)}\n[targets.leaky]\nmodel = "m"\n'
    )
    (canary / "providers/leaky.toml").write_text(text)
    for argv in (["targets", "show", "leaky"], ["targets", "check", "leaky"], [*RUN, "--out", "run"]):
        assert execute(list(argv)) == 2
    told = capsys.readouterr()
    assert "leaky.toml" in told.err
    assert not tells(told.out + told.err)


def test_a_key_with_control_characters_is_refused_without_being_said(
    canary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    declare(canary)
    monkeypatch.setenv("LEAKY_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("LEAKY_KEY", f"{KEY}\n{KEY}")
    assert execute([*RUN, "--out", "run"]) == 2
    told = capsys.readouterr()
    assert "LEAKY_KEY holds control characters" in told.err
    clean(canary, told.out, told.err)


def command(*argv: str) -> list[str]:
    return [sys.executable, "-m", "harness", *argv]


CRASHING = """
import sys
from harness.cli.main import main
from harness.providers.http import provider

async def observe(self, prompts, readout):
    headers = dict(self._line.transport._session.headers)
    {statement}

provider.HttpProvider.observe = observe
main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    "statement",
    [
        'raise RuntimeError(f"cannot go on with {headers}")',
        "headers[headers['Authorization']]",
        'import asyncio; asyncio.get_running_loop().call_exception_handler({"message": f"lost: {headers}"}); raise ValueError',
        'import logging; logging.getLogger("aiohttp").error("sent %s", headers); raise ValueError',
        'import warnings; warnings.warn(f"sent {headers}"); raise ValueError',
    ],
    ids=["message", "key error", "event loop", "log", "warning"],
)
def test_a_crash_tells_no_key(canary: Path, statement: str) -> None:
    declare(canary)
    with LeakyServer().running() as server:
        done = subprocess.run(
            [sys.executable, "-c", CRASHING.format(statement=statement), *RUN, "--out", "run"],
            env=os.environ | {"LEAKY_URL": server.base_url},
            cwd=canary,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode not in (0, 3)
    assert "Traceback" in done.stderr, "a bug is still told where it is"
    clean(canary, done.stdout, done.stderr)


def test_a_whole_command_and_one_that_is_interrupted_tell_no_key(canary: Path) -> None:
    declare(canary)
    with LeakyServer(place="text", hang_s=30).running() as server:
        env = os.environ | {"LEAKY_URL": server.base_url}
        process = subprocess.Popen(
            command(*RUN, "--out", "run"),
            env=env,
            cwd=canary,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job would ignore it
        )
        wait(lambda: (canary / "cache/journal/leaky.sqlite").exists())
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 3
        clean(canary, out, err)
        server.hang_s = 0
        done = subprocess.run(command(*RUN, "--out", "run"), env=env, cwd=canary, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    clean(canary, done.stdout, done.stderr)


def wait(until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not until() and time.monotonic() < deadline:
        time.sleep(0.02)


def test_the_key_comes_from_the_file_that_is_pointed_to(
    canary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    declare(canary)
    monkeypatch.delenv("LEAKY_KEY")
    (canary / ".env").write_text(f"# mine\nexport LEAKY_KEY='{KEY}'\n")
    with LeakyServer(place="text").running() as server:
        monkeypatch.setenv("LEAKY_URL", server.base_url)
        assert execute(["targets", "check", "leaky", "--env-file", ".env"]) == 0
        assert execute([*RUN, "--env-file", ".env", "--out", "run"]) == 0
    assert server.keys == {KEY}
    told = capsys.readouterr()
    clean(canary, told.out, told.err)


def test_an_answer_is_whole_where_the_key_is_hidden(canary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The token that says the key is masked; its neighbours and every number stay."""
    declare(canary)
    with LeakyServer(place="text").running() as server:
        monkeypatch.setenv("LEAKY_URL", server.base_url)
        assert execute([*RUN, "--out", "run"]) == 0
    rows = pq.read_table(canary / "run/observations.parquet").to_pylist()
    assert all(row["error"] is None for row in rows)
    assert all(MASK in row["tokens"][0] for row in rows)
    assert all({" dog", " cat"} <= set(row["tokens"]) for row in rows)
    assert all(row["logprobs"][:2] == [-0.5, -1.5] for row in rows)


@pytest.mark.parametrize("key", ["EMPTY", "none", "text", "token-abc"])
def test_a_short_key_that_is_no_secret_spoils_no_answer(key: str) -> None:
    body = json.dumps({"text": f"{key} {key}", "token": "none"}).encode()
    assert Mask(key).body(body) == body
    assert key not in Mask(key).text(f"wrong key: {key}")


def test_no_key_hides_nothing() -> None:
    assert Mask(None).body(b"text") == b"text"
    assert Mask(None).text("text") == "text"


def test_every_key_that_was_used_is_known_to_tracebacks() -> None:
    keys: Sequence[str] = ("first-canary-0123456789", "second-canary-0123456789")
    for key in keys:
        Mask(key)
    assert hide_keys(" and ".join(keys)) == f"{MASK} and {MASK}"
