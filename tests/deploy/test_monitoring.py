"""Prometheus reads our configuration, each alert fires when it should, and every metric asked for exists."""

import json
import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from server.monitoring.metrics import Metrics
from tests.deploy.support import PORTS, TRITON_PORTS
from tests.support.triton import ROOT

MONITORING = ROOT / "deploy" / "monitoring"
TRITON_METRICS = {
    "nv_inference_compute_infer_duration_us",
    "nv_inference_count",
    "nv_inference_exec_count",
    "nv_inference_queue_duration_us",
    "nv_inference_request_failure",
    "nv_inference_request_success",
}
"""Of NVIDIA's container, as its documentation names them."""
SUFFIXES = {
    "counter": ["_total"],
    "gauge": [""],
    "histogram": ["_bucket", "_count", "_sum"],
    "summary": ["_count", "_sum"],
}
_WORDS = {"and", "or", "unless", "by", "without", "on", "ignoring", "group_left", "group_right", "bool", "offset"}


def exposed_names() -> set[str]:
    """Names of all series that a server shows to Prometheus."""
    metrics = Metrics()
    names = set()
    for family in metrics.registry.collect():
        names |= {family.name + suffix for suffix in SUFFIXES[family.type]}
    return names


def names_in(expression: str) -> set[str]:
    """Metric names of a PromQL expression."""
    bare = re.sub(r'"[^"]*"', "", expression)
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]|\b(by|without|on|ignoring)\s*\([^)]*\)", "", bare)
    names = re.findall(r"(?<![\w$])[a-zA-Z_:][\w:]*(?!\s*\(|[\w:])", bare)
    return set(names) - _WORDS


def rules() -> list[dict[str, Any]]:
    loaded = yaml.safe_load((MONITORING / "rules.yaml").read_text())
    return [rule for group in loaded["groups"] for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((MONITORING / "dashboard.json").read_text())
    return loaded


def test_names_are_found_in_expressions() -> None:
    expression = 'histogram_quantile(0.9, sum by (le, x) (rate(a_bucket{b=~"c|d"}[5m]))) > 1 and e:f == 0 or vector(0)'
    assert names_in(expression) == {"a_bucket", "e:f"}


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("alert") or rule["record"])
def test_every_metric_of_a_rule_exists(rule: dict[str, Any]) -> None:
    recorded = {other["record"] for other in rules() if "record" in other}
    assert names_in(rule["expr"])
    assert names_in(rule["expr"]) <= exposed_names() | recorded | {"up"}


def test_every_metric_of_the_dashboard_exists() -> None:
    shown = set().union(
        *(names_in(target["expr"]) for panel in dashboard()["panels"] for target in panel["targets"]),
        names_in(dashboard()["templating"]["list"][1]["query"].removeprefix("label_values(").partition(",")[0]),
    )
    assert shown <= exposed_names() | TRITON_METRICS
    bucketed = {name.removesuffix("_bucket") for name in exposed_names() if name.endswith("_bucket")}
    counted_only = {name + suffix for name in bucketed for suffix in ("_count", "_sum")}
    assert exposed_names() - counted_only <= shown, "the dashboard leaves one of our metrics out"


def test_panels_are_told_apart_and_do_not_overlap() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)


def test_alerts_say_what_to_do_and_how_soon() -> None:
    for rule in rules():
        if "alert" in rule:
            assert rule["labels"]["severity"] in ("page", "ticket")
            assert set(rule["annotations"]) == {"summary", "action"}


def test_every_alert_fires_in_a_test() -> None:
    cases = yaml.safe_load((MONITORING / "rules_test.yaml").read_text())["tests"]
    fired = {check["alertname"] for case in cases for check in case["alert_rule_test"] if check["exp_alerts"]}
    silent = {check["alertname"] for case in cases for check in case["alert_rule_test"] if not check["exp_alerts"]}
    alerts = {rule["alert"] for rule in rules() if "alert" in rule}
    assert fired == silent == alerts


def test_prometheus_scrapes_the_ports_that_are_listened_on() -> None:
    configuration = yaml.safe_load((MONITORING / "prometheus.yaml").read_text())
    ports = {job["job_name"]: job["dns_sd_configs"][0]["port"] for job in configuration["scrape_configs"]}
    assert ports == {"segrec": PORTS["metrics_address"], "triton": TRITON_PORTS["metrics"]}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is missing: install the package prometheus")
@pytest.mark.parametrize(
    "command", ["check config prometheus.yaml", "check rules rules.yaml", "test rules rules_test.yaml"]
)
def test_promtool_agrees(command: str) -> None:
    result = subprocess.run(
        ["promtool", *command.split()], cwd=MONITORING, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
