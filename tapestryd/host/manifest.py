"""What a data set is declared to be, and what that allows: decided from the manifest alone, before a file is opened.

A manifest is a TOML file, tapestry-data.toml, in the data set's folder: so it goes wherever the data goes, is written by whoever
has the data, and can be read wherever the data can. Its fields are those of Tapestry's data manifest (DMI), its class and
tier those of TAP-008. What is unknown or misspelt is a fault: a constraint must not be missed for a typing error.
Knows nothing of files.
"""

import json
import tomllib
from dataclasses import dataclass, fields
from typing import Any

from protocols.trainer import Code
from tapestryd.errors import ConfigFault

CLASSES = ("fully-open", "unique-open", "controlled", "sovereign", "private")

CONSTRAINTS = {
    "no-training": "training on it is forbidden",
    "no-contribution": "what was learned from it must not be contributed",
    "attribution": "",
    "share-alike": "",
    "non-commercial": "",
    "research-only": "",
}
"""What use_constraints may say; with a reason: what forbids its contribution. The others are recorded: people keep them."""

SCHEMA = 1
_TEXT_CHARS = 300
_LIST = 16


@dataclass(frozen=True, slots=True)
class Manifest:
    """`data_class`: a class of TAP-008, `class` in the file. `tier`: of protection, 0 to 4. `rights`: its licence, an SPDX name if it
    has one. `lineage`: artifact_ids that it was made from. `residency`, `visibility`, `quality`, `provenance`: for people.
    `epsilon`: in tier 2, the most that may ever be spent of this data set alone; 0: no bound but the whole's."""

    data_class: str
    tier: int = 0
    epsilon: float = 0.0
    artifact_id: str = ""
    artifact_type: str = "text"
    owner: str = ""
    source: str = ""
    provenance: str = ""
    lineage: tuple[str, ...] = ()
    rights: str = ""
    residency: str = ""
    visibility: str = ""
    quality: str = ""
    use_constraints: tuple[str, ...] = ()
    version: str = "1"

    def __post_init__(self) -> None:
        """Raises ConfigFault, one line per fault."""
        faults = [fault for item in fields(self) if (fault := _fault(item.name, getattr(self, item.name)))]
        if faults:
            raise ConfigFault("\n".join(faults))


def key(name: str) -> str:
    """A field's name in the file."""
    return "class" if name == "data_class" else name


def _fault(name: str, value: object) -> str:
    written = f"{key(name)} = {json.dumps(value, ensure_ascii=False, default=str)[:100]}"
    match name, value:
        case "data_class", str():
            return "" if value in CLASSES else f"{written}: must be one of {', '.join(CLASSES)}"
        case "tier", int() if type(value) is int and 0 <= value <= 4:
            return ""
        case "tier", _:
            return f"{written}: must be a whole number from 0 to 4"
        case "epsilon", float() | int() if not isinstance(value, bool) and 0 <= value <= 100:
            return ""
        case "epsilon", _:
            return f"{written}: must be a number from 0 to 100"
        case "use_constraints", tuple() if unknown := [item for item in value if item not in CONSTRAINTS]:
            return f"{key(name)}: no constraint {unknown[0]!r:.100}; there are {', '.join(CONSTRAINTS)}"
        case (("lineage" | "use_constraints"), tuple()) if len(value) <= _LIST and all(map(_is_text, value)):
            return ""
        case (("lineage" | "use_constraints"), _):
            return f"{written}: must be a list of at most {_LIST} texts"
        case (("artifact_id" | "version" | "artifact_type"), ""):
            return f"{key(name)} is missing; every data set has one"
    return "" if _is_text(value) else f"{written}: must be a line of at most {_TEXT_CHARS} characters"


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _TEXT_CHARS and value.isprintable()


UNDECLARED = Manifest("fully-open", artifact_id="undeclared")
"""What data without a manifest is taken for, unless data.require_manifest."""


def parse(data: bytes) -> Manifest:
    """A manifest's bytes. Raises ConfigFault, one line per fault."""
    try:
        body = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise ConfigFault(f"not a TOML file in UTF-8 ({str(error)[:200]})") from None
    if body.pop("schema_version", None) != SCHEMA:
        raise ConfigFault(f"must begin with schema_version = {SCHEMA}")
    names = {key(item.name): item.name for item in fields(Manifest)}
    if unknown := sorted(set(body) - set(names)):
        raise ConfigFault(f"no such field: {unknown[0]!r:.100}; there are {', '.join(names)}")
    if "class" not in body:
        raise ConfigFault(f"class is missing; it must be one of {', '.join(CLASSES)}")
    values: dict[str, Any] = {names[word]: tuple(value) if isinstance(value, list) else value for word, value in body.items()}
    return Manifest(**values)


def written(manifest: Manifest) -> bytes:
    """`parse` reversed."""
    lines = [f"schema_version = {SCHEMA}"]
    for item in fields(manifest):
        value = getattr(manifest, item.name)
        lines.append(f"{key(item.name)} = {json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)}")
    return ("\n".join(lines) + "\n").encode()


def refusal(manifest: Manifest, *, volunteer: bool, budget: bool) -> tuple[Code, str] | None:
    """Why data of this manifest may not be trained on for contribution, and that in words; None: it may.

    `volunteer`: this node speaks for no Member in this run. `budget`: tier 2 is set up here ([privacy] of trainer.toml).
    """
    if manifest.data_class == "private":
        return Code.DATA_FORBIDDEN, "it is private: for a Sovereign Build alone, never contributed"
    for constraint in manifest.use_constraints:
        if why := CONSTRAINTS[constraint]:
            return Code.DATA_FORBIDDEN, f"its use_constraints say {constraint}: {why}"
    if volunteer and manifest.data_class != "fully-open":
        return Code.DATA_FORBIDDEN, (
            f"it is {manifest.data_class}, and this run is open: who speaks for no Member contributes fully-open data only"
        )
    if manifest.tier >= 1 and not manifest.rights:
        return Code.DATA_FORBIDDEN, f"tier {manifest.tier} needs its licence, and none is said; say it: tapestry data add DIR --rights …"
    if manifest.tier == 2 and not budget:
        return Code.TIER, "tier 2 is differential privacy, and there is no budget for it: set privacy.epsilon in trainer.toml"
    if manifest.tier >= 3:
        return Code.TIER, f"tier {manifest.tier} is {('secure aggregation', 'a TEE')[manifest.tier - 3]}, which this version does not have"
    return None
