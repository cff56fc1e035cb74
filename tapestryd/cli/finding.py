"""One thing that `tapestry doctor` looked at. Knows nothing of what there is to be looked at."""

from dataclasses import dataclass

GOOD, WARNING, UNKNOWN = "good", "warning", "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """`verdict`: GOOD, WARNING, or UNKNOWN where it cannot be seen from here. `says`: what was found; `fix`: what to do, "" if nothing."""

    section: str
    name: str
    verdict: str
    says: str
    fix: str = ""
