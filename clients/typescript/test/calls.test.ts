/** What is sent and what comes back, over a real connection. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { InvalidArgument, type Method } from "amnestic-client";

import { ServerState } from "../dist/generated/amnestic/v1/prediction_pb.js";
import { JobState } from "../dist/generated/amnestic/v1/unlearning_pb.js";
import { clientOf, FakeServer } from "./fake.js";

const SCORES = [
  { label: "renal", probability: 0.75, decision: true },
  { label: "endocrine", probability: 0.125, forgotten: true },
];
const PREDICTED = {
  version: 3n,
  predictions: [
    { scores: SCORES, tokens: 12, features: [0.5, -1] },
    { scores: SCORES, tokens: 128, truncated: true, windows: 2 },
  ],
};
const FINISHED = {
  jobId: "3f0c2a52-6f2f-4c2e-9a39-0d8a5a1f7d11",
  requestId: "request-1",
  state: JobState.SUCCEEDED,
  labels: ["endocrine"],
  forgotten: ["endocrine", "renal"],
  reason: "consent withdrawn",
  method: { preset: "paper", k: 256, distilWeight: 0, seed: 7n },
  gateLimits: { forgetF1Max: 0.01 },
  progress: { stage: "training", epoch: 5, epochs: 5, step: 40, steps: 40, forgetLoss: 0.1, utilityLoss: 0.2 },
  gates: [
    { name: "forget_f1", label: "endocrine", value: 0, limit: 0.01, passed: true },
    { name: "encoder_unchanged", passed: true },
  ],
  change: {
    patchDigest: "ab",
    rowsChanged: 256,
    parametersChanged: 33_542n,
    tokens: ["insulin"],
    trainingSeconds: 12.5,
  },
  version: 2n,
  createdAt: { seconds: 1_772_366_400n, nanos: 0 },
  finishedAt: { seconds: 1_772_366_420n, nanos: 500_000_000 },
  attempts: 1,
  swapSeconds: 0.0031,
  relaxedGates: ["forget_auroc_max"],
  callsAroundSwap: [
    { offset: -1, calls: 9n, failedCalls: 2n, cancelledCalls: 1n, p50Seconds: 0.25, p99Seconds: 0.5, maxSeconds: 0.75 },
    { offset: 0, calls: 1n, failedCalls: 1n },
  ],
};

test("a prediction is read in full", async (t) => {
  const server = await FakeServer.start(t);
  server.script("Predict", PREDICTED);
  const result = await clientOf(t, server.target).predict(["first", "second"], { version: 3, includeFeatures: true });
  const { documents, version, includeFeatures } = server.asked("Predict")[0] ?? {};
  assert.deepEqual([documents, version, includeFeatures], [["first", "second"], 3n, true]);
  const scores = [
    { label: "renal", probability: 0.75, decision: true, forgotten: false },
    { label: "endocrine", probability: 0.125, decision: false, forgotten: true },
  ];
  assert.deepEqual(result, {
    version: 3,
    predictions: [
      { scores, decided: ["renal"], tokens: 12, truncated: false, features: [0.5, -1], windows: 1 },
      { scores, decided: ["renal"], tokens: 128, truncated: true, features: [], windows: 2 },
    ],
  });
});

test("one string is one document for the active version", async (t) => {
  const server = await FakeServer.start(t);
  server.script("Predict", PREDICTED);
  await clientOf(t, server.target).predict("only one");
  const { documents, version, includeFeatures } = server.asked("Predict")[0] ?? {};
  assert.deepEqual([documents, version, includeFeatures], [["only one"], 0n, false]);
});

const UNSENDABLE: [string, unknown[], string][] = [
  ["a lone surrogate", ["fine", "secret \ud800"], "document 2 is not valid Unicode: it holds a lone surrogate"],
  ["bytes", ["fine", Buffer.from("secret")], "document 2 is not a string"],
];
for (const [what, documents, detail] of UNSENDABLE) {
  test(`${what} is named but not repeated`, async (t) => {
    await assert.rejects(clientOf(t, "127.0.0.1:9").predict(documents as string[]), (error: InvalidArgument) => {
      assert.ok(error instanceof InvalidArgument);
      assert.equal(error.detail, detail);
      assert.deepEqual(error.fieldViolations, [{ field: "documents[1]", description: detail }]);
      assert.equal(error.cause, undefined);
      return true;
    });
  });
}

test("the model, and one without thresholds", async (t) => {
  const server = await FakeServer.start(t);
  const labels = [
    { name: "renal", threshold: 0.5 },
    { name: "cardiac", forgotten: true },
  ];
  server.script("GetModel", { name: "eicu", labels, maxDocuments: 128, parameters: 7n, activeVersion: 2n });
  const model = await clientOf(t, server.target).getModel();
  assert.deepEqual([model.name, model.maxDocuments, model.parameters, model.activeVersion], ["eicu", 128, 7, 2]);
  const { problemType, longDocuments, windowOverlap, maxWindows, pooling } = model;
  assert.deepEqual(
    [problemType, longDocuments, windowOverlap, maxWindows, pooling],
    ["multi_label", "truncate", 0, 1, "max"],
    "a server from before they were told",
  );
  assert.deepEqual(model.labels, [
    { name: "renal", threshold: 0.5, forgotten: false },
    { name: "cardiac", threshold: undefined, forgotten: true },
  ]);
});

test("the status is read in full, and what it lacks is undefined", async (t) => {
  const server = await FakeServer.start(t);
  const load = {
    openDocuments: 1,
    maxOpenDocuments: 512,
    queuedDocuments: 2,
    queuedTokens: 3,
    maxQueuedTokens: 65_536,
    windowSeconds: 60,
    calls: 5,
    failedCalls: 1,
    documents: 9,
    p50Seconds: 0,
    p99Seconds: 0.25,
  };
  const told = {
    serverVersion: "0.1.0",
    uptimeSeconds: 12.5,
    model: "eicu",
    architecture: "bert",
    precision: "fp32",
    provider: "CPUExecutionProvider",
    forgotten: ["renal"],
    forgetF1: { renal: 0 },
    retainF1: { cardiac: 0.75 },
    load,
    queuedJobs: 2,
  };
  const running = { jobId: "a", labels: ["cardiac"], dryRun: true };
  const startedAt = { seconds: 1_772_366_400n, nanos: 0 };
  server.script(
    "GetStatus",
    {
      ...told,
      state: ServerState.DRAINING,
      activeVersion: 2n,
      stagedVersions: [3n],
      rollout: { version: 3n, canaryShare: 0.5, since: startedAt },
      runningJob: { ...running, state: JobState.RUNNING, progress: { stage: "loading", secondsLeft: -1 }, startedAt },
      lastJob: { jobId: "b", state: JobState.FAILED, error: "it failed", version: 2n, finishedAt: startedAt },
    },
    { state: 99 },
  );
  const client = clientOf(t, server.target);
  const progress = { stage: "loading", epoch: 0, epochs: 0, step: 0, steps: 0, forgetLoss: 0, utilityLoss: 0 };
  const date = new Date("2026-03-01T12:00:00Z");
  const none = { progress: undefined, version: undefined, error: undefined, finishedAt: undefined };
  assert.deepEqual(await client.status(), {
    ...told,
    state: "DRAINING",
    activeVersion: 2,
    stagedVersions: [3],
    rollout: {
      version: 3,
      canaryShare: 0.5,
      shadowShare: 0,
      since: date,
      countedSince: undefined,
      activeCalls: 0,
      canaryCalls: 0,
      shadowDocuments: 0,
      shadowDropped: 0,
      differences: [],
    },
    runningJob: {
      ...none,
      ...running,
      state: "RUNNING",
      progress: { ...progress, secondsLeft: undefined },
      startedAt: date,
    },
    lastJob: {
      ...none,
      jobId: "b",
      state: "FAILED",
      labels: [],
      dryRun: false,
      version: 2,
      error: "it failed",
      startedAt: undefined,
      finishedAt: date,
    },
  });
  const empty = await client.status();
  assert.deepEqual(
    [empty.state, empty.runningJob, empty.lastJob, empty.load.p50Seconds, empty.load.p99Seconds, empty.rollout],
    ["UNSPECIFIED", undefined, undefined, undefined, undefined, undefined],
  );
});

test("a job is read in full", async (t) => {
  const server = await FakeServer.start(t);
  server.script("GetJob", { job: FINISHED });
  const job = await clientOf(t, server.target).getJob("some-id");
  assert.equal(server.asked("GetJob")[0]?.["jobId"], "some-id");
  assert.deepEqual(job, {
    ...FINISHED,
    state: "SUCCEEDED",
    ended: true,
    dryRun: false,
    stage: false,
    method: { preset: "paper", k: 256, distilWeight: 0, seed: 7 },
    progress: { ...FINISHED.progress, secondsLeft: 0 },
    gates: [FINISHED.gates[0], { name: "encoder_unchanged", label: undefined, value: 0, limit: 0, passed: true }],
    change: {
      ...FINISHED.change,
      parametersChanged: 33_542,
      parametersChangedRatio: 0,
      forgetDocuments: 0,
      retainDocuments: 0,
    },
    version: 2,
    error: undefined,
    createdAt: new Date("2026-03-01T12:00:00Z"),
    startedAt: undefined,
    finishedAt: new Date("2026-03-01T12:00:20.5Z"),
    callsAroundSwap: [
      { ...FINISHED.callsAroundSwap[0], calls: 9, failedCalls: 2, cancelledCalls: 1 },
      {
        offset: 0,
        calls: 1,
        failedCalls: 1,
        cancelledCalls: 0,
        p50Seconds: undefined,
        p99Seconds: undefined,
        maxSeconds: undefined,
      },
    ],
  });
});

test("what a young job lacks is undefined, and a state of tomorrow is unspecified", async (t) => {
  const server = await FakeServer.start(t);
  const jobs = [
    { jobId: "a", state: JobState.QUEUED },
    { jobId: "b", state: 99, progress: { secondsLeft: -1 } },
  ];
  server.script("ListJobs", { jobs });
  const [first, second] = await clientOf(t, server.target).listJobs({ limit: 2 });
  assert.equal(server.asked("ListJobs")[0]?.["limit"], 2);
  assert.deepEqual([first?.state, first?.ended, second?.state], ["QUEUED", false, "UNSPECIFIED"]);
  assert.deepEqual(
    [first?.progress, first?.change, first?.version, first?.error, first?.createdAt],
    Array(5).fill(undefined),
  );
  assert.deepEqual([first?.method, first?.gateLimits], [{}, {}]);
  assert.equal(second?.progress?.secondsLeft, undefined);
});

test("unlearn sends only the settings given", async (t) => {
  const server = await FakeServer.start(t);
  server.script("Unlearn", { job: FINISHED });
  await clientOf(t, server.target).unlearn(["endocrine", "renal"], {
    requestId: "mine",
    dryRun: true,
    method: { preset: "paper", k: 0, headLr: 0.5, seed: 2n ** 64n - 1n },
    gates: { retainF1DropMax: 1, probeRatioMax: undefined },
    reason: "ticket",
  });
  const { $typeName, ...sent } = server.asked("Unlearn")[0] ?? {};
  assert.equal($typeName, "amnestic.v1.UnlearnRequest");
  assert.deepEqual(
    JSON.parse(JSON.stringify(sent, (_, value: unknown) => (typeof value === "bigint" ? `${value}n` : value))),
    {
      labels: ["endocrine", "renal"],
      requestId: "mine",
      dryRun: true,
      stage: false,
      reason: "ticket",
      method: { $typeName: "amnestic.v1.Method", preset: "paper", k: 0, headLr: 0.5, seed: "18446744073709551615n" },
      gates: { $typeName: "amnestic.v1.GateLimits", retainF1DropMax: 1 },
    },
  );
});

test("unlearn draws a request id", async (t) => {
  const server = await FakeServer.start(t);
  server.script("Unlearn", { job: FINISHED });
  const client = clientOf(t, server.target);
  await client.unlearn("endocrine");
  await client.unlearn("endocrine");
  const ids = server.asked("Unlearn").map((request) => request["requestId"] as string);
  assert.equal(new Set(ids).size, 2);
  for (const id of ids) assert.match(id, /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/);
});

const OUT_OF_RANGE: [object, string][] = [
  [{ k: -1 }, "k"],
  [{ epochs: 2.5 }, "epochs"],
  [{ headLr: "fast" }, "headLr"],
  [{ seed: 2n ** 64n }, "seed"],
  [{ seed: 2 ** 60 }, "seed"],
  [{ seed: "7" }, "seed"],
];
for (const [method, field] of OUT_OF_RANGE) {
  test(`a setting that the wire cannot carry: ${field}`, async (t) => {
    const detail = `method.${field} is out of range or of the wrong type`;
    await assert.rejects(clientOf(t, "127.0.0.1:9").unlearn("endocrine", { method: method }), {
      name: "InvalidArgument",
      detail,
      fieldViolations: [{ field: `method.${field}`, description: detail }],
    });
  });
}

test("a setting that there isn't", async (t) => {
  const method = { learningRate: 1 } as Method;
  const call = clientOf(t, "127.0.0.1:9").unlearn("endocrine", { method });
  await assert.rejects(call, { name: "InvalidArgument", detail: "there is no method.learningRate" });
});

test("versions, rollback, purge and cancelling", async (t) => {
  const server = await FakeServer.start(t);
  const second = { version: 2n, active: true, forgotten: ["renal"], jobId: "j", patchDigest: "d", f1: { renal: 0.5 } };
  server.script("ListVersions", { versions: [{ version: 1n }, second] });
  server.script("Rollback", { version: { version: 1n } });
  server.script("Purge", { version: { version: 2n } });
  server.script("CancelJob", { job: { jobId: "a", state: JobState.CANCELLED } });
  const client = clientOf(t, server.target);
  const none = {
    jobId: undefined,
    patchDigest: undefined,
    createdAt: undefined,
    relaxedGates: [],
    staged: false,
    withdrawn: false,
  };
  assert.deepEqual(await client.listVersions(), [
    { ...none, version: 1, active: false, forgotten: [], f1: {} },
    { ...none, ...second, version: 2 },
  ]);
  assert.equal((await client.rollback(1, "why")).version, 1);
  const { version, reason } = server.asked("Rollback")[0] ?? {};
  assert.deepEqual([version, reason], [1n, "why"]);
  assert.equal((await client.purge(2, "case 4711")).version, 2);
  const purge = server.asked("Purge")[0] ?? {};
  assert.deepEqual([purge["version"], purge["reason"]], [2n, "case 4711"]);
  assert.equal((await client.cancelJob("a")).state, "CANCELLED");
});

test("a version is staged, rolled out and promoted", async (t) => {
  const server = await FakeServer.start(t);
  const staged = { jobId: "a", state: JobState.STAGED, stage: true, version: 3n };
  const since = { seconds: 1_772_366_400n, nanos: 0 };
  const rollout = {
    version: 3n,
    canaryShare: 0.05,
    since,
    activeCalls: 95n,
    canaryCalls: 5n,
    shadowDocuments: 40n,
    differences: [{ label: "renal", forgotten: true, documents: 7n }],
  };
  server.script("Unlearn", { job: staged });
  server.script("WatchJob", [{ job: { ...staged, state: JobState.GATING } }, { job: staged }, { job: FINISHED }]);
  server.script("SetRollout", { rollout });
  server.script("GetRollout", { rollout }, {});
  server.script("PromoteVersion", { version: { version: 3n, active: true } });
  const client = clientOf(t, server.target);

  await client.unlearn("renal", { stage: true });
  assert.equal(server.asked("Unlearn")[0]?.["stage"], true);
  const job = await client.waitForJob("a");
  assert.deepEqual([job.state, job.ended, job.stage, job.version], ["STAGED", false, true, 3]);
  const told = {
    version: 3,
    canaryShare: 0.05,
    shadowShare: 0,
    since: new Date("2026-03-01T12:00:00Z"),
    countedSince: undefined,
    activeCalls: 95,
    canaryCalls: 5,
    shadowDocuments: 40,
    shadowDropped: 0,
    differences: [{ label: "renal", forgotten: true, documents: 7 }],
  };
  assert.deepEqual(await client.setRollout({ canaryShare: 0 }), told);
  const { version, canaryShare, shadowShare } = server.asked("SetRollout")[0] ?? {};
  assert.deepEqual([version, canaryShare, shadowShare], [0n, 0, undefined], "what is left out is not sent as 0");
  assert.deepEqual(await client.rollout(), told);
  assert.equal(await client.rollout(), undefined);
  assert.deepEqual((await client.promote(3)).active, true);
  assert.equal(server.asked("PromoteVersion")[0]?.["version"], 3n);
});

test("a routing key goes with every call", async (t) => {
  const server = await FakeServer.start(t);
  server.script("GetModel", { maxDocuments: 1 });
  server.script("Predict", { version: 2n, predictions: [{}] });
  const client = clientOf(t, server.target);
  await client.predict("a", { routingKey: "patient 17" });
  for await (const answer of client.predictMany(["b", "c"], { routingKey: "patient 17" })) {
    assert.equal(answer.version, 2);
  }
  assert.deepEqual(
    server.asked("Predict").map((request) => request["routingKey"]),
    Array(3).fill("patient 17"),
  );
});

test("a receipt is passed on as it was signed", async (t) => {
  const server = await FakeServer.start(t);
  server.script("GetReceipt", { envelope: '{"payload": "e30="}', publicKey: "PEM" });
  const receipt = await clientOf(t, server.target).receipt("some-id");
  assert.equal(server.asked("GetReceipt")[0]?.["jobId"], "some-id");
  assert.deepEqual(receipt, { envelope: '{"payload": "e30="}', publicKey: "PEM" });
});

test("a missing answer is an error, not an empty one", async (t) => {
  const server = await FakeServer.start(t);
  server.script("GetJob", {});
  await assert.rejects(clientOf(t, server.target).getJob("a"), { name: "Internal" });
});
