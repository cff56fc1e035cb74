"""One log entry applied to a base: what a start from disk, a catch-up and an offline audit do alike.

Changes nothing: the step is put into the base by whoever asked for it. Caller's duty: heavy, call it off the event loop.
"""

from collections.abc import Sequence

from protocols.lineage import Entry, follow
from protocols.refusal import Reason, Refused
from tapestryd.base import Next, SharedBase
from tapestryd.exchange import assemble


def replay(base: SharedBase, entry: Entry, parts: Sequence[bytes], *, last_round: int) -> Next:
    """The step that a verified entry makes on the base's tip. `last_round`: as in protocols.lineage.follow.
    Refused if it does not go on from there, or does not lead where its certificate says."""
    assert base.tip is not None
    follow(base.tip, entry, base.rules.averaging, last_round=last_round)
    vote = entry.vote
    mean, coverage = assemble(base.rules, entry.roster, parts)
    if coverage != vote.coverage_ppm:
        raise Refused(Reason.OUT_OF_RANGE, f"entry {vote.height} claims coverage {vote.coverage_ppm / 1e6}, its parts {coverage / 1e6}")
    step = base.next(vote.fragment, mean)
    if step.base != vote.after:
        raise Refused(Reason.BAD_DIGEST, f"entry {vote.height} leads to {step.base[:12]} here, to {vote.after[:12]} for its voters")
    return step
