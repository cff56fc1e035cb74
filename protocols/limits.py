"""Every bound on what may arrive from outside: name, unit, value, and why that value.

Whatever is larger is refused before it is allocated. Raising a bound is a change of the treaty
only where it says (treaty): the rest may differ between peers without their disagreeing.
"""

KIB = 1024
MIB = 1024 * KIB

RULES_BYTES = 1 * MIB
"""Run rules as canonical JSON. A 700-tensor model lists itself in about 50 KiB. (treaty)"""

TOKENIZER_BYTES = 64 * MIB
"""A tokenizer.json; the largest published ones (256k entries with merges) are about 35 MiB."""

RECORD_BYTES = 4 * KIB
"""One DHT record with its signature. A presence with eight addresses takes about 1.2 KiB. (treaty)"""

RECORDS = 960
"""Records under one DHT key; more peers than this in one run would need another rendezvous. At their longest they just
fit into one answer of the DHT, which is 4 MiB at most. (treaty)"""

HEAD_BYTES = 4 * KIB
"""The head of one message between peers, but for the three below: canonical JSON. The longest, eight addresses, takes 3.2 KiB at
most. While it is read nothing else is done: 0.15 ms a KiB of the worst. (treaty)"""

VOTE_BYTES = 32 * KIB
"""The head of a vote; with the digests of 256 parts it takes about 18 KiB. (treaty)"""

VOTES_BYTES = 96 * KIB
"""The head that tells of all votes for a result; of 256, and as many parts, it takes about 66 KiB. (treaty)"""

FRAME_BYTES = 1 * MIB
"""The head of a roster or of a log entry. Of 256 members with their claims and delegations it takes about 300 KiB. (treaty)"""

JSON_DEPTH = 16
"""Nesting of received JSON; ours needs five levels. Python's parser would recurse without a bound."""

INTEGER = 1 << 53
"""Magnitude of an integer in JSON: what every language's numbers hold exactly (RFC 8259, §6). (treaty)"""

ROSTER_MEMBERS = 256
"""Members of one roster. With more peers present, who is not in it waits for another round. (treaty)"""

MEMBERS = 256
"""Members in the rules of a run in roster mode. (treaty)"""

MEMBER_NODES = 64
"""Nodes that share one Member's voice. (treaty)"""

DELEGATIONS_BYTES = 64 * KIB
"""A Member's file for its nodes; 64 delegations take about 27 KiB."""

EPOCHS_BYTES = 32 * KIB
"""The greatest epoch of each Member, as a node keeps it; 256 take about 18 KiB."""

STEPS = 1 << 32
"""Local steps that a member may claim for one round. (treaty)"""

RATE = 1 << 40
"""Bytes per second that a member may claim to reduce with. (treaty)"""

ADDRESSES = 8
"""Multiaddrs in one presence, and peers in one invite."""

ADDRESS_BYTES = 256
"""One multiaddr as text; a relayed address with two peer ids takes about 180."""

ELEMENTS = 1 << 40
"""Elements of a vector: 4 TiB of float32. A bound for arithmetic, not a target. (treaty)"""

TENSORS = 16_384
"""Tensors in a layout. (treaty)"""

FRAGMENTS = 64
"""Fragments of a vector. (treaty)"""

PIECE_BYTES = 4 * MIB
"""One piece of a snapshot or a log entry as it is fetched; the unit of digest, retry and resume. (treaty)"""

NAME_CHARS = 64
"""A run's or a node's public name."""

REFUSAL_CHARS = 8192
"""What is said of one refusal, on one line. All faults of the worst run.toml that somebody wrote by hand take about half."""

CONTROL_BYTES = 64 * KIB
"""A request body on the local control API; the largest is an invite with eight addresses."""

CLOCK_SKEW_MS = 2_000
"""Beyond this difference to the swarm's median a peer refuses to average: DHT records of others would look
expired to it from about 3 s on, and boundaries would not meet."""

PRESENCE_MS = 20_000
"""Life of a presence record. Published every third of it: two lost publications are survived. (treaty)"""

IO_S = 10.0
IO_BYTES = 16 * KIB
"""Less than IO_BYTES of a body (or than what is left of it) moved in IO_S: the transfer is given up and another peer asked.
Progress counts, not duration; but a byte now and then is none. Any modem moves more."""
