"""Manual pages and completions, made of the parsers: every verb is in them, and those who read them find nothing wrong."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tapestryd.commands import every, tree
from tapestryd.completing import SHELLS, completion
from tapestryd.manual import _roff, pages

PAGES = pages()
VERBS = [command.prog for command, _ in every(tree()) if command.prog != "tapestry"]
_READ = {"man": ["man", "--warnings", "-E", "UTF-8", "-l", "-"], "groff": ["groff", "-man", "-ww", "-k", "-Tutf8"]}


def test_every_verb_is_in_the_tree() -> None:
    assert len(VERBS) == len(set(VERBS))
    assert {"tapestry run new", "tapestry data add", "tapestry lineage verify", "tapestry config profile apply"} <= set(VERBS)
    for words in VERBS:
        module = [sys.executable, "-m", "tapestryd.cli", *words.split()[1:], "--help"]
        if words in ("tapestry status", "tapestry run new", "tapestry completion"):  # one of each kind, in earnest
            assert subprocess.run(module, capture_output=True, text=True, timeout=60, check=True).stdout.startswith(f"usage: {words} ")


@pytest.mark.parametrize("reader", _READ)
@pytest.mark.parametrize("name", PAGES)
def test_pages_are_read_without_a_warning(reader: str, name: str) -> None:
    if shutil.which(reader) is None:
        pytest.skip(f"{reader} is not installed")
    environment = {"PATH": "/usr/bin:/bin", "MANWIDTH": "1000", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(_READ[reader], input=PAGES[name], env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    assert name.rpartition("/")[2].partition(".")[0] in done.stdout
    if name == "man1/tapestry.1" and reader == "man":
        headings = {line.strip() for line in done.stdout.splitlines() if line.startswith("   tapestry")}
        assert [words for words in VERBS if not any(f"{heading} ".startswith(f"{words} ") for heading in headings)] == []
        assert "…" in done.stdout


def test_what_roff_would_take_for_its_own() -> None:
    assert _roff("-a 'b' \\c …") == "\\-a 'b' \\ec \\[u2026]"
    assert _roff(".x") == "\\&.x"
    assert _roff("'x") == "\\&'x"


@pytest.mark.parametrize("shell", SHELLS)
def test_shells_take_their_completions(shell: str, tmp_path: Path) -> None:
    text = completion(shell)
    assert [words for words in VERBS if words.split()[-1] not in text] == []
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "x").write_text(text)
    done = subprocess.run([shell, "-n", str(tmp_path / "x")], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("tapestry iden", {"identity"}),
        ("tapestry identity ro", {"rotate"}),
        ("tapestry data lis", {"list"}),
        ("tapestry status --che", {"--check"}),
    ],
)
def test_bash_completes(typed: str, completed: set[str], tmp_path: Path) -> None:
    (tmp_path / "x").write_text(completion("bash"))
    words = typed.split()
    script = f"""source {tmp_path}/x; COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; COMP_LINE='{typed}'; COMP_POINT={len(typed)}
    $(complete -p tapestry | sed 's/.*-F \\([^ ]*\\).*/\\1/') tapestry {words[-1]} {words[-2]}; printf '%s\\n' "${{COMPREPLY[@]}}\""""
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert set(done.stdout.split()) == completed
