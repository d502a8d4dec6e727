"""What the pages show to be typed: blocks of `sh` and of `python`.

`tests/e2e/test_page_commands.py` runs all of it, in the order of the page, but what is in `ELSEWHERE` or `NOT_RUN`.
So a new command is run as it stands, or has to be added here with the reason why it is not.
"""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("bench/peers", "clients", "clients/typescript", "proto")
PAGES = sorted(
    str(page.relative_to(ROOT))
    for page in (ROOT / "README.md", *(ROOT / name / "README.md" for name in FOLDERS), *(ROOT / "docs").rglob("*.md"))
)
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)

# What has a test of its own, which runs all of it, by page and language.
ELSEWHERE = {
    ("clients/README.md", "python"): "tests/e2e/test_clients_readme.py",
    ("docs/models.md", "sh"): "tests/e2e/test_models_page.py",
    ("docs/operations.md", "sh"): "tests/e2e/test_backup.py",
    # Signatures, which are written from the code.
    ("docs/python-client.md", "python"): "tests/pages/test_reference.py",
    ("docs/your-own-data.md", "sh"): "tests/e2e/test_your_own_data.py",
}

# Commands that no test types as they stand, by the reason. `test_commands.py` reads each as far as it goes without
# running it: options, targets, paths, extras, methods and their messages have to be there.
NOT_RUN = {
    "minutes, and tests/e2e/test_demo.py runs a short one": ("make demo", "amnestic demo"),
    "they run this test": (
        "make test",
        ".venv/bin/python -m pytest tests/e2e/test_faults.py tests/e2e/test_crashes.py tests/server/test_batcher.py"
        " tests/server/test_jobs.py",
        ".venv/bin/python -m pytest tests/e2e/test_drain.py tests/e2e/test_start_and_stop.py",
        ".venv/bin/python -m pytest tests/e2e/test_no_text.py tests/e2e/test_bad_input.py",
    ),
    "minutes to hours": (
        "make soak",
        "AMNESTIC_SOAK_TRIALS=5000 AMNESTIC_SOAK_ROWS=10000000 make soak",
        "AMNESTIC_SOAK_POWER_SEEDS=100 .venv/bin/python -m pytest tests/server/test_power_loss.py -s",
        "make bench-peers",
        "amnestic bench serve",
        "amnestic bench swap",
        "amnestic bench versions",
        "amnestic bench unlearn-impact",
        "amnestic bench unlearn --quick",
        "amnestic bench unlearn --data DIR --jobs 2 --report docs/benchmarks",
        "amnestic bench unlearn --sequence --method amnestic",
    ),
    "the hub is not asked": ("hf download someone/notes-roberta --local-dir notes-roberta",),
    "they install, for which tests/client/test_base_install.py and tests/deploy have environments of their own": (
        "pip install 'amnestic[cpu]'",
        "pip install 'amnestic[cpu,otel]'",
        "pip install 'tritonclient[grpc]'",
        "deploy/install.sh cpu /opt/amnestic",
    ),
    "no containers here; tests/deploy/test_containers.py reads the files": (
        "podman build --format docker --file deploy/Containerfile --target cpu --tag amnestic:0.1.0-cpu .",
        "podman run --read-only --tmpfs /tmp --volume ./bundle:/bundle:ro --volume store:/store"
        " --publish 127.0.0.1:8001:8001 --env AMNESTIC_ALLOW_PLAINTEXT_NETWORK=true amnestic:0.1.0-cpu",
        "BUNDLE=$PWD/out/demo/bundle docker compose --file deploy/compose.yaml up --build",
    ),
    "no cluster here; tests/deploy/test_kubernetes.py renders every overlay, and checks it against the schemas": (
        "kubectl kustomize deploy/kubernetes/overlays/cpu",
        "kubectl apply --kustomize deploy/kubernetes/overlays/cpu",
        "kubectl scale deployment/amnestic --replicas=0",
        "kubectl wait pod --for=delete --selector app.kubernetes.io/name=amnestic --timeout=120s",
        "kubectl delete job amnestic-publish --ignore-not-found",
        "kubectl create --filename deploy/kubernetes/overlays/scale-out/publish.yaml",
        "kubectl wait job/amnestic-publish --for=condition=complete --timeout=300s",
        "kubectl scale deployment/amnestic --replicas=1",
        "kubectl rollout restart deployment/amnestic-readers",
        "kubectl rollout status deployment/amnestic-readers",
        "kubectl apply --kustomize deploy/kubernetes/kserve",
    ),
    "Prometheus may be absent; where it is not, tests/deploy asks it": (
        "prometheus --config.file=deploy/prometheus/prometheus.yml",
        "promtool test rules tests/deploy/rules.yml",
        "python deploy/grafana/draw.py --prometheus http://127.0.0.1:9090 --minutes 30 --out .",
    ),
    "grpcurl is no package of Python's; tests/e2e/test_listening.py asks the reflection as it does": (
        "grpcurl -plaintext 127.0.0.1:8001 grpc.health.v1.Health/Check",
        """grpcurl -plaintext -d '{"service": "amnestic.v1.PredictionService"}' 127.0.0.1:8001"""
        " grpc.health.v1.Health/Watch",
        "grpcurl -plaintext localhost:8001 list",
        "grpcurl -plaintext localhost:8001 describe amnestic.v1.PredictionService",
        "grpcurl -plaintext localhost:8001 grpc.health.v1.Health/Check",
        """grpcurl -plaintext -d '{"documents": ["acute renal failure, on dialysis"]}' localhost:8001"""
        " amnestic.v1.PredictionService/Predict",
        """grpcurl -plaintext -d '{"labels": ["endocrine"], "reason": "ticket 17"}' localhost:8001"""
        " amnestic.v1.UnlearningService/Unlearn",
        """grpcurl -plaintext -d '{"jobId": "JOB_ID"}' localhost:8001 amnestic.v1.UnlearningService/WatchJob""",
        "grpcurl -plaintext 127.0.0.1:8001 list",
        "grpcurl -plaintext 127.0.0.1:8001 describe amnestic.v1.LabelScore",
        """grpcurl -plaintext -d '{"documents": ["insulin and ketones"]}' 127.0.0.1:8001"""
        " amnestic.v1.PredictionService/Predict",
        "grpcurl -plaintext -unix /run/amnestic/amnestic.sock amnestic.v1.UnlearningService/ListVersions",
    ),
    "a minute each; tests/e2e/test_triton_clients.py runs perf_analyzer for seconds": (
        "export LD_LIBRARY_PATH=$(echo .venv-triton/lib/python*/site-packages/nvidia/cuda_runtime/lib)"
        " PATH=.venv-triton/bin:$PATH",
        "perf_analyzer -m MODEL -u 127.0.0.1:8001 -i grpc --input-data texts.json --concurrency-range 16",
        "perf_analyzer -m MODEL -u 127.0.0.1:8001 -i grpc --input-data texts.json --request-rate-range 50 -b 4",
    ),
    "npm needs its registry; tests/client/test_typescript.py runs them where it answers": (
        "cd clients/typescript",
        "npm ci",
        "npm run build",
        "npm run check",
        "npm pack",
    ),
    "tools of Go and of Java": (
        "go install google.golang.org/protobuf/cmd/protoc-gen-go@latest",
        "go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@latest",
        "protoc -I proto --go_out=gen --go_opt=paths=source_relative --go-grpc_out=gen"
        " --go-grpc_opt=paths=source_relative amnestic/v1/prediction.proto amnestic/v1/unlearning.proto",
        "protoc -I proto --java_out=gen --plugin=protoc-gen-grpc-java=/usr/bin/grpc_java_plugin --grpc-java_out=gen"
        " amnestic/v1/prediction.proto amnestic/v1/unlearning.proto",
    ),
    "the plugin is npm's, as above": (
        "PATH=$PWD/node_modules/.bin:$PATH buf generate proto --template"
        """ '{"version": "v2", "plugins": [{"local": "protoc-gen-es", "out": "gen"}]}'""",
    ),
}
UNRUN = [command for commands in NOT_RUN.values() for command in commands]


def blocks(page: str) -> list[tuple[str, str]]:
    """The language and the code of each block of a page."""
    return FENCE.findall((ROOT / page).read_text(encoding="utf-8"))


def commands(code: str) -> list[str]:
    """The commands of a block of `sh`, without comments; what the end of a line continues is one command."""
    lines = (re.sub(r"(^|\s)#.*", "", line) for line in re.sub(r"\\\n\s*", "", code).splitlines())
    return [line.strip() for line in lines if line.strip()]


def shown(page: str) -> list[str]:
    """Every command of a page."""
    return [command for language, code in blocks(page) if language == "sh" for command in commands(code)]


def runnable(page: str) -> list[tuple[str, str]]:
    """What of a page can be run and is not elsewhere, in its order: (`sh`, a command) or (`python`, a block)."""
    found = []
    for language, code in blocks(page):
        if (page, language) in ELSEWHERE:
            continue
        if language == "sh":
            found += [("sh", command) for command in commands(code) if command not in UNRUN]
        elif language == "python":
            found.append(("python", code))
    return found
