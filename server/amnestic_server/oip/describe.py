"""What the model, its versions and their statistics are, in the protocol's messages."""

import json
from collections.abc import Sequence
from typing import Any

from amnestic.oip import open_inference_pb2 as oip
from amnestic_server.inference_stats import Duration, VersionStats
from amnestic_server.oip.answer import OUTPUTS
from amnestic_server.oip.request import INPUT
from amnestic_server.snapshot import Snapshot
from amnestic_unlearn.manifest import Manifest

PLATFORM = "amnestic"
READY = "READY"
UNAVAILABLE = "UNAVAILABLE"
_DATA_TYPES = {"BYTES": oip.TYPE_STRING, "FP32": oip.TYPE_FP32, "INT32": oip.TYPE_INT32, "BOOL": oip.TYPE_BOOL}
_Tensor = oip.ModelMetadataResponse.TensorMetadata


def metadata(manifest: Manifest, versions: Sequence[int]) -> oip.ModelMetadataResponse:
    """Shapes have the batch before them: any number of documents."""
    return oip.ModelMetadataResponse(
        name=manifest.name,
        versions=[str(version) for version in versions],
        platform=PLATFORM,
        inputs=[_Tensor(name=INPUT, datatype="BYTES", shape=[-1, 1])],
        outputs=[
            _Tensor(name=name, datatype=output.datatype, shape=[-1, output.width(manifest)])
            for name, output in OUTPUTS.items()
        ],
    )


def config(manifest: Manifest, snapshot: Snapshot, max_documents: int, provider: str) -> oip.ModelConfig:
    """The configuration that Triton would have of such a model.

    `max_batch_size` above 0 says that the first dimension of every tensor is the batch; that is what lets a client such
    as perf_analyzer set the batch's size. The input's own dimension is then [1], for Triton allows none to be empty.
    """
    parameters = {
        "architecture": manifest.architecture,
        "precision": manifest.precision,
        "provider": provider,
        "problem_type": manifest.problem_type.value,
        "max_tokens": str(manifest.max_tokens),
        "labels": json.dumps(manifest.labels),
        "thresholds": json.dumps(manifest.thresholds),
        "version": str(snapshot.version),
        "forgotten": json.dumps(sorted(snapshot.forgotten)),
    }
    kind = oip.ModelInstanceGroup.KIND_GPU if provider.startswith("CUDA") else oip.ModelInstanceGroup.KIND_CPU
    return oip.ModelConfig(
        name=manifest.name,
        platform=PLATFORM,
        backend=PLATFORM,
        version_policy=oip.ModelVersionPolicy(all=oip.ModelVersionPolicy.All()),
        max_batch_size=max_documents,
        input=[oip.ModelInput(name=INPUT, data_type=oip.TYPE_STRING, dims=[1])],
        output=[
            oip.ModelOutput(name=name, data_type=_DATA_TYPES[output.datatype], dims=[output.width(manifest)])
            for name, output in OUTPUTS.items()
        ],
        instance_group=[oip.ModelInstanceGroup(name=manifest.name, count=1, kind=kind)],
        dynamic_batching=oip.ModelDynamicBatching(),
        parameters={name: oip.ModelParameter(string_value=value) for name, value in parameters.items()},
    )


def statistics(name: str, version: int, stats: VersionStats) -> oip.ModelStatistics:
    return oip.ModelStatistics(
        name=name,
        version=str(version),
        last_inference=stats.last_inference_ms,
        inference_count=stats.inferences,
        execution_count=stats.executions,
        inference_stats=oip.InferStatistics(
            success=_duration(stats.success),
            fail=_duration(stats.fail),
            queue=_duration(stats.queue),
            compute_input=_duration(stats.compute_input),
            compute_infer=_duration(stats.compute_infer),
            compute_output=_duration(stats.compute_output),
        ),
        batch_stats=[
            # compute_output is left out: the engine's time holds what there is of it in a pass.
            oip.InferBatchStatistics(
                batch_size=rows,
                compute_input=_duration(durations.compute_input),
                compute_infer=_duration(durations.compute_infer),
            )
            for rows, durations in sorted(stats.batches.items())
        ],
    )


def index_entry(name: str, version: int, reason: str) -> Any:
    """A version of the repository, ready unless there is a reason why not."""
    return oip.RepositoryIndexResponse.ModelIndex(
        name=name, version=str(version), state=UNAVAILABLE if reason else READY, reason=reason
    )


def _duration(duration: Duration) -> oip.StatisticDuration:
    return oip.StatisticDuration(count=duration.count, ns=duration.ns)
