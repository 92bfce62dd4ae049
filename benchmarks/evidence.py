"""Can the verdicts be trusted? Simulated rollouts under Understudy's rules and under those of the field, side by side.

`python -m benchmarks.evidence` (whole: half an hour of two cores that do nothing else, up to 82 minutes of busy ones) or with `--quick` (a
minute, too few runs to conclude from). A process a core; every run has its own seed, so the figures do not depend on how many. Finished
pieces are kept in `results/.evidence-run.jsonl`: a second start goes on; a changed benchmark starts anew. Writes
`results/evidence.json`, `results/evidence-*.png` and the tables of `docs/concepts/evidence-proof.md` (the last two not with `--quick`).
`--render` only draws and writes from the JSON that is there.

evidence_traffic     users, requests, what stable and candidate answer
evidence_rollouts    one rollout under all rules
evidence_understudy  Understudy: the product itself
evidence_peers       Argo Rollouts, Flagger, Kayenta, repeated tests, GrowthBook
evidence_samples     users until a verdict, without a rollout around it; the bounds nobody beats
evidence_cells       which cells there are
evidence_tables      from runs to tables
evidence_plots       pictures
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import platform as machine
import sys
import time
import zlib
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evidence_cells import SEED, Piece, pieces
from benchmarks.evidence_plots import draw
from benchmarks.evidence_tables import summarise, write_document

HERE = Path(__file__).parent
RESULTS = HERE / "results"
FINISHED = RESULTS / ".evidence-run.jsonl"
DOCUMENT = HERE.parent / "docs/concepts/evidence-proof.md"
QUICK = 0.005
"""Share of the runs with `--quick`."""


def digest() -> str:
    """Changes with the benchmark and with what it measures, so that finished pieces of another program are not taken for this one's."""
    sources = [*sorted(HERE.glob("evidence_*.py")), *sorted((HERE.parent / "services/evidence").glob("*.py"))]
    others = ("evidence_tables", "evidence_plots", "evidence_speed")
    read = (source.read_bytes() for source in sources if source.stem not in others)
    return hashlib.sha256(b"".join(read)).hexdigest()[:16]


def compute(index: int) -> tuple[str, list[Any], float]:
    """One piece, in a worker: its name, its runs, seconds of CPU."""
    piece = _work[index]
    began = time.process_time()
    rng = np.random.default_rng((SEED, zlib.crc32(piece.name.encode())))
    return piece.name, piece.compute(piece.first, piece.runs, rng), time.process_time() - began


_work: list[Piece] = []


def finished(key: str) -> dict[str, tuple[list[Any], float]]:
    """Pieces that an earlier start of the same program has finished."""
    found: dict[str, tuple[list[Any], float]] = {}
    if FINISHED.exists():
        for line in FINISHED.read_text().splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue  # the last line of a start that was cut off
            if row["key"] == key:
                found[row["piece"]] = row["runs"], row["seconds"]
    return found


def work(share: float, workers: int) -> dict[str, tuple[list[Any], float]]:
    """All pieces, computed here or found from an earlier start."""
    key = digest()
    done = finished(key)
    _work[:] = pieces(share)
    missing = [i for i, piece in enumerate(_work) if piece.name not in done]
    print(f"{len(_work)} pieces, {len(_work) - len(missing)} of them finished before, {workers} processes", flush=True)
    began = time.monotonic()
    RESULTS.mkdir(exist_ok=True)
    # Forked, so that workers find the pieces; each is nice to what else runs here.
    with FINISHED.open("a") as file, multiprocessing.get_context("fork").Pool(workers, os.nice, (10,)) as pool:
        for number, (name, runs, seconds) in enumerate(pool.imap_unordered(compute, missing), 1):
            done[name] = runs, seconds
            file.write(json.dumps({"key": key, "piece": name, "runs": runs, "seconds": round(seconds, 2)}) + "\n")
            file.flush()
            if number % 25 == 0 or number == len(missing):
                print(f"{number}/{len(missing)} pieces after {time.monotonic() - began:.0f} s, last {name}", flush=True)
    return {piece.name: done[piece.name] for piece in _work}


def by_cell(done: dict[str, tuple[list[Any], float]]) -> tuple[dict[str, list[Any]], dict[str, float]]:
    """Runs and seconds of CPU of each cell."""
    runs: dict[str, list[Any]] = {}
    seconds: dict[str, float] = {}
    for name, (some, spent) in done.items():
        cell = name.rsplit("#", 1)[0]
        runs.setdefault(cell, []).extend(some)
        seconds[cell] = seconds.get(cell, 0.0) + spent
    return runs, seconds


def main(arguments: Iterable[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few runs a cell, about a minute")
    parser.add_argument(
        "--share", type=float, default=1.0, help="share of the runs: 0.1 takes minutes, with wide intervals"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes; default: one a core")
    parser.add_argument("--render", action="store_true", help="only pictures and document, from evidence.json")
    options = parser.parse_args(None if arguments is None else list(arguments))
    target = RESULTS / ("evidence-quick.json" if options.quick else "evidence.json")
    if not options.render:
        began = time.monotonic()
        runs, seconds = by_cell(work(QUICK if options.quick else options.share, options.workers))
        result = {
            "command": "python -m benchmarks.evidence"
            + (" --quick" if options.quick else f" --share {options.share:g}" if options.share < 1 else ""),
            "machine": {"cores": os.cpu_count(), "python": machine.python_version()},
            "versions": {name: version(name) for name in ("numpy", "scipy")},
            "seed": SEED,
            "seconds": round(time.monotonic() - began, 1),
            "cpu_seconds": {cell: round(spent, 1) for cell, spent in seconds.items()},
            "tables": summarise(runs),
        }
        target.write_text(json.dumps(result, indent=1) + "\n")
        print(f"wrote {target}")
    if not options.quick:
        result = json.loads(target.read_text())
        draw(result["tables"], RESULTS)
        write_document(result["tables"], result["command"], DOCUMENT)
        print(f"drew {RESULTS}/evidence-*.png and wrote the tables of {DOCUMENT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
