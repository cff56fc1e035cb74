"""What the words of `Status.reasons` mean to a person, and what there is to do. Those that `Status.policy` holds say so themselves."""

REASONS = {
    "no_rules": "nobody of the invite has answered yet; is it whole, does it name addresses to be dialled from here, is their port open?",
    "no_base": "the Shared Base is being fetched",
    "no_peers": "fewer peers than the run asks for; wait, or look at: tapestry peers",
    "trainer": "the trainer starts, or has failed: Health says which",
    "behind": "others have committed further, and this node follows them",
    "clock": "the clock differs too much from the others'; set it by NTP",
    "disk_full": "too little free disk to catch up; make room",
    "no_donor": "nobody could show the lineage that was announced; others are asked",
    "not_delegated": "no Member of the run has delegated this node: Health has the command",
    "twin": "another daemon runs with this node's identity; stop one of them for good",
}
