"""A TOML file with one value changed, and everything else as its owner wrote it: comments, order, blank lines.

A key that stands in its section behind a "#", as in the examples of deploy/, comes out from there. Knows nothing of what the values mean.
"""

import re
import tomllib
from contextlib import suppress
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from tapestryd.errors import ConfigFault


def with_value(text: str, key: str, value: Any) -> str:
    """`key`: "section.name". Raises ConfigFault where the file is written in a way that cannot be changed here."""
    section, name = key.split(".")
    expected = _read(text)
    if not isinstance(expected.setdefault(section, {}), dict):
        raise ConfigFault(f"{section} is no section of this file; correct it there")
    if expected[section].get(name) == value:
        return text
    if name not in expected[section]:
        text = _awake(text, section, name)
    expected[section][name] = value

    def change(document: tomlkit.TOMLDocument) -> None:
        if section not in document:
            document[section] = tomlkit.table()
        document[section][name] = value

    return _changed(text, change, expected, f"[{section}] {name} = {value!r}")


def without(text: str, key: str) -> str:
    """`text` itself if the key is not in there. Raises ConfigFault as with_value."""
    section, name = key.split(".")
    expected = _read(text)
    table = expected.get(section)
    if not isinstance(table, dict) or name not in table:
        return text
    del table[name]

    def change(document: tomlkit.TOMLDocument) -> None:
        del document[section][name]

    return _changed(text, change, expected, f"take {name} out of [{section}]")


def _awake(text: str, section: str, name: str) -> str:
    """Without the "#" before `name` in its section, where that makes it count, and changes nothing else."""
    lines, here, before = text.splitlines(keepends=True), "", _read(text)
    for number, line in enumerate(lines):
        if header := re.match(r"\[(\w+)\]", line):
            here = header[1]
        elif here == section and re.match(rf"# ?{name} = ", line):
            awake = "".join([*lines[:number], line[1:].lstrip(" "), *lines[number + 1 :]])
            with suppress(ConfigFault):
                after = _read(awake)
                if after[section].pop(name, None) is not None and after == before:
                    return awake
    return text


def _read(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigFault(f"not a TOML file ({str(error)[:200]}); correct it there") from None


def _full(body: dict[str, Any]) -> dict[str, Any]:
    """An empty section says nothing."""
    return {name: table for name, table in body.items() if table != {}}


def _changed(text: str, change: Any, expected: dict[str, Any], by_hand: str) -> str:
    try:
        document = tomlkit.parse(text)
        change(document)
        made = tomlkit.dumps(document)
    except (TOMLKitError, KeyError, TypeError, AttributeError):
        made = None
    if made is None or _full(_read(made)) != _full(expected):
        raise ConfigFault(f"this file is written in a way that is not understood here; change it there yourself: {by_hand}")
    return made
