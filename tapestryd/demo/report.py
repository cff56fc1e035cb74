"""The report of a demo: one HTML page that needs nothing else, neither network nor script. Pure.

Light or dark as the reader's system is; readable on a telephone. Also well-formed XML, which is how it is tested.
"""

from collections.abc import Iterable, Sequence
from html import escape

from tapestryd import __version__
from tapestryd.demo import chart
from tapestryd.demo.chart import Axes, Series
from tapestryd.demo.progress import Event, Progress, Round
from tapestryd.screen import duration, number, size

NAME = "report.html"
POINTS = 240
"""Of one curve of local loss; more cannot be told apart."""

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --dim: #596273; --paper: #fbfbf9; --card: #fff; --edge: #dcdfe4; --good: #14703f;
  --bad: #a8261b; --s0: #0062a8; --s1: #c24e00; --s2: #00795a; --s3: #a23b80; --s4: #7a6400; --s5: #2b7fc4; --s6: #b3261e; --s7: #5b5fc7; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --dim: #a0a9b8; --paper: #12161c; --card: #1a2028; --edge: #333c48;
  --good: #5fd39a; --bad: #ff8f84; --s0: #5db3f0; --s1: #f0955a; --s2: #4fc9a4; --s3: #e08cc2; --s4: #d9c04a; --s5: #9ccdf5;
  --s6: #ff8f84; --s7: #a9acf5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.2rem 1rem 3rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .3rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .6rem; }
p { margin: .3rem 0; max-width: 46rem; } .dim { color: var(--dim); } .good { color: var(--good); } .bad { color: var(--bad); }
.verdict { font-size: 1.1rem; font-weight: 600; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.2rem, 1fr)); gap: .6rem; margin: 1rem 0; }
.facts div, figure, .scroll { background: var(--card); border: 1px solid var(--edge); border-radius: .5rem; }
.facts div { padding: .55rem .8rem; } .facts dt { color: var(--dim); font-size: .82rem; }
.facts dd { margin: 0; font-size: 1.05rem; font-weight: 600; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); gap: .8rem; }
figure { margin: 0; padding: .8rem; } figcaption { font-weight: 600; }
.note { font-size: .85rem; } footer { margin-top: 1.5rem; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .1rem 1rem; margin: .3rem 0; padding: 0; font-size: .88rem; }
.key { vertical-align: -1px; margin-right: .4rem; }
.chart { display: block; width: 100%; height: auto; } .chart text { font-size: 12px; fill: var(--dim); } .chart .axis { fill: var(--ink); }
.grid { stroke: var(--edge); } .mark { stroke: var(--dim); stroke-dasharray: 1 3; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; } .dot { stroke: var(--card); stroke-width: 1; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { text-align: left; padding: .4rem .75rem; border-bottom: 1px solid var(--edge); overflow-wrap: normal; white-space: nowrap; }
tr:last-child td { border-bottom: 0; } .n { text-align: right; } code { font-size: .92em; }
"""


def page(progress: Progress, summary: Event, fault: str) -> str:
    """`fault`: why the demo did not show what it is there to show; "" when it did."""
    names = list(progress.peers)
    verdict = fault or "The swarm learned together."
    body = [
        "<header><h1>A swarm without a coordinator</h1>",
        f'<p class="verdict {"bad" if fault else "good"}">{escape(verdict)}</p>',
        f"<p>{len(names)} daemons on one machine trained one causal language model, each on its own text, and averaged parameter vectors "
        f"with one another. Their text stayed with them. Every committed round has one result, bit for bit the same on all peers."
        "</p></header><main>",
        _facts(progress, summary),
        '<div class="charts">',
        *_charts(progress),
        "</div>",
        "<h2>What each peer learned</h2>",
        _learned(progress),
        "<h2>Rounds</h2>",
        _rounds(progress),
        f'</main><footer><p class="dim note">tapestryd {escape(__version__)} demo. Loss is in nats per byte. The Shared Base is the model '
        f"that all peers hold; each evaluates it on a part of its own text that nobody trains on.</p></footer>",
    ]
    colours = "".join(
        f".line.s{place} {{ stroke: var(--s{place}); }} .dot.s{place}, .bar.s{place} {{ fill: var(--s{place}); }}\n"
        for place in range(chart.COLOURS)
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\"/>"
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>tapestryd demo: a swarm without a coordinator</title><style>{_STYLE}{colours}</style></head>\n<body>"
        + "\n".join(body)
        + "</body></html>\n"
    )


def _facts(progress: Progress, summary: Event) -> str:
    mean, run, digest = progress.mean(), progress.run, summary["base_digest"]
    facts = [
        ("Rounds committed", f"{summary['rounds_committed']} of {progress.target}"),
        ("Peers", str(summary["peers"])),
        ("Shared Base, on all peers", f"<code>{digest[:12]}</code>" if digest else "not the same"),
        ("Mean held-out loss", f"{mean[0]:.3f} → {mean[1]:.3f}" if mean else "not measured"),
        ("Vectors sent", size(summary["bytes_sent"])),
        ("Time", duration(summary["seconds"])),
    ]
    if run:
        facts.insert(2, ("Parameters", f"{number(run['elements'])} in {run['fragments']} fragments"))
    return '<dl class="facts">' + "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts) + "</dl>"


def _charts(progress: Progress) -> Iterable[str]:
    peers, committed = list(progress.peers.values()), progress.committed
    names = [peer.name for peer in peers]

    def loss(value: float) -> str:
        return f"{value:.3f}".rstrip("0").rstrip(".")

    heldout = [Series(peer.name, sorted(peer.heldout.items())) for peer in peers]
    title = "Held-out loss of the Shared Base, by region"
    drawn = chart.lines("heldout", title, Axes("committed rounds", "nats per byte", loss), heldout)
    yield _figure(title, "One fragment of the vector is averaged in a round; the base is whole when each has had its turn.", drawn, names)

    local = [Series(peer.name, _thinned(peer.losses)) for peer in peers]
    title = "Local training loss, by peer"
    drawn = chart.lines("local", title, Axes("seconds", "nats per byte", loss), local, [lived.committed_s for lived in committed])
    yield _figure(title, "Dotted lines: a round was committed.", drawn, names)

    most = max((lived.sent_bytes for lived in committed), default=0)
    unit, divisor = ("MiB", 1 << 20) if most >= 4 << 20 else ("KiB", 1 << 10)
    sent = [
        Series(name, [(lived.height or 0, lived.results[name]["sent_bytes"] / divisor) for lived in committed if name in lived.results])
        for name in names
    ]
    title = "Bytes sent in each committed round"
    drawn = chart.bars("bytes", title, Axes("committed rounds", unit, lambda value: f"{value:.4g}"), sent)
    yield _figure(title, "Encoded vectors and the votes on them, as every peer counted what it sent.", drawn, names, bars=True)


def _figure(title: str, note: str, drawn: str, names: Sequence[str], *, bars: bool = False) -> str:
    return (
        f'<figure><figcaption>{escape(title)}</figcaption>{chart.legend(names, bars)}{drawn}<p class="dim note">{escape(note)}</p></figure>'
    )


def _learned(progress: Progress) -> str:
    head = ("Peer", "Held-out at genesis", "Held-out now", "Change", "Local loss", "Steps", "Sent", "Base")
    rows = []
    for name, (first, last) in progress.heldout().items():
        peer = progress.peers[name]
        change = f"{(last - first) / first:+.0%}" if first and last is not None else "-"
        local = [_loss(peer.loss), str(peer.steps), size(peer.sent_bytes), peer.digest[:12] or "-"]
        rows.append([name, _loss(first), _loss(last), change, *local])
    return _table("Held-out loss of the Shared Base on each peer's own text, and what the peer did", head, rows, numbers=range(1, 7))


def _rounds(progress: Progress) -> str:
    if not progress.rounds:
        return '<p class="dim">No round has ended.</p>'
    head = ("Round", "Result", "Height", "Fragment", "Took", "Bytes", "Base", "Took part")
    rows = [_row(progress.rounds[at]) for at in sorted(progress.rounds)]
    return _table("Every round, as the swarm lived it", head, rows, numbers=(0, 2, 3, 4, 5))


def _row(lived: Round) -> list[str]:
    took = max((story["took_ms"] for story in lived.results.values()), default=0)
    shared = [str(lived.fragment), duration(took / 1000), size(lived.sent_bytes)]
    if lived.height is None:
        return [str(lived.number), f"discarded: {lived.reasons}", "-", *shared, "-", "-"]
    return [str(lived.number), "committed", str(lived.height), *shared, lived.digest[:12], ", ".join(lived.members)]


def _table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int]) -> str:
    right = [' class="n"' if place in set(numbers) else "" for place in range(len(head))]
    top = "".join(f'<th scope="col"{side}>{escape(cell)}</th>' for cell, side in zip(head, right, strict=True))
    body = "".join(f"<tr>{''.join(f'<td{side}>{escape(cell)}</td>' for cell, side in zip(row, right, strict=True))}</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most about POINTS of them, the last among them."""
    every = 1 + len(points) // POINTS
    return [*points[:-1:every], *points[-1:]]


def _loss(loss: float | None) -> str:
    return "-" if loss is None else f"{loss:.3f}"
