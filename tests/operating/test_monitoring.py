"""The alert rules and the Grafana board that are shipped fit the metrics."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bellwired.guest.archive import ArchiveError
from bellwired.guest.toolbox import LIBRARIES, LOADER
from fetched import fetched
from operating.instance import Instance
from operating.test_metrics import ask

MONITORING = Path(__file__).resolve().parents[2] / "docs" / "monitoring"
RULES, BOARD = MONITORING / "alerts.yml", MONITORING / "grafana.json"
NAME = re.compile(r"\bbellwire_[a-z_]+\b(?!\s*=)")  # not a label: the state's is called as its metric


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of all samples in a real scrape, with a disk and a network."""
    instance = Instance(tmp_path_factory.mktemp("monitored"))
    path = instance.runtime / "metrics"
    instance.settings(f'metrics = "unix:{path}"')
    instance.configure("disk", 'device = "nvme"')
    instance.configure("bell", 'device = "bell"')
    with instance:
        body = ask(path)[1]
    return {line.split("{")[0].split(" ")[0] for line in body.splitlines() if not line.startswith("#")}


@pytest.fixture(scope="module")
def promtool() -> list[str]:
    """The command line of Prometheus' checker begins so."""
    try:
        root = fetched(("prometheus",))
    except (ArchiveError, OSError) as error:
        pytest.skip(f"no promtool could be provided: {error}")
    return [str(root / LOADER), "--library-path", str(root / LIBRARIES), str(root / "usr/bin/promtool")]


def expressions(found: Any) -> Iterator[str]:
    """All queries of a board."""
    if isinstance(found, dict):
        yield from (value for key, value in found.items() if key in ("expr", "query") and isinstance(value, str))
        for value in found.values():
            yield from expressions(value)
    elif isinstance(found, list):
        for value in found:
            yield from expressions(value)


@pytest.mark.daemon
def test_every_metric_of_the_board_is_in_a_scrape(names: set[str]) -> None:
    used = {name for each in expressions(json.loads(BOARD.read_text())) for name in NAME.findall(each)}
    assert len(used) > 10
    assert used <= names


@pytest.mark.daemon
def test_every_metric_of_the_alert_rules_is_in_a_scrape(names: set[str]) -> None:
    used = {name for line in RULES.read_text().splitlines() if "expr:" in line for name in NAME.findall(line)}
    assert len(used) > 5
    assert used <= names


def test_the_panels_of_the_board_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(BOARD.read_text())["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells


@pytest.mark.slow
def test_promtool_accepts_the_alert_rules(promtool: list[str]) -> None:
    done = subprocess.run([*promtool, "check", "rules", str(RULES)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS: 7 rules found" in done.stdout


@pytest.mark.slow
def test_promtool_accepts_every_query_of_the_board(promtool: list[str], tmp_path: Path) -> None:
    queries = [each for each in expressions(json.loads(BOARD.read_text())) if "label_values" not in each]
    plain = [each.replace("$__rate_interval", "5m").replace("$device", ".*") for each in queries if "bellwire" in each]
    rules = [{"record": f"board:{number}", "expr": each} for number, each in enumerate(plain)]
    file = tmp_path / "board.yml"  # JSON is YAML
    file.write_text(json.dumps({"groups": [{"name": "board", "rules": rules}]}))
    done = subprocess.run([*promtool, "check", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
