"""What Prometheus would read, read by Prometheus' own parser; and that documents and deploy/ name what is there."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as families

from protocols.control import Disk, Isolation, Repaired, Silent, Status
from tapestryd.config import Metrics as Choices
from tapestryd.host.metrics import Metrics, scraped
from tests.host.test_api import ask
from tests.host.test_dashboard import Page
from tests.scripted import IDLE, OTHERS, STATUS, STORY, Served

ROOT = Path(__file__).parents[2]
FULL = replace(
    STATUS,
    reasons=("no_peers",),
    health=("the disk is full",),
    isolation=Isolation(False, "x", {"data.sockets": "held", "network.places": "open", "data.memory": "untried"}),
    traffic=replace(STATUS.traffic, by_kind={"offer": {"sent": 5, "received": 7}}),
    refusals={"stale": 3},
    declined={"banned": 2},
    disk=Disk(5 << 30, 1 << 30),
)


UNKNOWN = (
    "height", "round", "run_info", "swarm_height", "reachable", "clock_offset_seconds", "loss", "heldout_loss", "tokens_total",
    "local_steps_total", "averaging_coverage", "averaging_group_size", "disk_free_bytes",
)  # fmt: skip
"""What an idle node does not know."""


def read(status: Status, per_peer: bool = False) -> dict[str, dict[tuple[str, ...], float]]:
    """name → values of its labels, in the order of their names → value."""
    metrics = Metrics(lambda: status, per_peer)
    metrics.told(STORY)
    silent = (Silent("a", "other_base: a roster on base x"), Silent("b", "no roster in its window"), Silent("c", "x: y"))
    metrics.told(replace(STORY, result="discarded", reason="late", took_ms=700, silent=silent))
    metrics.told(replace(STORY, result="committed", took_ms=0, repaired=(Repaired(1, "a"), Repaired(2, "b"))))
    metrics.told(replace(STORY, result="caught_up"))
    metrics.told(replace(STORY, result="behind", reason="no_donor: the donors' log does not lead there"))
    text, media = metrics.text("")
    assert media.startswith("text/plain; version=")
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in families(text.decode()):
        assert family.documentation
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(value for _, value in sorted(sample.labels.items()))] = sample.value
    return found


def test_they_are_those_of_the_status() -> None:
    found = read(FULL)
    assert found["tapestry_state"] == {(state,): float(state == "training") for (state,) in found["tapestry_state"]}
    assert ("training",) in found["tapestry_state"]
    assert found["tapestry_reason"] == {("no_peers",): 1}
    assert found["tapestry_tokens_total"] == {(): 10_485_760}
    assert found["tapestry_averaging_rounds_total"] == {("", "committed"): 2, ("late", "discarded"): 1}
    assert found["tapestry_averaging_leaders_passed_over_total"] == {("other_base",): 1, ("gone",): 2}
    assert found["tapestry_averaging_parts_repaired_total"] == {(): 2}
    assert found["tapestry_averaging_round_duration_seconds_count"] == {(): 2}
    assert found["tapestry_averaging_round_duration_seconds_sum"][()] == pytest.approx(10.1)
    assert found["tapestry_catch_ups_total"] == {("", "caught_up"): 1, ("no_donor", "behind"): 1}
    assert found["tapestry_network_transmit_bytes_total"] == {("offer",): 5}
    assert found["tapestry_isolation_check"] == {("data.sockets",): 1, ("network.places",): 0}
    assert found["tapestry_clock_offset_seconds"] == {(): 0.012}
    assert found["tapestry_swarm_height"] == {(): 38}
    assert found["tapestry_build_info"].popitem()[0][-1] == "0.1.0"
    assert found["process_resident_memory_bytes"][()] > 1 << 20


def test_what_is_not_known_is_not_there() -> None:
    unknown = {f"tapestry_{name}" for name in UNKNOWN}
    assert unknown <= set(read(FULL))
    assert unknown & set(read(IDLE)) == set()
    assert read(IDLE)["tapestry_ready"] == {(): 0}


def test_peers_are_named_only_where_that_is_asked_for() -> None:
    assert OTHERS[0] not in json.dumps([list(labels) for labels in map(dict.keys, read(FULL).values())], default=list)
    assert read(FULL, per_peer=True)["tapestry_peer_score"] == {(OTHERS[0],): 0, (OTHERS[1],): -7.4}
    assert read(FULL, per_peer=True)["tapestry_peer_round_trip_seconds"] == {(OTHERS[0],): 0.0312}


def test_every_way_to_them(served: Served) -> None:
    served.operator.watch.look()
    status, text, headers = ask(served.socket, "GET", "/metrics")
    assert (status, headers["Content-Type"].partition(";")[0]) == (200, "text/plain")
    assert {family.name for family in families(text.decode())} >= {"tapestry_height", "process_start_time_seconds"}
    page = Page(served)
    status, text, headers = page.ask("GET", "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert headers["Content-Type"].startswith("application/openmetrics-text")
    assert len(list(openmetrics(text.decode()))) > 20
    assert page.ask("GET", "/metrics", Origin="http://evil.example")[0] == 403


@pytest.mark.parametrize(("listen", "name", "status"), [("127.0.0.1:0", "evil.example", 403), ("0.0.0.0:0", "node7.lab.example", 200)])
def test_a_listener_of_their_own(served: Served, listen: str, name: str, status: int) -> None:
    (route,) = (route for route in served.routes if route.path == "/metrics")

    async def start() -> Any:
        web = scraped(Choices(listen=listen), route)
        await web.start()
        return web

    web = served.run(start())
    page = Page(served)
    page.url = web.url
    try:
        assert page.ask("GET", "/metrics", Host=name)[0] == status
        assert page.ask("GET", "/metrics")[0] == 200
        assert [page.ask("GET", target)[0] for target in ("/", "/v1/status")] == [404, 404]
    finally:
        served.run(web.stop())
    assert scraped(Choices(listen=""), route).url == ""


def names() -> set[str]:
    """Every series that there can be."""
    return set(read(FULL, per_peer=True))


def test_the_document_lists_every_metric_and_no_other() -> None:
    text = (ROOT / "protocols/control.md").read_text()
    listed = set(re.findall(r"`(tapestry_\w+)", text[text.index("## Metrics") : text.index("## `tapestry`")]))
    assert listed == {re.sub(r"_(bucket|count|sum)$", "", name) for name in names() if name.startswith("tapestry_")}


def expressions() -> Iterator[str]:
    yield from re.findall(r"expr: (.*(?:\n {10,}.*)*)", (ROOT / "deploy/prometheus/alerts.yml").read_text())
    board = json.loads((ROOT / "deploy/grafana/tapestry.json").read_text())
    yield from (target["expr"] for panel in board["panels"] for target in panel["targets"])


def test_alerts_and_dashboard_name_only_metrics_that_exist() -> None:
    asked = list(expressions())
    assert len(asked) > 25
    named = {name for expression in asked for name in re.findall(r"\b(?:tapestry|process)_\w+", expression)}
    assert named <= names()
    labels = {label for expression in asked for label in re.findall(r"by \((.*?)\)|(\w+)=~?\"", expression)}
    assert {part.strip() for pair in labels for one in pair for part in one.split(",")} - {""} <= {
        "instance", "job", "result", "reason", "kind", "le",
    }  # fmt: skip


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool, of Debian's package prometheus, is not installed")
def test_promtool_takes_the_alerts_and_the_text(tmp_path: Path) -> None:
    done = subprocess.run(["promtool", "check", "rules", str(ROOT / "deploy/prometheus/alerts.yml")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text, _ = Metrics(lambda: FULL, True).text("")
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
