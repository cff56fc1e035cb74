"""What a manifest may say, and what each saying allows: a table of every gate, a property of writing and reading."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.trainer import Code
from tapestryd.errors import ConfigFault
from tapestryd.host.manifest import CLASSES, CONSTRAINTS, UNDECLARED, Manifest, parse, refusal, written

PRINTABLE = st.characters(exclude_categories=["C", "Z"]) | st.just(" ")
LINE, WORD = st.text(PRINTABLE, max_size=40), st.text(PRINTABLE, min_size=1, max_size=40)
OPEN = Manifest("fully-open", artifact_id="a", rights="CC0-1.0")

MANIFESTS = st.builds(
    Manifest, data_class=st.sampled_from(CLASSES), tier=st.integers(0, 4), epsilon=st.floats(0, 100), artifact_id=WORD, artifact_type=WORD,
    owner=LINE, source=LINE, provenance=LINE, lineage=st.lists(WORD, max_size=5).map(tuple), rights=LINE, residency=LINE, visibility=LINE,
    quality=LINE, use_constraints=st.lists(st.sampled_from(list(CONSTRAINTS)), max_size=3).map(tuple), version=WORD,
)  # fmt: skip


@given(MANIFESTS)
def test_what_is_written_is_read(manifest: Manifest) -> None:
    assert parse(written(manifest)) == manifest


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "class is missing"),
        ('class = "open"', 'class = "open": must be one of fully-open'),
        ("class = 1", "class = 1: must be a line"),
        ('class = "fully-open"\ntier = 5', "tier = 5: must be a whole number from 0 to 4"),
        ('class = "fully-open"\ntier = true', "tier = true: must be a whole number"),
        ('class = "fully-open"\ntier = 1.0', "tier = 1.0: must be a whole number"),
        ('class = "fully-open"\nepsilon = nan', "epsilon = NaN: must be a number from 0 to 100"),
        ('class = "fully-open"\nepsilon = -1', "epsilon = -1: must be a number"),
        ('class = "fully-open"\nuse_constraints = ["no_training"]', "no constraint 'no_training'; there are no-training"),
        ('class = "fully-open"\nuse_constraints = "no-training"', "use_constraints = .*: must be a list"),
        ('class = "fully-open"\nlineage = [1]', "lineage = .1.: must be a list of at most 16 texts"),
        ('class = "fully-open"\nlicence = "MIT"', "no such field: 'licence'; there are class, tier"),
        ('class = "fully-open"\nowner = "a\\nb"', "owner = .*: must be a line"),
        ('class = "fully-open"\nversion = ""', "version is missing"),
        ('class = "fully-open"\nclass = "private"', "not a TOML file"),
    ],
)
def test_what_is_unknown_or_misspelt_is_a_fault(line: str, says: str) -> None:
    with pytest.raises(ConfigFault, match=says):
        parse(f'schema_version = 1\nartifact_id = "x"\n{line}\n'.encode())


def test_a_manifest_of_another_version_is_not_guessed_at() -> None:
    for text in (b"class = 'fully-open'", b"schema_version = 2\nclass = 'fully-open'", b"\xff"):
        with pytest.raises(ConfigFault):
            parse(text)


@pytest.mark.parametrize(
    ("change", "volunteer", "budget", "code", "says"),
    [
        ({}, True, False, None, ""),
        ({"rights": ""}, True, False, None, ""),
        ({"data_class": "private"}, False, True, Code.DATA_FORBIDDEN, "private"),
        ({"use_constraints": ("attribution", "no-training")}, False, True, Code.DATA_FORBIDDEN, "no-training"),
        ({"use_constraints": ("no-contribution",)}, False, True, Code.DATA_FORBIDDEN, "no-contribution"),
        ({"use_constraints": ("attribution", "share-alike", "non-commercial", "research-only")}, False, False, None, ""),
        *(({"data_class": kind}, True, True, Code.DATA_FORBIDDEN, f"it is {kind}") for kind in CLASSES[1:]),
        *(({"data_class": kind}, False, False, None, "") for kind in CLASSES[:4]),
        *(({"tier": tier, "rights": ""}, False, True, Code.DATA_FORBIDDEN, f"tier {tier} needs its licence") for tier in (1, 2, 3, 4)),
        ({"tier": 1}, False, False, None, ""),
        ({"tier": 2}, False, True, None, ""),
        ({"tier": 2}, False, False, Code.TIER, "there is no budget"),
        ({"tier": 3}, False, True, Code.TIER, "secure aggregation"),
        ({"tier": 4}, False, True, Code.TIER, "a TEE"),
    ],
)
def test_every_gate(change: dict[str, object], volunteer: bool, budget: bool, code: Code | None, says: str) -> None:
    refused = refusal(replace(OPEN, **change), volunteer=volunteer, budget=budget)
    assert (refused and refused[0]) == code
    assert says in (refused[1] if refused else "")


def test_what_nobody_declared_is_open_to_a_volunteer() -> None:
    assert refusal(UNDECLARED, volunteer=True, budget=False) is None
