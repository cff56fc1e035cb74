"""What a file of settings may hold, as JSON Schema (2020-12), for editors that complete and check it."""

from collections.abc import Mapping
from typing import Any

from tapestryd.config import Setting
from tapestryd.settings import CHECKS, Between, OneOf, written

Doc = dict[str, Any]

_KINDS: Mapping[str, Doc] = {
    "flag": {"type": "boolean"},
    "whole": {"type": "integer"},
    "number": {"type": "number"},
    "text": {"type": "string"},
    "path": {"type": "string"},
    "duration": {"type": "string", "pattern": r"^([0-9]{1,9}(\.[0-9]{1,9})?(ms|s|m|h|d))+$"},
    "size": {"type": "string", "pattern": r"^[0-9]{1,15}(\.[0-9]{1,9})? ?([KMGT]i?B|B|)$"},
    "share": {"type": "string", "pattern": r"^[0-9]{1,3}(\.[0-9]{1,9})?%$"},
    "texts": {"type": "array", "items": {"type": "string"}},
    "paths": {"type": "array", "items": {"type": "string"}},
}


def schema_of(settings: Mapping[str, Setting]) -> Doc:
    sections: dict[str, Doc] = {}
    for key, setting in settings.items():
        _, name = key.split(".")
        table = sections.setdefault(setting.section, {"type": "object", "properties": {}, "additionalProperties": False})
        table["properties"][name] = _value(key, setting)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {"schema_version": {"const": 1}, **sections},
        "additionalProperties": False,
    }


def _value(key: str, setting: Setting) -> Doc:
    schema = _KINDS[setting.kind] | {"default": written(setting.kind, setting.default)}
    match CHECKS.get(key):
        case OneOf(choices):
            schema["enum"] = list(choices)
        case Between(low, high) if setting.kind in ("whole", "number"):
            schema |= {"minimum": low, "maximum": high}
    return schema
