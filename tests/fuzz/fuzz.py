"""Coverage-guided fuzzing of one parser: `python -m tests.fuzz.fuzz TARGET [--seconds 600] [--jobs …]`; without TARGET: their names.

Needs atheris, `pip install -e .[fuzz]`. Instruments protocols and tapestryd; native libraries (torch, tokenizers) run as they are.
Input is altered by tests/fuzz/mutation.py, which keeps JSON canonical and digests true, and by libFuzzer's own hand. A
finding stops it and lies in --findings; keep it, when it is mended, under tests/fuzz/corpus/TARGET, where it is replayed by
the tests for ever. What was found to lead to new code is kept in --found between runs.
"""

import argparse
import hashlib
import logging
import sys
from pathlib import Path
from random import Random


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.fuzz", description="Coverage-guided fuzzing of one parser.")
    parser.add_argument("target", nargs="?")
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--found", type=Path, default=Path("/tmp/tapestry-fuzz"), help="inputs that led to new code, by target")
    parser.add_argument("--findings", type=Path, default=Path("."), help="where an input that breaks something is written")
    options = parser.parse_args()
    try:
        import atheris
    except ImportError:
        print("atheris is not installed; pip install -e .[fuzz]", file=sys.stderr)
        return 1
    with atheris.instrument_imports(include=["protocols", "tapestryd", "tomllib"]):
        from tests.fuzz.mutation import mutated
        from tests.fuzz.targets import TARGETS
    target = TARGETS.get(options.target)
    if target is None:
        print(f"{options.target}: no such target; there are {', '.join(TARGETS)}" if options.target else "\n".join(TARGETS))
        return 2 if options.target else 0
    logging.disable()

    def alter(data: bytes, most_bytes: int, seed: int) -> bytes:
        chance = Random(seed)
        if chance.random() < 0.3:
            return bytes(atheris.Mutate(data, most_bytes))
        made = mutated(data, chance, most_bytes)
        return target.seal(made)[:most_bytes] if chance.random() < 0.8 else made

    def run(data: bytes) -> None:
        try:
            target.run(data)
        except BaseException:  # libFuzzer writes only what it ends itself: what is slow, or takes too much memory
            (options.findings / f"{options.target}-{hashlib.sha256(data).hexdigest()[:16]}").write_bytes(data)
            raise

    found = options.found / options.target
    found.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds()):
        (found / f"seed-{number}").write_bytes(seed)
    kept = Path(__file__).parent / "corpus" / options.target
    settings = {
        "max_total_time": options.seconds,
        "max_len": min(target.most_bytes, 1 << 16),
        "timeout": 20,
        "rss_limit_mb": 3072,
        "artifact_prefix": f"{options.findings}/{options.target}-",
        "print_final_stats": 1,
    }
    flags = [f"-{name}={value}" for name, value in settings.items()]
    atheris.Setup([sys.argv[0], *flags, str(found), *([str(kept)] if kept.is_dir() else [])], run, custom_mutator=alter)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
