/** Errors, deadlines, retries, cancelling and readiness, over a real connection. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout } from "node:timers/promises";

import { Metadata } from "@grpc/grpc-js";
import * as amnestic from "amnestic-client";
import { AmnesticClient, AmnesticError, type CallOptions, type StatusCode } from "amnestic-client";

import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "../dist/generated/google/rpc/error_details_pb.js";
import { type Call, clientOf, Failure, FakeServer } from "./fake.js";

const DRAINING = new Failure("UNAVAILABLE", "the server is shutting down");
/** What gRPC itself answers to a call that comes in as it closes. */
const CLOSING = new Failure("CANCELLED", "Cancelled on the server side");

const KINDS: [StatusCode, keyof typeof amnestic][] = [
  ["INVALID_ARGUMENT", "InvalidArgument"],
  ["NOT_FOUND", "NotFound"],
  ["ALREADY_EXISTS", "AlreadyExists"],
  ["FAILED_PRECONDITION", "FailedPrecondition"],
  ["RESOURCE_EXHAUSTED", "ResourceExhausted"],
  ["DEADLINE_EXCEEDED", "DeadlineExceeded"],
  ["CANCELLED", "Cancelled"],
  ["INTERNAL", "Internal"],
  ["PERMISSION_DENIED", "PermissionDenied"],
  ["UNAUTHENTICATED", "Unauthenticated"],
  ["OUT_OF_RANGE", "AmnesticError"],
];
for (const [code, name] of KINDS) {
  test(`${code} becomes ${name}`, async (t) => {
    const server = await FakeServer.start(t);
    server.script("Predict", new Failure(code, "document 1 is empty"));
    const error = await failureOf(clientOf(t, server.target).predict("text"));
    assert.equal(error.constructor, amnestic[name]);
    assert.ok(error instanceof AmnesticError);
    assert.deepEqual([error.name, error.code, error.detail], [name, code, "document 1 is empty"]);
    assert.equal(error.message, error.detail);
    assert.deepEqual([error.fieldViolations, error.retryAfterMs, error.reason], [[], undefined, undefined]);
    assert.equal(server.asked("Predict").length, ["RESOURCE_EXHAUSTED", "CANCELLED"].includes(code) ? 5 : 1);
  });
}

test("the details of an error are read", async (t) => {
  const server = await FakeServer.start(t);
  const violation = { field: "documents[1]", description: "document 2 is empty" };
  server.script(
    "Predict",
    new Failure("INVALID_ARGUMENT", "document 2 is empty").with(
      [ErrorInfoSchema, { reason: "EMPTY_DOCUMENT", domain: "amnestic" }],
      [BadRequestSchema, { fieldViolations: [violation] }],
    ),
    new Failure("RESOURCE_EXHAUSTED", "full").with([
      RetryInfoSchema,
      { retryDelay: { seconds: 1n, nanos: 250_000_000 } },
    ]),
  );
  const client = clientOf(t, server.target);
  const invalid = await failureOf(client.predict(["a", ""]));
  assert.deepEqual([invalid.fieldViolations, invalid.reason], [[violation], "EMPTY_DOCUMENT"]);
  const full = await failureOf(client.predict("a"));
  assert.equal(full.retryAfterMs, 1250);
});

test("without details the pushback of gRPC's retries tells when to come back", async (t) => {
  const server = await FakeServer.start(t);
  server.script("Predict", full(70));
  assert.equal((await failureOf(clientOf(t, server.target).predict("a"))).retryAfterMs, 70);
});

test("details that can't be read don't hide the error", async (t) => {
  const server = await FakeServer.start(t);
  const metadata = new Metadata();
  metadata.set("grpc-status-details-bin", Buffer.from([255, 255, 255]));
  server.script("Predict", new Failure("NOT_FOUND", "no such version", metadata));
  const error = await failureOf(clientOf(t, server.target).predict("a"));
  assert.deepEqual([error.code, error.detail, error.fieldViolations], ["NOT_FOUND", "no such version", []]);
});

type CallOf = (client: AmnesticClient, options?: CallOptions) => Promise<unknown>;
const REPEATABLE: [string, CallOf, object][] = [
  ["Predict", (client, options) => client.predict("text", options), {}],
  ["GetModel", (client, options) => client.getModel(options), {}],
  ["GetStatus", (client, options) => client.status(options), {}],
  ["Unlearn", (client, options) => client.unlearn("renal", options), { job: {} }],
  ["GetJob", (client, options) => client.getJob("a", options), { job: {} }],
  ["ListJobs", (client, options) => client.listJobs(options), {}],
  ["ListVersions", (client, options) => client.listVersions(options), {}],
  ["GetRollout", (client, options) => client.rollout(options), {}],
];
const ONCE: [string, CallOf, object][] = [
  ["CancelJob", (client, options) => client.cancelJob("a", options), { job: {} }],
  ["Rollback", (client, options) => client.rollback(1, "why", options), { version: {} }],
  ["Purge", (client, options) => client.purge(2, "why", options), { version: {} }],
  ["PromoteVersion", (client, options) => client.promote(2, options), { version: {} }],
  ["SetRollout", (client, options) => client.setRollout({ version: 2, ...options }), { rollout: {} }],
];

for (const [method, call, answer] of REPEATABLE) {
  test(`${method} is retried`, async (t) => {
    const server = await FakeServer.start(t);
    server.script(method, DRAINING, CLOSING, answer);
    await call(clientOf(t, server.target));
    const sent = server.asked(method);
    assert.equal(sent.length, 3);
    assert.deepEqual(sent[0], sent[2], "a repetition is the same request, its id included");
  });
}

for (const [method, call] of ONCE) {
  test(`${method} is sent once`, async (t) => {
    const server = await FakeServer.start(t);
    server.script(method, DRAINING);
    const error = await failureOf(call(clientOf(t, server.target)));
    assert.deepEqual([error.name, error.detail], ["Unavailable", "the server is shutting down"]);
    assert.equal(server.asked(method).length, 1);
  });
}

test("retries are bounded", async (t) => {
  const server = await FakeServer.start(t);
  server.script("Predict", DRAINING);
  await assert.rejects(clientOf(t, server.target).predict("text"), amnestic.Unavailable);
  assert.equal(server.asked("Predict").length, 5);
});

test("a prediction is retried while the server is full, when it says", async (t) => {
  const server = await FakeServer.start(t);
  server.script("Predict", full(150), full(150), {});
  server.script("GetModel", full(1));
  const client = clientOf(t, server.target);
  const started = Date.now();
  await client.predict("text");
  assert.ok(Date.now() - started >= 300);
  assert.equal(server.asked("Predict").length, 3);
  await assert.rejects(client.getModel(), amnestic.ResourceExhausted);
  assert.equal(server.asked("GetModel").length, 1);
});

test("a long request can be sent again", async (t) => {
  const server = await FakeServer.start(t);
  server.script("Predict", full(1), {});
  await clientOf(t, server.target).predict("x".repeat(7 * 2 ** 20));
  assert.equal(server.asked("Predict").length, 2);
});

test("a server that keeps failing is spared the repetitions", async (t) => {
  const server = await FakeServer.start(t);
  server.script("Predict", full(1));
  const client = clientOf(t, server.target);
  for (let call = 0; call < 12; call++) await assert.rejects(client.predict("text"), amnestic.ResourceExhausted);
  const before = server.asked("Predict").length;
  await assert.rejects(client.predict("text"), amnestic.ResourceExhausted);
  assert.equal(server.asked("Predict").length, before + 1);
});

for (const [method, call, answer] of [...REPEATABLE, ...ONCE]) {
  test(`${method} has a deadline: its own, the client's or the default`, async (t) => {
    const server = await FakeServer.start(t);
    const seconds: number[] = [];
    server.script(method, (_: never, call: Call) => {
      seconds.push((new Date(call.getDeadline()).getTime() - Date.now()) / 1000);
      return answer;
    });
    await call(clientOf(t, server.target));
    await call(clientOf(t, server.target, { timeoutMs: 3000 }));
    await call(clientOf(t, server.target, { timeoutMs: 3000 }), { timeoutMs: 5000 });
    const wanted = [["Rollback", "PromoteVersion", "Purge"].includes(method) ? 60 : 10, 3, 5];
    seconds.forEach((left, index) => {
      const limit = wanted[index] ?? NaN;
      assert.ok(limit - 2 < left && left <= limit + 0.1, `${left} of ${limit} s`);
    });
    assert.equal(seconds.length, 3);
  });
}

test("a timeout ends the call", async (t) => {
  const server = await FakeServer.start(t);
  server.script("Predict", () => setTimeout(2000, {}, { ref: false }));
  const started = Date.now();
  await assert.rejects(clientOf(t, server.target).predict("text", { timeoutMs: 200 }), amnestic.DeadlineExceeded);
  assert.ok(Date.now() - started < 1500);
});

test("no server is Unavailable", async (t) => {
  const error = await failureOf(clientOf(t, "127.0.0.1:9").predict("secret", { timeoutMs: 8000 }));
  assert.deepEqual([error.name, error.code], ["Unavailable", "UNAVAILABLE"]);
});

test("a signal cancels the call, here and on the server", async (t) => {
  const server = await FakeServer.start(t);
  const gone = hangs(server, "Predict");
  const controller = new AbortController();
  const call = failureOf(clientOf(t, server.target).predict("text", { signal: controller.signal }));
  await gone.asked;
  const why = new Error("the user left");
  controller.abort(why);
  const error = await call;
  assert.deepEqual([error.name, error.cause], ["Cancelled", why]);
  await gone.cancelled;
});

test("a signal that came before sends nothing", async (t) => {
  const server = await FakeServer.start(t);
  server.script("Predict", {});
  const call = clientOf(t, server.target).predict("text", { signal: AbortSignal.abort() });
  await assert.rejects(call, amnestic.Cancelled);
  assert.equal(server.requests.length, 0);
});

test("closing cancels what is in flight, and what comes after", async (t) => {
  const server = await FakeServer.start(t);
  const gone = hangs(server, "Predict");
  const client = clientOf(t, server.target);
  const call = failureOf(client.predict("text"));
  await gone.asked;
  client.close();
  assert.equal((await call).name, "Cancelled");
  await gone.cancelled;
  await assert.rejects(client.predict("text"), { name: "Cancelled", detail: "the client is closed" });
});

test("readiness is the health service's word", async (t) => {
  const server = await FakeServer.start(t);
  const client = clientOf(t, server.target);
  server.ready = false;
  assert.equal(await client.isReady(), false);
  await assert.rejects(client.waitUntilReady({ timeoutMs: 300 }), { name: "DeadlineExceeded" });
  const waiting = client.waitUntilReady();
  server.ready = true;
  await waiting;
  assert.equal(await client.isReady(), true);
});

test("no server is not ready", async (t) => {
  const away = clientOf(t, "127.0.0.1:9");
  assert.equal(await away.isReady(), false);
  await assert.rejects(away.waitUntilReady({ timeoutMs: 300 }), amnestic.DeadlineExceeded);
});

/** A full server, which says when to come back. */
function full(milliseconds: number): Failure {
  const metadata = new Metadata();
  metadata.set("grpc-retry-pushback-ms", String(milliseconds));
  return new Failure("RESOURCE_EXHAUSTED", "full", metadata);
}

async function failureOf(call: Promise<unknown>): Promise<AmnesticError> {
  return call.then(
    () => assert.fail("the call succeeded"),
    (error: unknown) => error as AmnesticError,
  );
}

/** The method says nothing until its caller has gone. */
function hangs(server: FakeServer, method: string): { asked: Promise<void>; cancelled: Promise<void> } {
  let asked = (): void => undefined;
  let left = (): void => undefined;
  const cancelled = new Promise<void>((resolve) => (left = resolve));
  const arrived = new Promise<void>((resolve) => (asked = resolve));
  server.script(method, async (_: never, call: Call) => {
    call.on("cancelled", left);
    asked();
    await cancelled;
    return {};
  });
  return { asked: arrived, cancelled };
}
