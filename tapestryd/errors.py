"""Three kinds of trouble, three ways to meet it.

a bug             any other exception: it crashes, loudly, and systemd restarts us
a local fault     LocalFault: one sentence for the person at this machine, and an exit code
├── ConfigFault   78  a setting is wrong: file, key, value, what to do (all faults at once)
├── StateFault    78  the state directory: locked by another daemon, newer schema, damaged
├── DataFault     78  the trainer's data: missing, unreadable, empty
├── DiskFull      75  no space left; temporary, nothing half-written stays
├── Unavailable   75  a port in use, a device lost; temporary
├── NotRunning     3  the CLI found no daemon
└── NotAllowed     4  the CLI may not ask it
a peer's fault    protocols.refusal.Refused: counted by reason, dropped
"""


class LocalFault(Exception):
    """Says what happened, which value, what to do. Shown without a traceback."""

    exit_code = 1


class ConfigFault(LocalFault):
    exit_code = 78


class StateFault(LocalFault):
    exit_code = 78


class DataFault(LocalFault):
    exit_code = 78


class DiskFull(LocalFault):
    exit_code = 75


class Unavailable(LocalFault):
    exit_code = 75


class NotRunning(LocalFault):
    exit_code = 3


class NotAllowed(LocalFault):
    exit_code = 4


def in_a_line(error: BaseException) -> str:
    """The beginning of what an error says, for the end of a sentence; its kind, if it says nothing."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def out_of_memory(error: BaseException) -> str:
    """What an error says of memory that ran out: Python's own, or one of torch and the libraries below it, known by their words;
    "" for any other."""
    said = in_a_line(error)
    return said if isinstance(error, MemoryError) or any(words in said for words in _MEMORY) else ""


_MEMORY = ("out of memory", "can't allocate memory", "STATUS_ALLOC_FAILED")
