"""The dashboards by Grafana's own schema, and how their panels lie."""

import json

import pytest
from deploy.conftest import ROOT

DASHBOARDS = ROOT / "deploy" / "grafana" / "dashboards"


@pytest.fixture(params=["serving", "forgetting"])
def file(request):
    return DASHBOARDS / f"{request.param}.json"


def test_dashboards_are_valid_by_the_schema(file, faults, tmp_path):
    assert faults("grafana", file) == []
    broken = json.loads(file.read_text())
    broken["panels"][-1]["fieldConfig"]["default"] = {}
    (tmp_path / "broken.json").write_text(json.dumps(broken))
    assert len(faults("grafana", tmp_path / "broken.json")) == 1


def test_panels_do_not_overlap_and_say_what_they_ask(file):
    dashboard = json.loads(file.read_text())
    assert dashboard["uid"] == f"amnestic-{file.stem}"
    taken = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + column, place["y"] + row) for column in range(place["w"]) for row in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert max(column for column, _ in cells) < 24
        taken |= cells
        for target in panel["targets"]:
            assert 'instance=~"$instance"' in target["expr"], panel["title"]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
