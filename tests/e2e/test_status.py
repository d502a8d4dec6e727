"""`amnestic status` of a real server: calls are counted, a job is seen while it runs and after it."""

import json
import subprocess

from e2e.harness import amnestic, environment

from amnestic_client import ServerState


def told(server):
    return json.loads(
        subprocess.check_output(amnestic("status", "--json", "--server", server.target), env=environment(), timeout=60)
    )


def test_a_server_tells_how_it_is(serve, texts, until):
    server = serve()
    for _ in range(10):
        server.client.predict(texts[:3])
    until(lambda: server.client.status().retain_f1)
    status = told(server)
    load = status["load"]
    assert (load["calls"], load["failed_calls"], load["documents"]) == (10, 0, 30)
    assert 0 < load["p50_seconds"] <= load["p99_seconds"]
    assert load["open_documents"] == load["queued_documents"] == 0
    assert 0 < status["uptime_seconds"] < 600
    assert (status["state"], status["active_version"], status["forgotten"]) == ("SERVING", 1, [])
    model = server.client.get_model()
    assert (status["model"], status["provider"]) == (model.name, model.provider)
    labels = {"name": model.name, "architecture": model.architecture, "precision": model.precision}
    labels |= {"provider": model.provider, "device": "auto", "bundle": model.bundle_digest}
    assert server.metric("amnestic_model_info", **labels) == 1
    assert server.metric("amnestic_open_documents_limit") == 1024
    assert server.metric("amnestic_queue_tokens_limit") == 262_144
    assert set(status["retain_f1"]) == {label.name for label in model.labels}
    assert (status["running_job"], status["last_job"], status["queued_jobs"]) == (None, None, 0)

    job = server.forget("alpha", reason="not for everybody's eyes")
    until(lambda: server.client.status().running_job)
    running = told(server)["running_job"]
    assert (running["job_id"], running["labels"]) == (job.job_id, ["alpha"])
    server.client.cancel_job(job.job_id)
    status = server.client.status()
    assert (status.running_job, status.last_job.state, status.state) == (None, "CANCELLED", ServerState.SERVING)
    assert "everybody" not in repr(status)


def test_the_ready_line_as_json(serve):
    server = serve(corpus=None, start=False)
    process = subprocess.Popen(
        amnestic("serve", *server.arguments, "--json"), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    ready = json.loads(process.stdout.readline())
    server.target = ready["grpc"]
    assert told(server)["retain_f1"] == {}, "without a corpus nothing is measured"
    process.terminate()
    assert process.communicate(timeout=60)[0] == ""
    assert process.returncode == 0
    assert (ready["version"], ready["provider"]) == (1, "CPUExecutionProvider")
    assert ready["metrics"].startswith("127.0.0.1:")
