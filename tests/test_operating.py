"""The operator's handbook against the code: no fault, reason or metric that it does not explain, and none that is no more."""

import re
import shlex
from pathlib import Path

import pytest

from protocols.control import STATES
from protocols.trainer import Code, Withhold
from tapestryd import picture
from tapestryd.commands import below, every, tree
from tapestryd.host.policy import Reason
from tapestryd.words import REASONS

ROOT = Path(__file__).parent.parent
HANDBOOK = (ROOT / "deploy" / "OPERATING.md").read_text()


def rows(heading: str) -> set[str]:
    """The words in backquotes of the first column of the table with this first heading."""
    table = HANDBOOK.split(f"| {heading} |", 1)[1].split("\n\n", 1)[0]
    return {word for line in table.splitlines()[2:] for word in re.findall(r"`(\w+)`", line.split("|")[1])}


def test_every_fault_of_the_data_side() -> None:
    assert rows("fault") == {code.name for code in Code}


def test_every_reason_to_withhold() -> None:
    assert rows("withheld") == {reason.name for reason in Withhold}


def test_every_reason_that_has_a_sentence() -> None:
    assert set(picture._HEALTH) <= rows("reason") | rows("held by")


def test_discards_are_those_of_the_protocol() -> None:
    document = (Path(__file__).parent.parent / "protocols" / "rounds.md").read_text()
    assert all(re.search(rf"^\| [\w, ]*\b{reason}\b[\w, ]* \|", document, re.M) for reason in rows("discarded"))


def test_every_state_and_every_reason() -> None:
    table = HANDBOOK.split("| state |", 1)[1].split("\n\n", 1)[0]
    assert {line.split("|")[1].strip() for line in table.splitlines()[2:]} == set(STATES)
    assert rows("reason") == set(REASONS) - {"behind"}
    assert rows("held by") == set(Reason)


def test_every_command() -> None:
    table = HANDBOOK.split("| command |", 1)[1].split("\n\n", 1)[0]
    told = {words for line in table.splitlines()[2:] for words in re.findall(r"`([^`]+)`", line.split("|")[1])}
    assert told == {
        command.prog.removeprefix("tapestry ") for command, _ in every(tree()) if command.get_default("verb") or not below(command)
    }


@pytest.mark.parametrize("document", ["README.md", "deploy/README.md", "deploy/OPERATING.md"])
def test_every_command_that_is_to_be_typed_is_one(document: str) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / document).read_text(), re.S)
    lines = [re.sub(r"\s# .*", "", line) for block in blocks for line in block.splitlines()]
    typed = [words for line in lines for words in re.split(r"[|;]|&&", line) if re.match(r"\s*(sudo )?tapestry ", words)]
    assert len(typed) > 4
    for words in typed:
        for name, value in {"sudo ": "", "RUN_ID": "0" * 64, "PEER_ID": "12D3KooWMTy1onqJaar8xuNXFe6PfarRPdxVNAEFYd9L4TNyKNEJ"}.items():
            words = words.replace(name, value)
        tree().parse_args(shlex.split(words)[1:])  # ends the test where it would end with 2
