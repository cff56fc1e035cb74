"""Coverage-guided fuzzing of every parser in turn: `python -m tests.fuzz.campaign [TARGET …] [--seconds 600] [--jobs 1]`.

One line a target goes to --results as soon as it is over: what ran, how many edges of the code it reached, what it found, and the
seconds that it really had. Where something was found, that target ended there: mend it, keep the input under
tests/fuzz/corpus, run it again. What each process said, and what it found, lies in --findings. Exit status 1: something was found.
"""

import argparse
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

_RUNS = re.compile(r"^stat::number_of_executed_units:\s*(\d+)", re.MULTILINE)
_STATUS = re.compile(r"^#(\d+)\s.*\bcov: (\d+)", re.MULTILINE)


@dataclass(frozen=True)
class Had:
    """What one target had, by the words of its libFuzzer. `seconds`: of search, without the imports."""

    target: str
    executions: int
    coverage: int
    findings: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.target:13} executions {self.executions:>11,}  coverage {self.coverage:>6,}"
            f"  findings {self.findings}  {self.seconds:>6.0f} s"
        )


def had(target: str, said: str, findings: int, seconds: float) -> Had:
    status = [(int(runs), int(edges)) for runs, edges in _STATUS.findall(said)]
    total = _RUNS.search(said)
    return Had(target, int(total[1]) if total else status[-1][0] if status else 0, status[-1][1] if status else 0, findings, seconds)


def fuzzed(target: str, options: argparse.Namespace) -> Had:
    log = options.findings / f"{target}.log"
    before = set(options.findings.glob(f"{target}-*"))
    command = [sys.executable, "-m", "tests.fuzz.fuzz", target, "--seconds", str(options.seconds)]
    began = None
    with log.open("w") as out:
        process = subprocess.Popen(
            [*command, "--found", str(options.found), "--findings", str(options.findings)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        )  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            out.write(line)
            if began is None and line.startswith("#"):
                began = time.monotonic()
        process.wait()
    seconds = time.monotonic() - began if began is not None else 0.0
    findings = len(set(options.findings.glob(f"{target}-*")) - before) or int(process.returncode != 0)
    return had(target, log.read_text(), findings, seconds)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.campaign", description="Coverage-guided fuzzing of every parser in turn.")
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    parser.add_argument("--seconds", type=int, default=600, help="a target")
    parser.add_argument("--jobs", type=int, default=1, help="targets side by side")
    parser.add_argument("--found", type=Path, default=Path("/tmp/tapestry-fuzz"), help="inputs that led to new code, by target")
    parser.add_argument("--findings", type=Path, default=Path("/tmp/tapestry-fuzz-findings"), help="what broke something, and logs")
    parser.add_argument("--results", type=Path, default=Path("/tmp/tapestry-fuzz.txt"), help="a line a target, appended")
    options = parser.parse_args()
    listed = subprocess.run([sys.executable, "-m", "tests.fuzz.fuzz"], capture_output=True, text=True)
    if listed.returncode:
        print(listed.stderr.strip(), file=sys.stderr)
        return 1
    known = listed.stdout.split()
    if unknown := set(options.targets) - set(known):
        parser.error(f"{', '.join(sorted(unknown))}: no such target; there are {', '.join(known)}")
    options.findings.mkdir(parents=True, exist_ok=True)
    found = 0
    with ThreadPoolExecutor(options.jobs) as pool:
        runs = [pool.submit(fuzzed, target, options) for target in options.targets or known]
        try:
            for run in as_completed(runs):
                found += run.result().findings
                print(run.result(), flush=True)
                with options.results.open("a") as results:
                    results.write(f"{run.result()}\n")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
