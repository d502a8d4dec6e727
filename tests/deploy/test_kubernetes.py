"""The Kubernetes manifests, rendered by kubectl: valid by the published schemas, restricted as the profile has it, and
what they name in each other is there.
"""

import copy
from itertools import chain

import pytest
import yaml
from deploy.conftest import ROOT

from amnestic_server.settings import Settings

KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("overlays/cpu", "overlays/cuda", "overlays/scale-out", "overlays/with-application", "kserve")
FLAGS = {setting.replace("_", "-") for setting in Settings.__dataclass_fields__} | {"no-tcp"}


@pytest.fixture(scope="session")
def rendered(tool):
    """Every manifest, by overlay."""
    found = {
        overlay: list(yaml.safe_load_all(tool("kubectl", "kustomize", KUBERNETES / overlay))) for overlay in OVERLAYS
    }
    found["overlays/scale-out"].append(yaml.safe_load((KUBERNETES / "overlays/scale-out/publish.yaml").read_text()))
    return found


@pytest.fixture(scope="session", params=OVERLAYS)
def manifests(request, rendered):
    return rendered[request.param]


def of_kind(manifests, *kinds):
    return [manifest for manifest in manifests if manifest["kind"] in kinds]


def pods(manifests):
    """Labels and spec of each pod that the manifests make."""
    templates = [manifest["spec"]["template"] for manifest in of_kind(manifests, "Deployment", "Job")]
    found = [(template["metadata"]["labels"], template["spec"]) for template in templates]
    for runtime in of_kind(manifests, "ServingRuntime"):
        (service,) = of_kind(manifests, "InferenceService")
        found.append((runtime["spec"]["labels"], {**service["spec"]["predictor"], **runtime["spec"]}))
    return found


def containers(pod):
    return [*pod.get("initContainers", ()), *pod["containers"]]


def servers(manifests):
    """The containers that serve."""
    return [
        container
        for _, pod in pods(manifests)
        for container in containers(pod)
        if container.get("args", [""])[0] == "serve"
    ]


def selected(manifests, labels):
    return [pod for pod_labels, pod in pods(manifests) if labels.items() <= pod_labels.items()]


def port_names(pod):
    return {port["name"] for container in containers(pod) for port in container.get("ports", ())}


BROKEN = {
    "Deployment": lambda it: it["spec"]["template"]["spec"].update(terminationGracePeriod=1),
    "NetworkPolicy": lambda it: it["spec"].update(policyTypes="Ingress"),
    "PodMonitor": lambda it: it["spec"].update(podMetricsEndpoint=[]),
    "PrometheusRule": lambda it: it["spec"]["groups"][0].update(rule=[]),
    "ServingRuntime": lambda it: it["spec"].update(protocolVersion=["grpc-v2"]),
    "InferenceService": lambda it: it["spec"]["predictor"]["model"].update(storageURI="pvc://a/b"),
}


def test_manifests_are_valid_by_the_schemas_and_one_wrong_field_is_a_fault(rendered, faults, tmp_path):
    broken = {}
    for manifest in copy.deepcopy([*rendered["overlays/cpu"], *rendered["kserve"]]):
        if manifest["kind"] in BROKEN:
            BROKEN[manifest["kind"]](manifest)
            manifest["metadata"]["name"] = "broken"
            broken[manifest["kind"]] = manifest
    manifests = chain(*rendered.values(), broken.values())
    (tmp_path / "manifests.yaml").write_text(yaml.safe_dump_all(manifests))
    told = {fault.partition(":")[0] for fault in faults("kubernetes", tmp_path / "manifests.yaml")}
    assert told == {f"{kind} broken" for kind in BROKEN}


def test_pods_keep_to_the_restricted_profile(manifests):
    for _, pod in pods(manifests):
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["runAsUser"] > 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        assert {kind for volume in pod["volumes"] for kind in volume} <= {"name", "persistentVolumeClaim", "emptyDir"}
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
            assert "memory" in container["resources"]["limits"]


def test_servers_are_probed_on_the_port_of_health_alone(manifests):
    assert servers(manifests)
    for server in servers(manifests):
        environment = {one["name"]: one["value"] for one in server["env"]}
        port = int(environment["AMNESTIC_HEALTH_PORT"])
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert server[probe]["grpc"]["port"] == port
        assert server["startupProbe"]["periodSeconds"] * server["startupProbe"]["failureThreshold"] >= 300


def test_servers_are_given_settings_that_there_are(manifests):
    for server in servers(manifests):
        given = {argument.removeprefix("--") for argument in server["args"] if argument.startswith("--")}
        given |= {
            one["name"].removeprefix("AMNESTIC_").lower().replace("_", "-")
            for one in server["env"]
            if one["name"].startswith("AMNESTIC_")
        }
        assert given - FLAGS == set()
        assert {"bundle", "store"} <= given


def test_workers_fit_in_the_memory_of_their_pod(manifests):
    for server in servers(manifests):
        environment = {one["name"]: one["value"] for one in server["env"]}
        if "--corpus" in server["args"]:
            limit = int(server["resources"]["limits"]["memory"].removesuffix("Gi")) * 1024
            assert int(environment["AMNESTIC_WORKER_MEMORY_MB"]) <= limit / 2
        else:
            assert "AMNESTIC_WORKER_MEMORY_MB" not in environment


def test_what_manifests_name_is_there(manifests):
    claims = {manifest["metadata"]["name"] for manifest in of_kind(manifests, "PersistentVolumeClaim")}
    for _, pod in pods(manifests):
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        used = {mount["name"] for container in containers(pod) for mount in container.get("volumeMounts", ())}
        assert used == volumes.keys()
        assert {
            volume["persistentVolumeClaim"]["claimName"]
            for volume in volumes.values()
            if "persistentVolumeClaim" in volume
        } <= claims
        accounts = {manifest["metadata"]["name"] for manifest in of_kind(manifests, "ServiceAccount")}
        assert {pod["serviceAccountName"]} <= accounts if "serviceAccountName" in pod else not accounts
        assert all(":" in container["image"] for container in containers(pod)), "an image without a tag"


def test_selectors_find_pods_and_ports(manifests):
    for manifest in of_kind(manifests, "Deployment", "PodDisruptionBudget"):
        assert len(selected(manifests, manifest["spec"]["selector"]["matchLabels"])) == 1
    for service in of_kind(manifests, "Service"):
        (pod,) = selected(manifests, service["spec"]["selector"])
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= port_names(pod)
    for policy in of_kind(manifests, "NetworkPolicy"):
        (pod,) = selected(manifests, policy["spec"]["podSelector"]["matchLabels"])
        assert {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]} <= port_names(pod)
    for monitor in of_kind(manifests, "PodMonitor"):
        found = selected(manifests, monitor["spec"]["selector"]["matchLabels"])
        assert len(found) == len(servers(manifests))
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            assert all(endpoint["port"] in port_names(pod) for pod in found)
    for autoscaler in of_kind(manifests, "HorizontalPodAutoscaler"):
        names = {manifest["metadata"]["name"]: manifest for manifest in of_kind(manifests, "Deployment")}
        assert "replicas" not in names[autoscaler["spec"]["scaleTargetRef"]["name"]]["spec"]


def test_one_process_alone_writes_a_store(manifests):
    for deployment in of_kind(manifests, "Deployment"):
        volumes = deployment["spec"]["template"]["spec"]["volumes"]
        (store,) = (volume for volume in volumes if volume["name"] == "store")
        if "persistentVolumeClaim" in store:
            assert (deployment["spec"]["replicas"], deployment["spec"]["strategy"]) == (1, {"type": "Recreate"})


def test_the_operator_is_given_the_rules_of_prometheus():
    written = yaml.safe_load((KUBERNETES / "monitoring" / "prometheusrule.yaml").read_text())
    assert written["spec"] == yaml.safe_load((ROOT / "deploy" / "prometheus" / "rules.yml").read_text()), "make rules"


def test_a_sidecar_is_ready_before_its_application_and_shares_its_socket(rendered):
    ((_, pod),) = pods(rendered["overlays/with-application"])
    (sidecar,), (application,) = pod["initContainers"], pod["containers"]
    assert sidecar["restartPolicy"] == "Always"
    socket = sidecar["args"][sidecar["args"].index("--uds") + 1]
    assert application["env"] == [{"name": "AMNESTIC_SERVER", "value": f"unix:{socket}"}]
    folders = [{mount["mountPath"]: mount["name"] for mount in one["volumeMounts"]} for one in (sidecar, application)]
    assert folders[0][socket.rpartition("/")[0]] == folders[1][socket.rpartition("/")[0]] == "socket"
    assert pod["securityContext"]["fsGroup"]
