"""One value changed, everything else as it was."""

import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapestryd.editing import with_value, without
from tapestryd.errors import ConfigFault

DEPLOY = Path(__file__).parent.parent / "deploy"

FILE = """# mine
schema_version = 1

[node]   # who
name = "a"      # public
# nothing yet

[log]
"""


def test_a_value_keeps_its_comment_and_all_others() -> None:
    assert with_value(FILE, "node.name", "b") == FILE.replace('"a"', '"b"')
    assert with_value(FILE, "log.level", "debug") == FILE + 'level = "debug"\n'
    assert with_value(FILE, "trust.deny", ["x", "y"]) == FILE + '\n[trust]\ndeny = ["x", "y"]\n'
    assert without(FILE, "node.name") == FILE.replace('name = "a"      # public\n', "")
    assert without(FILE, "node.state_dir") == without(FILE, "trust.deny") == FILE


@pytest.mark.parametrize("name", ["tapestryd.toml", "trainer.toml"])
def test_in_the_examples_one_line_changes(name: str) -> None:
    text = (DEPLOY / name).read_text()
    for section, table in tomllib.loads(re.sub(r"(?m)^#(?=\w+ = )", "", text)).items():
        if not isinstance(table, dict):
            continue
        for key in table:
            other = with_value(text, f"{section}.{key}", "other")
            changed = [line for old, line in zip(text.splitlines(), other.splitlines(), strict=True) if old != line]
            assert len(changed) == 1
            assert changed[0].startswith(f'{key} = "other"')
            assert "# " in changed[0]
            assert with_value(other, f"{section}.{key}", "other") == other
            assert tomllib.loads(other)[section] == {key: "other"}
            assert tomllib.loads(without(other, f"{section}.{key}"))[section] == {}


def test_only_what_is_behind_a_sign_in_its_section_comes_out() -> None:
    text = '[node]\n#[log]\n# level = "x"\n[log]\n#format = "x"  # why\n#level = of what is told\n#level = "info"  # how much\n'
    assert with_value(text, "log.level", "debug") == text.replace('#level = "info"', 'level = "debug"')
    assert with_value(text, "node.level", "y") == text.replace('# level = "x"', 'level = "y"')
    assert with_value(text, "log.format", "x") == text.replace('#format = "x"', 'format = "x"')
    told = '[log]\na = """\n#level = "info"\n"""\n'
    assert with_value(told, "log.level", "debug") == told + 'level = "debug"\n'


@pytest.mark.parametrize("text", ['node.name = "a"\n', 'node = { name = "a" }\n', '[node]\n"name" = """a"""\n', '[node]\nname = "a"'])
def test_other_ways_to_write_it(text: str) -> None:
    assert tomllib.loads(with_value(text, "node.name", "b")) == {"node": {"name": "b"}}
    assert tomllib.loads(without(text, "node.name")).get("node", {}) == {}


@pytest.mark.parametrize(
    "text",
    [
        "schema_version = 1\n", "schema_version = 1\n[data]\nseed = 3 # x\n", "[compute]\npaths_ = 1\n\n[data]\n",
        'schema_version = 1\n[data]\nseed = 1\npaths = [\n  "/a", # one\n  "/b",\n]  # all\n[compute]\nthreads = 1\n',
        "[data]\ntext_field = 'paths = [1]'\n", "[data]\npaths = ['/a]b', # ] \"\n]\n", "# [data]\nschema_version = 1\n",
    ],
)  # fmt: skip
def test_a_list_however_it_is_written(text: str) -> None:
    after = with_value(text, "data.paths", ["/x", '/y ü"]'])
    assert tomllib.loads(after)["data"]["paths"] == ["/x", '/y ü"]']
    kept = ("# x", "# all", "# [data]")
    assert [word for word in kept if word in after] == [word for word in kept if word in text]


def test_what_is_no_toml_or_no_section_is_a_sentence() -> None:
    with pytest.raises(ConfigFault, match="not a TOML file"):
        with_value("[node", "node.name", "b")
    with pytest.raises(ConfigFault, match="node is no section"):
        with_value("node = 3\n", "node.name", "b")
    assert without("node = 3\n", "node.name") == "node = 3\n"


@given(st.text(max_size=30), st.sampled_from(["b", True, 3, 1.5, ["x"], []]))
def test_any_comment_and_any_value(comment: str, value: object) -> None:
    comment = "".join(c for c in comment if c.isprintable())
    text = f'[node]\nname = "a" # {comment}\nother = 1\n'
    made = with_value(text, "node.name", value)
    assert tomllib.loads(made) == {"node": {"name": value, "other": 1}}
    assert f"# {comment}" in made
