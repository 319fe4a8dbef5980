"""Fuzzing by coverage, with atheris: `scripts/fuzz [--minutes N] [--target NAME]`. Each target in a process of its own.

What makes a target fail is kept in outputs/fuzzing/NAME/crash-...; `--replay FILE --target NAME` runs it once more.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from random import Random

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "outputs" / "fuzzing"
LONGEST_S, MOST_MB, LARGEST = 10, 3000, 65_536
"""Of an example, of the process, and bytes of a file."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60, help="for all targets together (60)")
    parser.add_argument("--target", action="append", metavar="NAME", help="only this one; may be given again")
    parser.add_argument("--list", action="store_true", help="names the targets")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="runs the one --target on a file, once")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:  # before anything of ours is imported, so that it can be instrumented
        _fuzz(given.one[0], int(given.one[1]))
    from tests.faults.targets import NAMES

    if given.list:
        print("\n".join(NAMES))
        return 0
    chosen = given.target or [*NAMES]
    if unknown := [name for name in chosen if name not in NAMES]:
        parser.error(f"{unknown[0]!r}: no such target; --list names them")
    if given.replay:
        return _replay(chosen[0], given.replay.read_bytes())
    return _fuzz_each(chosen, max(1, round(60 * given.minutes / len(chosen))))


def _fuzz_each(names: list[str], seconds: int) -> int:
    """Runs each target for so long; returns how many failed."""
    tried = failed = 0
    for name in names:
        folder = _folder(name)
        before = set(folder.glob("crash-*")) | set(folder.glob("timeout-*")) | set(folder.glob("oom-*"))
        command = [sys.executable, "-m", "tests.faults.long_fuzzing", "--one", name, str(seconds)]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        said = done.stdout.decode(errors="replace")
        found = sorted((set(folder.glob("crash-*")) | set(folder.glob("timeout-*")) | set(folder.glob("oom-*"))) - before)
        number = max(map(int, re.findall(r"(?:^#|Done )(\d+)", said, re.MULTILINE)), default=0)
        tried, failed = tried + number, failed + bool(found or done.returncode)
        print(f"{name:<45} {number:>9,} examples  {'fine' if not found and not done.returncode else 'FAILED'}", flush=True)
        for path in found:
            print(f"    {path.relative_to(ROOT)}")
        if found or done.returncode:
            print("\n".join(f"    {line}" for line in said.splitlines()[-25:]))
    print(f"{tried:,} examples, {failed} of {len(names)} targets failed")
    return min(failed, 1)


def _folder(name: str) -> Path:
    folder = KEPT / re.sub(r"\W+", "-", name)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _fuzz(name: str, seconds: int) -> None:
    """Fuzzes a target in this process, which libFuzzer ends."""
    import atheris

    with atheris.instrument_imports(include=["synthgen"], enable_loader_override=False):
        from synthgen.errors import SynthgenError
        from tests.faults import targets
    target = targets.build(Path(tempfile.mkdtemp(prefix="synthgen-fuzzing-")))[name]

    def run(data: bytes) -> None:
        try:
            target.run(data)
        except SynthgenError:
            return

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        rng = Random(seed)
        try:
            found = target.mutate(rng, data or rng.choice(list(target.seeds)), target.seeds) if rng.randint(0, 1) else None
        except Exception:  # what isn't whole any more can't be mutated by what it means
            found = None
        return found[:most] if found else atheris.Mutate(data, most)

    folder = _folder(name)
    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    for number, seed in enumerate((*target.seeds, *target.extremes)):
        (corpus / f"seed-{number}").write_bytes(seed[:LARGEST])
    options = [f"-max_total_time={seconds}", f"-timeout={LONGEST_S}", f"-rss_limit_mb={MOST_MB}", f"-max_len={LARGEST}"]
    atheris.Setup(
        [sys.argv[0], *options, f"-artifact_prefix={folder}/", "-print_final_stats=1", str(corpus)], run, custom_mutator=mutate
    )
    atheris.Fuzz()


def _replay(name: str, data: bytes) -> int:
    from synthgen.errors import SynthgenError
    from tests.faults import targets

    try:
        targets.build(Path(tempfile.mkdtemp(prefix="synthgen-fuzzing-")))[name].run(data)
        print("read")
    except SynthgenError as error:
        print(f"refused: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
