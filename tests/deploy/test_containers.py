"""The recipe of the images and the services of Compose, by their own tools."""

import json
import os
import re
from pathlib import Path

import pytest
import yaml
from deploy.conftest import ROOT

DEPLOY = ROOT / "deploy"
CONTAINERFILE = DEPLOY / "Containerfile"


@pytest.fixture
def services(tool, tmp_path):
    """The services as Compose understands them."""
    environment = os.environ | {"BUNDLE": str(tmp_path)}
    arguments = ("--file", DEPLOY / "compose.yaml", "config", "--format", "json")
    return json.loads(tool("docker-compose", *arguments, env=environment))["services"]


def test_the_recipe_keeps_to_good_practice(tool):
    tool("hadolint", CONTAINERFILE)


def test_images_of_both_kinds_run_as_a_plain_user_and_have_their_health_check():
    recipe = CONTAINERFILE.read_text()
    assert set(re.findall(r"^FROM server AS (\w+)$", recipe, re.M)) == {"cpu", "cuda"}
    assert re.findall(r"^USER (.*)$", recipe, re.M) == ["10001:10001"]
    (check,) = re.findall(r'CMD \["python", "(/usr/.*)"\]', recipe)
    assert f"COPY deploy/healthcheck.py {check.rpartition('/')[0]}/" in recipe
    assert set(re.findall(r"install\.sh (\w+) ", recipe)) == {"cpu", "gpu"}


def test_all_that_is_installed_from_is_copied():
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    packages = {f"{name}" for name in ("proto", "server", "unlearn", "clients/python")}
    assert packages | {"pyproject.toml", "README.md", "LICENSE", "deploy/install.sh", "deploy/healthcheck.py"} <= kept
    for name in kept - {"deploy/requirements-*.txt"}:
        assert (ROOT / name).exists()


def test_services_of_compose_can_change_nothing_but_their_volumes(services):
    assert services.keys() == {"amnestic", "load", "prometheus", "grafana"}
    for service in services.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        for port in service.get("ports", ()):
            assert port["host_ip"] == "127.0.0.1"


def test_files_that_compose_mounts_are_there(services, tmp_path):
    sources = {
        mount["source"] for service in services.values() for mount in service["volumes"] if mount["type"] == "bind"
    }
    assert str(tmp_path) in sources
    assert [source for source in sources if not Path(source).exists()] == []


def test_grafana_is_given_its_dashboards_and_its_prometheus(services):
    mounts = {mount["target"]: mount for mount in services["grafana"]["volumes"]}
    provisioning = DEPLOY / "grafana" / "provisioning"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "amnestic.yml").read_text())["providers"]
    assert provider["options"]["path"] in mounts
    assert mounts["/etc/grafana/provisioning"]["source"] == str(provisioning)
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert source["url"] == "${PROMETHEUS_URL}"
    assert services["grafana"]["environment"]["PROMETHEUS_URL"] == "http://amnestic:9090"
    assert services["prometheus"]["network_mode"] == "service:amnestic"
