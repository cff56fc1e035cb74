"""A history: who is there, what goes wrong in its first rounds, and quiet rounds after that. All of it from one seed."""

from collections import Counter
from dataclasses import dataclass

from protocols.limits import CLOCK_SKEW_MS
from protocols.membership import member_quorum
from protocols.rounds import Gather, Haste, Held, LeaveAsked, State, Stop, TrainerDown, TrainerUp
from tests.simulation.ledger import PROGRESS_ROUNDS, Fault
from tests.simulation.liars import CROWDS, FORKING, STUBBORN, TRAITS, Liar
from tests.simulation.peer import Disk, Peer
from tests.simulation.run import GENESIS, SCHEDULE, delegation, name_of
from tests.simulation.world import World

FAULTY_ROUNDS = 6
CALM_MS = FAULTY_ROUNDS * SCHEDULE.period_ms
ENDS_MS = SCHEDULE.boundary(FAULTY_ROUNDS + PROGRESS_ROUNDS + 1) - 1000
"""At the end of a training: everybody who has committed has told, and heard."""


@dataclass
class Outcome:
    seed: int
    faults: list[Fault]
    counts: Counter[str]
    told: list[str]


def live(seed: int, *, telling: bool = False) -> Outcome:
    """The whole history of `seed`, judged."""
    world = World(seed, telling=telling)
    if world.random() < 0.03:
        halves(world)
    else:
        (organisations if world.random() < 0.3 else people)(world)
        for _ in range(int(world.random() ** 2 * 2 * len(world.peers))):
            world.at(int(world.random() * CALM_MS), mishap, world)
    world.run(CALM_MS)
    calm(world)
    world.run(ENDS_MS)
    world.ledger.judge(world, CALM_MS)
    counts = world.ledger.counts
    counts["peers"] = len(world.peers)
    counts["liars"] = sum(not peer.honest for peer in world.peers.values())
    return Outcome(seed, world.ledger.faults, counts, world.told)


def people(world: World) -> None:
    rng = world.rng
    size = rng.choice([5, 5, 6, 6, 7, 7, 8, 9, 10, 12, 15, 20, 30])
    liars = rng.randint(1, max(1, (size - 1) // 3)) if rng.random() < 0.5 else 0
    world.loss = rng.choice([0.0, 0.0, 0.02, 0.1])
    world.late_ms = rng.choice([0, 0, 500, 4000])
    hands = rng.choice(FORKING) if rng.random() < 0.3 else frozenset(rng.sample(TRAITS, rng.randint(1, 3)))
    shy = rng.choice([0.1, 0.1, 0.1, 0.7])
    for number in range(size):
        label = f"p{number}"
        if number < liars:
            traits = hands if rng.random() < 0.6 else frozenset(rng.sample(TRAITS, 1))
            peer: Peer = Liar(world, name_of(number), f"{label}!", Disk(GENESIS), traits)
            world.tell(f"{peer.label} lies: {', '.join(sorted(traits))}")
        else:
            joins = number > liars + 2 and rng.random() < 0.15
            peer = Peer(world, name_of(number), label, Disk(None if joins else GENESIS))
            peer.nat = number > liars + 1 and rng.random() < shy
        comes(world, peer)


def organisations(world: World) -> None:
    """Roster mode: Members, of whom less than a third lie, with as many nodes as they like."""
    rng = world.rng
    members = tuple(map(name_of, range(200, 200 + rng.choice([4, 5, 6, 7, 9]))))
    world.rules.members = members
    most = (len(members) - 1) // 3
    liars = rng.randint(1, most) if rng.random() < 0.6 else 0
    world.loss = rng.choice([0.0, 0.0, 0.02, 0.1])
    world.late_ms = rng.choice([0, 0, 500, 4000])
    hands = rng.choice([*FORKING, *CROWDS]) if rng.random() < 0.6 else frozenset(rng.sample(TRAITS, rng.randint(1, 3)))
    number = 0
    for place, member in enumerate(members):
        nodes = rng.choice([1, 1, 2, 4, 12]) if place < liars else rng.choice([1, 1, 1, 2])
        for name in map(name_of, range(number, number + nodes)):
            if place < liars:
                peer: Peer = Liar(world, name, f"p{number}.{place}!", Disk(GENESIS), hands)
                world.tell(f"{peer.label} lies: {', '.join(sorted(hands))}")
            else:
                peer = Peer(world, name, f"p{number}.{place}", Disk(None if place > liars + 2 and rng.random() < 0.15 else GENESIS))
            peer.delegation = delegation(member, name, nodes)
            world.owners[name] = member
            comes(world, peer)
            number += 1


def comes(world: World, peer: Peer) -> None:
    world.peers[peer.name] = peer
    joining = peer.disk.first is None
    world.at(int(world.random() * (CALM_MS if joining else 3000)), peer.boot)


def halves(world: World) -> None:
    """Nothing but one half against the other, all the time: two branches of equal weight."""
    size = world.rng.choice([4, 6, 8, 10])
    names = [name_of(number) for number in range(size)]
    for number, name in enumerate(names):
        peer = Peer(world, name, f"p{number}", Disk(GENESIS))
        peer.cut = set(names[size // 2 :] if number < size // 2 else names[: size // 2])
        world.peers[name] = peer
        world.at(0, peer.boot)


def reboot(world: World, peer: Peer, lost: int) -> None:
    """Back, perhaps with a disk from `lost` heights ago."""
    if peer.up:
        return
    if lost and peer.disk.entries:
        del peer.disk.entries[-lost:]
        peer.tips.clear()
        world.tell(f"{peer.label}: its disk is {lost} heights older now")
    peer.boot()


def mishap(world: World) -> None:
    rng = world.rng
    peer = rng.choice([peer for peer in world.peers.values() if peer.honest])
    kind = rng.choice(MISHAPS)
    world.tell(f"{peer.label}: {kind}")
    lasts_ms = int(1000 * 2 ** (rng.random() * 7))
    match kind:
        case "crash":
            if peer.up:
                peer.fuse = rng.randint(0, 80)
            world.at(world.now + lasts_ms, reboot, world, peer, 0)
        case "old disk":
            if peer.up:
                peer.crash()
            world.at(world.now + lasts_ms, reboot, world, peer, rng.randint(1, 4))
        case "clock back":
            if peer.up:
                peer.crash()
            peer.skew_ms -= rng.randint(500, 15_000)
            world.skewed = True
            world.at(world.now + rng.randint(500, 2000), reboot, world, peer, 0)
        case "sleep":
            peer.asleep_ms = world.now + lasts_ms
        case "cut off" | "split" | "one way":
            names = list(world.peers)
            side = {peer.name} if kind != "split" else set(rng.sample(names, rng.randint(1, len(names) - 1)))
            for name, one in world.peers.items():
                other = set(names) - side if name in side else side
                if kind != "one way" or name in side:
                    one.cut = set(other)
            world.at(world.now + lasts_ms, heal, world)
        case "clock":
            peer.skew_ms = rng.choice([rng.randint(-CLOCK_SKEW_MS, CLOCK_SKEW_MS), rng.randint(-4000, 4000)])
            world.skewed = True
        case "pause" if peer.up:
            peer.later(0, peer.feed, Held(("user",), rng.choice(list(Haste))))
            peer.later(lasts_ms, peer.feed, Held(()))
        case "leave" if peer.up:
            peer.later(0, peer.feed, LeaveAsked())
            world.of(peer, min(world.now + 4000, CALM_MS - 1), peer.crash)
            world.at(world.now + 4000 + lasts_ms, reboot, world, peer, 0)
        case "trainer" if peer.up:
            peer.later(0, peer.feed, TrainerDown())
            peer.later(lasts_ms, peer.feed, TrainerUp())
        case "slow":
            peer.step_ms = rng.choice([300, 5000, 20_000])
            peer.compute_ms = rng.choice([50, 3000])
            peer.write_ms = rng.choice([30, 3000, 20_000])
            peer.fetch_ms = rng.choice([200, 5000, 40_000])
        case "disk full":
            peer.disk_full = True
        case "wrong":
            peer.wrong = 0.5


MISHAPS = (
    "crash", "crash", "crash", "old disk", "sleep", "cut off", "split", "split", "one way", "clock", "clock back", "pause", "leave",
    "trainer", "slow", "slow", "disk full", "wrong",
)  # fmt: skip


def heal(world: World) -> None:
    for peer in world.peers.values():
        peer.cut = set()


def calm(world: World) -> None:
    """No more faults: liars are gone, but for the crowd that a Member sends to stop the others; everybody else is up, in reach, awake, in
    time and sound. But for some, up to half, perhaps, that are too slow, or for one that calls nobody: nobody may have to wait for them."""
    world.tell("calm")
    world.loss, world.late_ms, world.skewed = 0.0, 0, False
    heal(world)
    honest = [peer for peer in world.peers.values() if peer.honest]
    stuck = world.rng.choice([Stop, Gather]) if len(honest) > 4 and world.random() < 0.4 else None
    left_behind = world.rng.sample(honest, {None: 0, Gather: 1, Stop: world.rng.randint(1, len(honest) // 2)}[stuck])
    others = [peer for peer in honest if peer not in left_behind]
    if all(peer.nat for peer in others) or (world.rules.members and not enough(world, others)):  # they alone could do nothing
        left_behind = []
    for peer in world.peers.values():
        if isinstance(peer, Liar):
            if not world.rules.members or peer.traits not in STUBBORN:
                peer.crash()
            elif not peer.up:
                peer.boot()
            continue
        if peer.up and (peer.asleep_ms > world.now or peer.member.state in (State.PAUSED, State.LEFT)):
            peer.crash()
        peer.fuse, peer.asleep_ms, peer.disk_full, peer.wrong = None, 0, False, 0.0
        peer.step_ms, peer.compute_ms, peer.write_ms, peer.fetch_ms = 300, 50, 30, 200
        peer.skew_ms = world.rng.randint(-200, 200)
        peer.stuck = stuck if peer in left_behind else None
        if not peer.up:
            peer.boot()
        elif not peer.member.trainer:
            peer.later(1000, peer.feed, TrainerUp())


def enough(world: World, peers: list[Peer]) -> bool:
    """Whether these are a quorum of the voices."""
    return member_quorum(world.rules.members, [peer.delegation for peer in peers if peer.delegation])
