// What the words of the control API mean to a person. A word that is not here is shown as it is.

export const GLYPHS = {
  training: "●", averaging: "◐", serving: "●", paused: "Ⅱ",
  joining: "◌", syncing: "◌", idle: "○", stopping: "○",
};
export const TONES = { training: "good", averaging: "good", serving: "good", paused: "wait", joining: "wait", syncing: "wait" };

/** Of Status.state, given the run's name. */
export const LEADS = {
  idle: () => "No run is joined. Join one with `tapestry run join INVITE`.",
  joining: (run) => `Not in the rounds of ${run} yet.`,
  syncing: (run) => `Catching up with the peers of ${run}.`,
  training: (run) => `Taking local steps for ${run}.`,
  averaging: (run) => `Averaging with the peers of ${run}.`,
  serving: (run) => `Serving base, log and addresses to the peers of ${run}. Nothing is trained here, as trainer.enabled says.`,
  paused: (run) => `Taking no part in ${run}. What was learned here is kept.`,
  stopping: () => "The daemon is stopping.",
};

/** Of Status.reasons, given the run; those that Status.policy holds say themselves what they mean. */
export const REASONS = {
  no_rules: () => "the run's rules are being fetched from its peers",
  no_base: () => "there is no Shared Base here yet",
  no_peers: (run) => `fewer peers are here than the run asks for: ${run.min_peers}, with this one`,
  trainer: () => "the trainer is not ready",
  behind: () => "others have committed further, and this node follows them",
  clock: () => "its clock differs too much from the others'",
  disk_full: () => "too little disk is left to catch up",
  no_donor: () => "no peer could show the lineage that it announced",
  not_delegated: () => "no Member of the run has delegated this node",
  twin: () => "another daemon runs with this node's identity",
};

export const REACHABLE = {
  yes: "yes, others can dial this node",
  no:
    "no: it takes part, but reduces nothing and serves no joiners. Open network.listen's port to the world, or name what " +
    "others reach in network.announce",
  unknown: "not known yet",
};

/** Of /v1/egress: what bytes were. */
export const KINDS = {
  delta: "deltas, encoded, to reducers",
  mean: "reduced parts of the mean",
  vote: "votes",
  roster: "calls to rounds, and rosters",
  record: "records of who is present",
  log: "log entries, for catching up",
  snapshot: "snapshots, for joining",
  rules: "run rules and tokenizer",
  contact: "greetings and clock readings",
};

/** Of Status.isolation.checks (trainer.md, host/probes.py): what has to be impossible. */
export const CHECKS = {
  "data.interfaces": "the data side has no network but its own loopback",
  "data.sockets": "it can open no socket that reaches anybody",
  "data.io_uring": "nor have the kernel open one",
  "data.descriptors": "it was handed nothing open but its channel",
  "data.network_side": "it cannot open the network side's files",
  "data.memory": "nor look into any process but its own",
  "data.privileges": "it has no privilege, and can get none",
  "data.writes": "it can write nothing but its checkpoint",
  "network.devices": "the network side has no GPU",
  "network.families": "it can open sockets of the usual kinds only",
  "network.io_uring": "nor have the kernel open others",
  "network.places": "it sees no folder where people keep data",
  "network.privileges": "it has no privilege, and can get none",
  "network.processes": "it cannot look into any process but its own",
  "network.trainer_config": "it cannot read the data side's settings",
};
export const VERDICTS = { held: "✓", open: "✗", untried: "?" };

/** Of Story.missing. */
export const MISSING = { roster: "not in the roster", part: "part lost", mean: "not in the mean", vote: "no vote" };

export const STAGES = ["gathering", "reducing", "settling", "committing"];

export const spaced = (word) => word.replaceAll("_", " ");
