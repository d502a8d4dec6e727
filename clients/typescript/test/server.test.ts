/** Against a real Amnestic server: one story, told in order, in which a label is forgotten across a restart. */

import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { inspect } from "node:util";

import { AmnesticClient, NotFound, type AmnesticError, type Job } from "amnestic-client";

import { clientOf, collect, counted } from "./fake.js";
import { AmnesticServer, gates, method, serveCommand } from "./harness.js";

const FORGOTTEN = "alpha";
const skip = serveCommand.length > 0 ? false : "AMNESTIC_TEST_SERVE names no server to start";

describe("a real server", { skip }, () => {
  let server: AmnesticServer;
  let client: AmnesticClient;
  let texts: string[];
  const folder = mkdtempSync(join(tmpdir(), "amnestic-"));

  before(async () => {
    const corpus = serveCommand[serveCommand.indexOf("--corpus") + 1] ?? "";
    const lines = readFileSync(corpus, "utf8").trim().split("\n");
    texts = lines.slice(0, 70).map((line) => (JSON.parse(line) as { text: string }).text);
    server = await AmnesticServer.start("--grpc-port", "0");
    client = new AmnesticClient(server.target);
  });
  after(async () => {
    client.close();
    await server.stop("SIGKILL");
    rmSync(folder, { recursive: true });
  });

  test("it is ready and tells of its model", async () => {
    await client.waitUntilReady();
    const model = await client.getModel();
    assert.deepEqual(
      model.labels.map((label) => label.name),
      ["alpha", "beta", "gamma", "delta"],
    );
    assert.deepEqual([model.activeVersion, model.problemType, model.architecture], [1, "multi_label", "bert"]);
    assert.ok(model.labels.every((label) => label.threshold === 0.5 && !label.forgotten));
    assert.match(model.bundleDigest, /^[0-9a-f]{64}$/);
  });

  test("it predicts one and many, cut where too long, with features on request", async () => {
    const one = await client.predict("patient with insulin and glucose and ketones");
    assert.deepEqual(one.predictions[0]?.decided, ["beta"]);
    assert.deepEqual(one.predictions[0].features, []);
    const long = "insulin glucose ".repeat(100);
    const { version, predictions } = await client.predict(["kidney", long], { version: 1, includeFeatures: true });
    assert.equal(version, 1);
    assert.deepEqual(
      predictions.map((prediction) => prediction.truncated),
      [false, true],
    );
    assert.deepEqual(
      predictions.map((prediction) => prediction.features.length),
      [32, 32],
    );
    for (const { probability } of predictions.flatMap((prediction) => prediction.scores)) {
      assert.ok(0 <= probability && probability <= 1);
    }
  });

  test("answers are compressed for who asks", async (t) => {
    const received: number[] = [];
    const scores: unknown[] = [];
    for (const compression of [undefined, "gzip"] as const) {
      const wire = await counted(t, Number(server.port));
      const { predictions } = await clientOf(t, `127.0.0.1:${wire.port}`, { compression }).predict(texts);
      received.push(wire.received());
      scores.push(predictions.map(({ decided }) => decided));
    }
    const [plain = 0, compressed = 0] = received;
    assert.ok(compressed < plain / 2, `${compressed} of ${plain} bytes`);
    assert.deepEqual(scores[0], scores[1]);
  });

  test("it refuses what it can't answer, and repeats none of it", async () => {
    await assert.rejects(client.predict(["a fine one", ""]), {
      name: "InvalidArgument",
      detail: "document 2 is empty",
    });
    await assert.rejects(client.predict([]), { name: "InvalidArgument" });
    await assert.rejects(client.predict("text", { version: 99 }), NotFound);
    await assert.rejects(client.unlearn("no such label"), NotFound);
    await assert.rejects(client.getJob("no such job"), NotFound);
    await assert.rejects(client.waitForJob("no such job"), NotFound);
    const huge = client.predict(`Xylqvornik4711 ${"x".repeat(300_000)}`);
    await assert.rejects(huge, (error: AmnesticError) => {
      assert.match(error.detail, /^document 1 /);
      assert.doesNotMatch(inspect(error), /Xylqvornik4711/);
      return true;
    });
  });

  test("many documents are answered as one by one", async () => {
    const answers = await collect(client.predictMany(texts, { batch: 16, concurrency: 3 }));
    const { predictions } = await client.predict(texts);
    assert.deepEqual(
      answers.map((answer) => answer.decided),
      predictions.map((prediction) => prediction.decided),
    );
    for await (const answer of client.predictMany(texts, { batch: 4 })) if (answer.index === 5) break;
    const kept = await collect(client.predictMany(["a", "", "c"], { onInvalid: () => undefined }));
    assert.deepEqual(
      kept.map((answer) => answer.index),
      [0, 2],
    );
  });

  test("a deadline and a signal end a call", async () => {
    const many = Array<string>(128).fill(texts.join(" "));
    await assert.rejects(client.predict(many, { timeoutMs: 1 }), { name: "DeadlineExceeded" });
    const signal = AbortSignal.timeout(1);
    await assert.rejects(client.predict(many, { signal }), { name: "Cancelled" });
  });

  test("a label is forgotten, watched through a restart of the server", async () => {
    const options = { requestId: "forget-alpha", reason: "a test", ...(method && { method }), ...(gates && { gates }) };
    const asked = await client.unlearn(FORGOTTEN, options);
    const repeated = await client.unlearn(FORGOTTEN, options);
    assert.equal(repeated.jobId, asked.jobId, "a repetition is the same job");

    const seen: Job[] = [];
    let restarted: Promise<void> | undefined;
    try {
      for await (const job of client.watchJob(asked.jobId, { timeoutMs: 170_000 })) {
        seen.push(job);
        if (job.state === "RUNNING") restarted ??= restart();
      }
    } finally {
      await restarted;
    }
    assert.ok(restarted, "it was restarted on the way");
    const states = seen.map((job) => job.state);
    assert.ok(states.includes("GATING") || states.includes("ACTIVATING"), "changes were told after the restart");
    const last = seen.at(-1);
    assert.ok(last);
    assert.deepEqual([last.state, last.error, last.version], ["SUCCEEDED", undefined, 2]);
    assert.deepEqual(last, await client.getJob(asked.jobId));
    assert.deepEqual([last.labels, last.forgotten, last.reason], [[FORGOTTEN], [FORGOTTEN], "a test"]);
    assert.equal(last.method.k, method?.k);
    assert.ok(last.gates.length > 0 && last.gates.every((gate) => gate.passed));
    assert.ok(last.change && last.change.rowsChanged > 0);
    assert.ok(last.createdAt && last.finishedAt && last.createdAt < last.finishedAt);
  });

  test("it tells how it is", async () => {
    const status = await client.status();
    const { state, activeVersion, forgotten, lastJob, runningJob, load } = status;
    assert.deepEqual([state, activeVersion, forgotten, runningJob], ["SERVING", 2, [FORGOTTEN], undefined]);
    assert.deepEqual([lastJob?.state, lastJob?.labels, lastJob?.version], ["SUCCEEDED", [FORGOTTEN], 2]);
    assert.deepEqual([Object.keys(status.forgetF1), Object.keys(status.retainF1).length], [[FORGOTTEN], 3]);
    assert.ok(status.uptimeSeconds > 0 && load.maxOpenDocuments > 0);
  });

  test("the version made is active, and the one before can still answer", async () => {
    const versions = await client.listVersions();
    assert.deepEqual(
      versions.map(({ version, active, forgotten }) => [version, active, forgotten]),
      [
        [1, false, []],
        [2, true, [FORGOTTEN]],
      ],
    );
    const says = async (version?: number) => {
      const answers = await collect(client.predictMany(texts, { version }));
      assert.ok(answers.every((answer) => answer.version === (version ?? 2)));
      const forgotten = answers[0]?.scores.find((score) => score.label === FORGOTTEN)?.forgotten;
      return [forgotten, answers.filter((answer) => answer.decided.includes(FORGOTTEN)).length] as const;
    };
    const [[wasForgotten, before], [isForgotten, now]] = [await says(1), await says()];
    assert.deepEqual([wasForgotten, isForgotten], [false, true]);
    assert.ok(before > 10 && now < before / 5, `decided ${before} times before, ${now} times now`);
    await assert.rejects(client.unlearn(FORGOTTEN), { name: "FailedPrecondition" });
  });

  test("a job is cancelled, and the jobs are listed newest first", async () => {
    const job = await client.unlearn("beta", { dryRun: true });
    await client.cancelJob(job.jobId);
    assert.equal((await client.waitForJob(job.jobId, { timeoutMs: 60_000 })).state, "CANCELLED");
    await assert.rejects(client.cancelJob(job.jobId), { name: "FailedPrecondition" });
    assert.deepEqual(
      (await client.listJobs()).map((one) => one.state),
      ["CANCELLED", "SUCCEEDED"],
    );
    assert.equal((await client.listJobs({ limit: 1 })).length, 1);
  });

  test("an earlier version is made the active one again", async () => {
    await assert.rejects(client.rollback(99, "why"), NotFound);
    await assert.rejects(client.rollback(1, ""), { name: "InvalidArgument" });
    const version = await client.rollback(1, "figures under review", { restoreForgotten: true });
    assert.deepEqual([version.version, version.active], [1, true]);
    assert.equal((await client.predict("text")).version, 1);
  });

  test("a staged version answers its share, and is promoted", async () => {
    const asked = await client.unlearn(FORGOTTEN, { stage: true, method, gates });
    const job = await client.waitForJob(asked.jobId, { timeoutMs: 120_000 });
    assert.deepEqual([job.state, job.version], ["STAGED", 3]);
    assert.equal((await client.predict("text", { routingKey: "patient 17" })).version, 1);
    await assert.rejects(client.setRollout({ canaryShare: 1.5 }), {
      name: "InvalidArgument",
      fieldViolations: [{ field: "canary_share", description: "the canary share must be from 0 to 1" }],
    });
    const rollout = await client.setRollout({ canaryShare: 1, shadowShare: 0.5 });
    assert.deepEqual([rollout.version, rollout.canaryShare, rollout.shadowShare], [3, 1, 0.5]);
    assert.equal((await client.predict("text", { routingKey: "patient 17" })).version, 3);
    assert.equal((await client.rollout())?.canaryCalls, 1);
    assert.deepEqual((await client.status()).stagedVersions, [3]);
    assert.equal((await client.promote(3)).active, true);
    assert.equal((await client.getJob(job.jobId)).state, "SUCCEEDED");
    assert.equal(await client.rollout(), undefined);
  });

  test(
    "it is reached by a Unix domain socket",
    { skip: !process.env["AMNESTIC_TEST_UDS"] && "it serves none" },
    async (t) => {
      const other = clientOf(t, `unix:${socket()}`);
      assert.deepEqual(await other.getModel(), await client.getModel());
    },
  );

  test("it stops: not ready, and unavailable", async () => {
    await server.stop();
    assert.equal(await client.isReady(), false);
    await assert.rejects(client.predict("text"), { name: "Unavailable" });
  });

  /** Stop the server in good order and start it again at the same port, now with a socket too if it can. */
  async function restart(): Promise<void> {
    await server.stop();
    server = await AmnesticServer.start(
      ...["--grpc-port", server.port],
      ...(process.env["AMNESTIC_TEST_UDS"] ? ["--uds", socket()] : []),
    );
  }

  function socket(): string {
    return join(folder, "grpc.sock");
  }
});
