"""docs/deploy.md: that it explains every alert, and that what it names is there."""

import re

import yaml
from deploy.conftest import ROOT

PAGE = (ROOT / "docs" / "deploy.md").read_text()


def test_every_alert_is_explained():
    groups = yaml.safe_load((ROOT / "deploy" / "prometheus" / "rules.yml").read_text())["groups"]
    explained = re.findall(r"`(Amnestic\w+)`", PAGE)
    assert sorted(explained) == sorted(rule["alert"] for group in groups for rule in group["rules"])


def test_files_that_it_names_are_there():
    named = set(re.findall(r"(?:deploy|tests|images)/[\w./-]*\w", PAGE))
    assert len(named) > 10
    missing = [name for name in named if not ((ROOT / name).exists() or (ROOT / "docs" / name).exists())]
    assert missing == []


def test_commands_of_kubernetes_name_what_the_overlay_makes(tool):
    rendered = tool("kubectl", "kustomize", ROOT / "deploy" / "kubernetes" / "overlays" / "scale-out")
    made = {f"{manifest['kind'].lower()}/{manifest['metadata']['name']}" for manifest in yaml.safe_load_all(rendered)}
    named = set(re.findall(r"deployment/[\w-]+", PAGE))
    assert named == {"deployment/amnestic", "deployment/amnestic-readers"}
    assert named <= made
