"""Does interference transfer between two small models that are looked inside? Packs from both, and from one for the other.

    python reports/benchmarks/embedded.py [--maps DIR] [--out DIR] [--basis sae --basis random ...] [--limit N]

For each basis: the pack of shared pairs, and the packs of each source alone; each put to both targets. Prints a Markdown
table of contrasts over all concepts, and how well the predicted shifts rank the observed ones. Makes the maps that are
missing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SOURCES = ("smollm2-135m", "gemma3-270m")
CONTRASTS = (
    ("high", "matched"),
    ("high", "low"),
    ("high", "random"),
    ("high", "shuffled"),
    ("related", "matched"),
    ("self", "matched"),
)
PACKS = {"shared": SOURCES, **{f"{source} alone": (source,) for source in SOURCES}}


def harness(*argv: str) -> str:
    """Run `harness` and return what it printed on stdout; its notes go to stderr."""
    done = subprocess.run([sys.executable, "-m", "harness", *argv], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in (0, 3):
        raise SystemExit(f"harness {' '.join(argv)} ended with {done.returncode}")
    return done.stdout


def distilled(basis: str, sources: tuple[str, ...], options: argparse.Namespace) -> Path:
    """The pack of `sources`, made first where it is missing."""
    pack = options.out / f"pack-{'-'.join(sources)}-{basis}"
    if not (pack / "pack.toml").is_file():
        concepts = [part for concept in options.concept for part in ("--concept", concept)]
        harness(
            "distill",
            "--sources",
            ",".join(sources),
            "--basis",
            basis,
            "--maps",
            str(options.maps),
            "--out",
            str(pack),
            *concepts,
        )
    return pack


def asked(pack: Path, target: str, options: argparse.Namespace) -> dict[str, Any]:
    """The summary of a run of `pack` on `target`, from its folder where it has been asked before."""
    run = options.out / f"run-{pack.name}-{target}"
    if not (run / "summary.json").is_file():
        limit = [] if options.limit is None else ["--limit", str(options.limit)]
        harness("run", "--pack", str(pack), "--target", target, "--out", str(run), *limit)
    summary: dict[str, Any] = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return summary


def cell(row: dict[str, Any] | None) -> str:
    """An estimate with its interval, and its p."""
    if row is None or row["estimate"] is None:
        return "-"
    if row["ci_low"] is None:
        return f"{row['estimate']:+.3f}"
    return f"{row['estimate']:+.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}], p {row['p']:.3f}"


def line(basis: str, name: str, target: str, summary: dict[str, Any], concepts: int) -> str:
    """A row of the table: contrasts in nats of log-odds over all concepts."""
    found = {
        (c["arm"], c["control"]): c for c in summary["contrasts"] if c["concept"] == "all" and c["metric"] == "delta_log_odds"
    }
    rank = summary["prediction"]
    rho = "-" if rank["spearman"] is None else f"{rank['spearman']:+.2f} [{rank['ci_low']:.2f}, {rank['ci_high']:.2f}]"
    cells = [cell(found.get(contrast)) for contrast in CONTRASTS]
    return "| " + " | ".join([basis, name, target, str(concepts), *cells, rho]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", type=Path, default=Path("reports"))
    parser.add_argument("--out", type=Path, default=Path("reports/embedded"))
    parser.add_argument("--basis", action="append", choices=("sae", "neurons", "unembedding", "random"))
    parser.add_argument("--concept", action="append", default=[])
    parser.add_argument("--limit", type=int)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    heads = [
        "basis",
        "pack",
        "target",
        "concepts",
        *(f"{arm} - {control}" for arm, control in CONTRASTS),
        "predicted, Spearman",
    ]
    print("| " + " | ".join(heads) + " |", "|" + "---|" * len(heads), sep="\n")
    started = time.perf_counter()
    for basis in options.basis or ["sae"]:
        for name, sources in PACKS.items():
            pack = distilled(basis, sources, options)
            concepts = len({json.loads(row)["concept"] for row in (pack / "probes.jsonl").read_text("utf-8").splitlines()})
            for target in SOURCES:
                print(line(basis, name, target, asked(pack, target, options), concepts), flush=True)
    print(f"{time.perf_counter() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
