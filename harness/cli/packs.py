"""`harness packs`: list, show, check, seal, import-published, build-lexical."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from harness import paths
from harness.cli.console import note, print_json, print_table
from harness.packs import pack as packs
from harness.packs.embedder import Embedder
from harness.packs.lexical import LexicalSizes, common_words, draft_lexical
from harness.packs.published import draft_published

app = App(name="packs", help="Probe packs: the room prompts/packs/, and how to make them.", help_format="plaintext")


@app.command(name="list")
def list_packs() -> None:
    """Every pack, where it comes from and what it holds."""
    rows = []
    for found in paths.entries("prompts/packs").values():
        pack = packs.load_pack(found.path)
        n_probes = sum(len(probes) for probes in pack.probes.values())
        rows.append(
            (found.name, found.origin, str(len(pack.concepts)), ",".join(pack.arms), str(n_probes), pack.manifest.description)
        )
    print_table(("pack", "from", "concepts", "arms", "probes", "description"), rows)


@app.command
def show(name: str) -> None:
    """One pack: counts, parameters, sources."""
    print_json(packs.describe(packs.find_pack(name)))


@app.command
def check(name: str) -> None:
    """Read one pack with every check: keys, digests, concepts, injections."""
    pack = packs.find_pack(name)
    note(f"{pack.path}: ok, digest {pack.digest[:12]}")


@app.command
def seal(folder: Path) -> None:
    """Accept edits that you made to a pack: bring its digests up to date."""
    note(f"{folder}: sealed, digest {packs.seal(folder).digest[:12]}")


@app.command
def import_published(
    source: Path,
    *,
    out: Path,
    injections: Annotated[int, Parameter(help="Injections for each concept and arm")] = 120,
    tokens: Annotated[int, Parameter(help="Strings in an injection")] = 30,
    seed: int = 0,
) -> None:
    """Make a pack from the authors' published token sets and sentences (SOURCE holds token_sets/ and sentences/)."""
    pack = packs.write_pack(draft_published(source, n_injections=injections, n_tokens=tokens, seed=seed), out)
    for concept, report in pack.manifest.parameters["cleanup"].items():
        shared = ", ".join(f"{pair} {n}" for pair, n in report["shared_between_arms"].items() if n)
        note(
            f"{concept}: "
            + ", ".join(f"{arm} {report[arm]['kept']}" for arm in pack.arms)
            + f"; in two arms: {shared or 'none'}"
        )
    print(pack.path)


@app.command
def build_lexical(
    *,
    out: Path,
    injections: Annotated[int, Parameter(help="Injections for each concept and arm")] = 100,
    words: Annotated[int, Parameter(help="Words in an injection")] = 16,
    seed: int = 0,
) -> None:
    """Make the lexical pack from the lexicons and prompts/words.txt (needs the extra `embedded`)."""
    sizes = LexicalSizes(injections=injections, words=words)
    candidates = common_words()
    note(f"embedding {len(candidates)} words and the lexicons")
    pack = packs.write_pack(draft_lexical(candidates, sizes, seed=seed, embed=Embedder(note).embed), out)
    print(pack.path)
