"""The alert rules, tried by Prometheus's own promtool: each is seen to be silent and to fire."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from amnestic_server.metrics import Metrics

PROMETHEUS = Path(__file__).parents[2] / "deploy" / "prometheus"
CASES = Path(__file__).with_name("rules.yml")


@pytest.fixture(scope="session")
def promtool():
    """Run promtool; returns what it prints, and fails with it."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("Prometheus is not installed")

    def run(*arguments):
        result = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=60)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    return run


def rules():
    groups = yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_the_configuration_and_the_rules_are_valid(promtool):
    assert f"{len(rules())} rules found" in promtool("check", "config", PROMETHEUS / "prometheus.yml")


def test_the_alerts_fire_when_they_should_and_only_then(promtool):
    promtool("test", "rules", CASES)


def test_each_alert_is_seen_to_fire_and_to_be_silent():
    seen = {
        (case["alertname"], bool(case["exp_alerts"]))
        for test in yaml.safe_load(CASES.read_text())["tests"]
        for case in test["alert_rule_test"]
    }
    assert seen == {(rule["alert"], fires) for rule in rules() for fires in (True, False)}


def test_queue_limits_are_metrics():
    metrics = Metrics()
    metrics.show_queue_limits(tokens=1000, open_documents=64)
    assert metrics.registry.get_sample_value("amnestic_queue_tokens_limit") == 1000
    assert metrics.registry.get_sample_value("amnestic_open_documents_limit") == 64
