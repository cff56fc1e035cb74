"""Why something that arrived was refused: one enumeration, the same words in status, log, metrics and tests."""

from enum import Enum

from protocols import limits


class Reason(Enum):
    """The value is the word that operators see."""

    TOO_LARGE = "too_large"
    MALFORMED = "malformed"
    UNKNOWN_FIELD = "unknown_field"
    WRONG_TYPE = "wrong_type"
    OUT_OF_RANGE = "out_of_range"
    OTHER_RUN = "other_run"
    OTHER_ROUND = "other_round"
    OTHER_BASE = "other_base"
    OTHER_ROSTER = "other_roster"
    BAD_SIGNATURE = "bad_signature"
    BAD_DIGEST = "bad_digest"
    STALE = "stale"
    NOT_FINITE = "not_finite"
    NOT_A_MEMBER = "not_a_member"
    NO_QUORUM = "no_quorum"
    NOT_DELEGATED = "not_delegated"
    EXPIRED = "expired"
    REVOKED = "revoked"
    NORM = "norm"
    EQUIVOCATION = "equivocation"
    SILENT = "silent"
    TOO_SOON = "too_soon"
    TOO_MANY_STREAMS = "too_many_streams"
    STALLED = "stalled"
    BANNED = "banned"


class Refused(Exception):
    """A peer's or a file's fault: counted by reason and dropped; never raised past whoever called the parser.

    `detail` may quote what arrived, and goes to logs, screens and back to the peer: it is made one printable line of at most
    REFUSAL_CHARS here, so that nobody writes our log for us.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        detail = "".join(char if char.isprintable() else "?" for char in detail[: limits.REFUSAL_CHARS])
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason
        self.detail = detail


class Declined(Refused):
    """The other side refused what we asked. The reason is its own word, about us: nobody is blamed for it here."""
