"""Prometheus, as Debian ships it, watches a server under load while it forgets. Every alert is evaluated there, and
every panel of the dashboards has data.
"""

import importlib.util
import re
import shutil
import socket
import subprocess
import time
import urllib.error
from pathlib import Path

import pytest
import yaml
from e2e.harness import GATES, METHOD, stage

from amnestic_client import InvalidArgument, JobState
from amnestic_server.rollout import Shares

DEPLOY = Path(__file__).parents[2] / "deploy"
INTERVAL = 1
ONLY_WITH_TLS = {"amnestic_certificate_expiry_seconds"}
HASTY = METHOD | {"epochs": 1}


def module(path):
    """A script that is no part of a package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


draw = module(DEPLOY / "grafana" / "draw.py")
VARIABLES = draw.Variables(interval=INTERVAL, rate_interval=4 * INTERVAL)


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture(scope="module")
def prometheus_of(tmp_path_factory, until):
    """Start a Prometheus on the deployed configuration that scrapes an address, and that each second."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("Prometheus is not installed")
    processes = []

    def start(target):
        folder, port = tmp_path_factory.mktemp("prometheus"), free_port()
        configuration = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
        configuration["global"] = dict.fromkeys(("scrape_interval", "evaluation_interval"), f"{INTERVAL}s")
        configuration["rule_files"] = [str(DEPLOY / "prometheus" / name) for name in configuration["rule_files"]]
        configuration["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
        arguments = {
            "config.file": folder / "prometheus.yml",
            "storage.tsdb.path": folder / "data",
            "web.listen-address": f"127.0.0.1:{port}",
        }
        with (folder / "log").open("w") as log:
            processes.append(
                subprocess.Popen([program, *(f"--{name}={value}" for name, value in arguments.items())], stderr=log)
            )
        prometheus = draw.Prometheus(f"http://127.0.0.1:{port}")

        def scraping():
            assert processes[-1].poll() is None, (folder / "log").read_text()
            try:
                return prometheus.instant('up{job="amnestic"} == 1')
            except (urllib.error.URLError, ConnectionError):
                return None

        until(scraping)
        return prometheus

    yield start
    for process in processes:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def story(bundle, serve_for_module, prometheus_of, traffic, texts, until):
    """A server that tried a staged version on its traffic, forgot `alpha`, and rejected a version without `gamma`.

    Returns its Prometheus, when it began, and the alerts that fired before the rejection and after it.
    """
    server = stage(serve_for_module(start=False), bundle, 1, shares=Shares(canary=0.3, shadow=1.0)).start()
    prometheus, began = prometheus_of(server.metrics_target), time.time()
    clients = traffic(server.target, texts[:20], processes=1, threads=1, pause=0.02)
    with pytest.raises(InvalidArgument):
        server.client.predict(())
    until(lambda: prometheus.instant("amnestic_shadow_documents_total > 100"))
    server.client.cancel_job("job-1")
    assert server.ended(server.forget("alpha", method=HASTY)).state is JobState.SUCCEEDED
    until(lambda: prometheus.instant("amnestic_forget_f1"))
    before = firing(prometheus)
    job = server.ended(server.forget("gamma", method=HASTY, gates=GATES | {"retain_f1_drop_max": -1.0}))
    assert job.state is JobState.REJECTED
    until(lambda: "AmnesticJobRejected" in firing(prometheus))
    yield prometheus, began, before, firing(prometheus)
    clients.stop()


def firing(prometheus):
    return {
        alert["labels"]["alertname"]
        for alert in prometheus.get("alerts")["data"]["alerts"]
        if alert["state"] == "firing"
    }


def test_no_alert_fires_but_the_one_that_should(story):
    prometheus, _, before, after = story
    groups = prometheus.get("rules")["data"]["groups"]
    deployed = yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text())["groups"]
    evaluated = {rule["name"]: rule.get("lastError", "") for group in groups for rule in group["rules"]}
    assert evaluated == {rule["alert"]: "" for group in deployed for rule in group["rules"]}
    assert before == set()
    assert after == {"AmnesticJobRejected"}


def test_alerts_are_on_metrics_that_there_are(story):
    prometheus, *_ = story
    expressions = " ".join(
        rule["query"] for group in prometheus.get("rules")["data"]["groups"] for rule in group["rules"]
    )
    named = set(re.findall(r"\bamnestic_\w+", expressions)) - ONLY_WITH_TLS
    assert len(named) > 10
    assert [name for name in named if not prometheus.instant(name)] == []


@pytest.mark.parametrize("name", ["serving", "forgetting"])
def test_every_panel_and_annotation_has_data(story, name):
    prometheus, began, _, _ = story
    dashboard = draw.load(name)
    queries = [query for panel in dashboard["panels"] for query in draw.panel_queries(panel, VARIABLES)]
    queries += [query for query, _ in draw.annotation_queries(dashboard, VARIABLES)]
    without = [
        (query.title, query.expression)
        for query in queries
        if not numbers(prometheus.range(query.expression, began, time.time(), INTERVAL))
    ]
    assert without == []


def numbers(series):
    return [value for one in series for _, value in one["values"] if value != "NaN"]


def test_dashboards_can_be_drawn(story, tmp_path):
    prometheus, began, _, _ = story
    drawing = draw.Drawing(prometheus, began, time.time(), VARIABLES)
    drawing.draw(draw.load("forgetting"), tmp_path / "forgetting.png")
    assert (tmp_path / "forgetting.png").stat().st_size > 20_000
