/** Watching a job: its changes, its end, and streams that break on the way. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout } from "node:timers/promises";

import type { Job } from "amnestic-client";

import { pauseBefore } from "../dist/watch.js";
import { JobState } from "../dist/generated/amnestic/v1/unlearning_pb.js";
import { type Call, clientOf, collect, Failure, FakeServer } from "./fake.js";

const BROKEN = new Failure("UNAVAILABLE", "the server is shutting down");

function answer(state: keyof typeof JobState, step = 0): object {
  return { job: { jobId: "a", state: JobState[state], progress: { step } } };
}

/** Say nothing until the watcher has gone. */
function hang(_: never, call: Call): Promise<object> {
  return new Promise((resolve) => {
    call.on("cancelled", () => {
      resolve(answer("RUNNING"));
    });
  });
}

function seen(jobs: Job[]): [string, number | undefined][] {
  return jobs.map((job) => [job.state, job.progress?.step]);
}

test("a watch yields each change and ends", async (t) => {
  const server = await FakeServer.start(t);
  server.script("WatchJob", [answer("QUEUED"), answer("RUNNING", 1), answer("SUCCEEDED")]);
  const jobs = await collect(clientOf(t, server.target).watchJob("a"));
  assert.deepEqual(seen(jobs), [
    ["QUEUED", 0],
    ["RUNNING", 1],
    ["SUCCEEDED", 0],
  ]);
  assert.deepEqual(
    server.asked("WatchJob").map((request) => request["jobId"]),
    ["a"],
  );
});

for (const state of ["SUCCEEDED", "REJECTED", "FAILED", "CANCELLED"] as const) {
  test(`waiting gives the job when it is ${state}, though the stream stays open`, async (t) => {
    const server = await FakeServer.start(t);
    server.script("WatchJob", [answer("RUNNING"), answer(state, 3), hang]);
    const job = await clientOf(t, server.target).waitForJob("a");
    assert.deepEqual([job.state, job.progress?.step], [state, 3]);
  });
}

test("a broken watch is taken up without repetition", async (t) => {
  const server = await FakeServer.start(t);
  server.script(
    "WatchJob",
    [answer("RUNNING", 1), BROKEN],
    [BROKEN],
    [answer("RUNNING", 1), answer("RUNNING", 2)], // a stream may also just close
    [answer("SUCCEEDED", 2)],
  );
  const jobs = await collect(clientOf(t, server.target).watchJob("a"));
  assert.deepEqual(seen(jobs), [
    ["RUNNING", 1],
    ["RUNNING", 2],
    ["SUCCEEDED", 2],
  ]);
});

test("taking up is bounded: two minutes and more, but not for ever", () => {
  const pauses = Array.from({ length: 30 }, (_, index) => pauseBefore(index + 1));
  assert.deepEqual(pauses.slice(0, 7), [250, 500, 1000, 2000, 4000, 5000, 5000]);
  const whole = pauses.reduce<number>((sum, wait) => sum + (wait ?? NaN), 0);
  assert.ok(whole > 120_000 && whole < 150_000, `${whole} ms`);
  assert.equal(pauseBefore(31), undefined);
});

test("the pauses grow, and the deadline ends them", async (t) => {
  const server = await FakeServer.start(t);
  server.script("WatchJob", [answer("RUNNING")], []);
  const client = clientOf(t, server.target);
  await assert.rejects(collect(client.watchJob("a", { timeoutMs: 2200 })), { name: "DeadlineExceeded" });
  // At 0, 0.25, 0.75, 1.75 s and, to be refused for the deadline, at 2.2 s.
  assert.equal(server.asked("WatchJob").length, 4);
});

test("a watch that never answered gives up at once", async (t) => {
  const started = Date.now();
  await assert.rejects(clientOf(t, "127.0.0.1:9").waitForJob("a"), { name: "Unavailable" });
  assert.ok(Date.now() - started < 8000);
});

test("an unknown job is an error", async (t) => {
  const server = await FakeServer.start(t);
  server.script("WatchJob", [new Failure("NOT_FOUND", "no such job")]);
  await assert.rejects(clientOf(t, server.target).waitForJob("a"), { name: "NotFound", detail: "no such job" });
  assert.equal(server.asked("WatchJob").length, 1);
});

test("a timeout holds for the whole watch", async (t) => {
  const server = await FakeServer.start(t);
  server.script("WatchJob", [answer("RUNNING"), BROKEN], [hang]);
  const started = Date.now();
  await assert.rejects(clientOf(t, server.target).waitForJob("a", { timeoutMs: 500 }), { name: "DeadlineExceeded" });
  const took = Date.now() - started;
  assert.ok(400 < took && took < 3000, `${took} ms`);
});

test("a watch survives a restart of the server", async (t) => {
  const server = await FakeServer.start(t);
  server.script("WatchJob", [answer("RUNNING", 1), hang]);
  const jobs = clientOf(t, server.target).watchJob("a");
  assert.equal((await jobs.next()).value?.progress?.step, 1);
  server.stop();
  const [rest] = await Promise.all([
    collect(jobs),
    setTimeout(400).then(async () => {
      const next = await FakeServer.start(t, server.port);
      next.script("WatchJob", [answer("RUNNING", 1), answer("SUCCEEDED", 9)]);
    }),
  ]);
  assert.deepEqual(seen(rest), [["SUCCEEDED", 9]]);
});

for (const way of ["left early", "cancelled by its signal"]) {
  test(`a watch ${way} ends on the server`, async (t) => {
    const server = await FakeServer.start(t);
    const gone = new Promise<void>((resolve) => {
      server.script("WatchJob", [
        (_: never, call: Call) => {
          call.on("cancelled", resolve);
          return answer("RUNNING");
        },
        hang,
      ]);
    });
    const controller = new AbortController();
    const jobs = clientOf(t, server.target).watchJob("a", { signal: controller.signal });
    await jobs.next();
    if (way === "left early") {
      await jobs.return();
    } else {
      const next = jobs.next();
      controller.abort();
      await assert.rejects(next, { name: "Cancelled" });
    }
    await gone;
  });
}

test("closing the client ends its watches", async (t) => {
  const server = await FakeServer.start(t);
  server.script("WatchJob", [answer("RUNNING"), hang]);
  const client = clientOf(t, server.target);
  const jobs = client.watchJob("a");
  await jobs.next();
  const next = jobs.next();
  client.close();
  await assert.rejects(next, { name: "Cancelled" });
});

test("a signal cuts the pause before a watch is taken up", async (t) => {
  const server = await FakeServer.start(t);
  server.script("WatchJob", [answer("RUNNING"), BROKEN], []);
  const signal = AbortSignal.timeout(1000); // in the third pause, which takes until 1.75 s
  const started = Date.now();
  await assert.rejects(collect(clientOf(t, server.target).watchJob("a", { signal })), { name: "Cancelled" });
  assert.ok(Date.now() - started < 1500);
});
