/** Many documents: order, bounds, early ends and documents that are refused, over a real connection. */

import assert from "node:assert/strict";
import { createInterface } from "node:readline";
import { Readable } from "node:stream";
import { test, type TestContext } from "node:test";
import { setTimeout } from "node:timers/promises";

import { Metadata } from "@grpc/grpc-js";
import type { Answer, AmnesticClient, PredictManyOptions } from "amnestic-client";

import { BadRequestSchema, RetryInfoSchema } from "../dist/generated/google/rpc/error_details_pb.js";
import { type Call, clientOf, collect, Failure, FakeServer, type Step } from "./fake.js";

interface Asked {
  documents: string[];
  version: bigint;
}

/** A server whose prediction of a document names the document, and a client of it. */
async function start(t: TestContext, ...steps: Step[]): Promise<{ server: FakeServer; client: AmnesticClient }> {
  const server = await FakeServer.start(t);
  server.script("GetModel", { maxDocuments: 8, activeVersion: 4n });
  server.script("Predict", ...(steps.length > 0 ? steps : [named]));
  return { server, client: clientOf(t, server.target) };
}

function named({ documents, version }: Asked): object {
  const predictions = documents.map((label) => ({ scores: [{ label, decision: true }] }));
  return { version: version || 1n, predictions };
}

/** Refuses empty documents, as a server does that tells which. */
function strict(request: Asked): object {
  const position = request.documents.indexOf("");
  if (position < 0) return named(request);
  const description = `document ${position + 1} is empty`;
  const details = { fieldViolations: [{ field: `documents[${position}]`, description }] };
  return new Failure("INVALID_ARGUMENT", description).with([BadRequestSchema, details]);
}

/** A full server, which tells gRPC and the client when to come back. */
function full(milliseconds: number, seconds = 0): Failure {
  const pushback = new Metadata();
  pushback.set("grpc-retry-pushback-ms", String(milliseconds));
  const retryDelay = { seconds: BigInt(seconds), nanos: seconds ? 0 : milliseconds * 1_000_000 };
  const failure = new Failure("RESOURCE_EXHAUSTED", "the queue is full; retry later", pushback);
  return failure.with([RetryInfoSchema, { retryDelay }]);
}

function names(answers: Answer[]): (string | undefined)[] {
  return answers.map((answer) => answer.decided[0]);
}

function* numbers(count: number): Generator<string> {
  for (let number = 0; number < count; number++) yield String(number);
}

async function* slowly(count: number): AsyncGenerator<string> {
  for (const number of numbers(count)) {
    await setTimeout(1);
    yield number;
  }
}

const ALL = [...numbers(50)];

for (const [what, texts] of [
  ["an array", ALL],
  ["a generator", numbers(50)],
  ["an async one", slowly(50)],
] as const) {
  test(`${what} is answered in order, whatever order the calls end in`, async (t) => {
    const { server, client } = await start(t, async (request: Asked) => {
      await setTimeout(Math.random() * 20);
      return named(request);
    });
    const answers = await collect(client.predictMany(texts, { batch: 6 }));
    assert.deepEqual(names(answers), ALL);
    assert.deepEqual(
      answers.map((answer) => answer.index),
      ALL.map(Number),
    );
    assert.deepEqual(
      server
        .asked("Predict")
        .map((request) => (request as unknown as Asked).documents.length)
        .sort(),
      [2, ...Array<number>(8).fill(6)],
    );
  });
}

test("no document is no call, and the server's limit holds for a batch", async (t) => {
  const { server, client } = await start(t);
  assert.deepEqual(await collect(client.predictMany([])), []);
  assert.equal(server.asked("Predict").length, 0);
  await collect(client.predictMany(numbers(20), { batch: 1000 }));
  assert.deepEqual(
    server.asked("Predict").map((request) => (request as unknown as Asked).documents.length),
    [8, 8, 4],
  );
});

test("a batch holds no more than 3 MiB of several documents", async (t) => {
  const { server, client } = await start(t);
  const mebibyte = "\u00e9".repeat(2 ** 19);
  const texts = [mebibyte, mebibyte, mebibyte, "a", mebibyte.repeat(4), "b", "c"];
  assert.equal((await collect(client.predictMany(texts, { concurrency: 1 }))).length, 7);
  assert.deepEqual(
    server.asked("Predict").map((request) => (request as unknown as Asked).documents.length),
    [3, 1, 1, 2],
  );
});

test("a batch has two minutes, the client's timeout or its own", async (t) => {
  const seconds: number[] = [];
  const { server, client } = await start(t, (request: Asked, call: Call) => {
    seconds.push(Math.round((new Date(call.getDeadline()).getTime() - Date.now()) / 1000));
    return named(request);
  });
  await collect(client.predictMany(["a"]));
  await collect(clientOf(t, server.target, { timeoutMs: 30_000 }).predictMany(["a"]));
  await collect(client.predictMany(["a"], { timeoutMs: 20_000 }));
  assert.deepEqual(seconds, [120, 30, 20]);
});

test("as many calls as allowed are in flight, and no more", async (t) => {
  let inFlight = 0;
  let most = 0;
  const { client } = await start(t, async (request: Asked) => {
    most = Math.max(most, ++inFlight);
    await setTimeout(15);
    inFlight--;
    return named(request);
  });
  await collect(client.predictMany(numbers(60), { batch: 5, concurrency: 3 }));
  assert.equal(most, 3);
});

test("the input waits for the taker", async (t) => {
  const { client } = await start(t);
  let read = 0;
  function* counted(): Generator<string> {
    for (const number of numbers(1000)) {
      read++;
      yield number;
    }
  }
  const answers = client.predictMany(counted(), { batch: 4, concurrency: 2 });
  for (let taken = 1; taken <= 9; taken++) {
    await answers.next();
    await setTimeout(20);
    assert.ok(read <= 4 * Math.ceil(taken / 4) + 2 * 4, `${read} read for ${taken} taken`);
  }
  await answers.return();
});

test("a slow input doesn't hold back the answers that are there", async (t) => {
  const { client } = await start(t);
  let hand = (): void => undefined;
  const more = new Promise<void>((resolve) => (hand = resolve));
  async function* slow(): AsyncGenerator<string> {
    yield "first";
    await more;
    yield "second";
  }
  const answers = client.predictMany(slow(), { batch: 1 });
  assert.equal((await answers.next()).value?.decided[0], "first");
  hand();
  assert.deepEqual(names(await collect(answers)), ["second"]);
});

test("leaving early cancels what is in flight and closes the input", async (t) => {
  let cancelled = 0;
  let closed = false;
  const { client, server } = await start(t, named, async (request: Asked, call: Call) => {
    await new Promise<void>((resolve) => {
      call.on("cancelled", () => {
        cancelled++;
        resolve();
      });
    });
    return named(request);
  });
  function* endless(): Generator<string> {
    try {
      for (;;) yield "text";
    } finally {
      closed = true;
    }
  }
  for await (const answer of client.predictMany(endless(), { batch: 2, concurrency: 3 })) {
    while (server.asked("Predict").length < 3) await setTimeout(5);
    assert.equal(answer.index, 0);
    break;
  }
  assert.ok(closed);
  while (cancelled < 2) await setTimeout(5);
});

test("a signal ends it while the input is waited for", async (t) => {
  const { client } = await start(t);
  async function* never(): AsyncGenerator<string> {
    yield "first";
    await setTimeout(30_000, undefined, { ref: false });
  }
  const controller = new AbortController();
  const answers = client.predictMany(never(), { batch: 1, signal: controller.signal });
  await answers.next();
  const next = answers.next();
  controller.abort();
  await assert.rejects(next, { name: "Cancelled" });
});

test("no line is lost of a file, and without a server the input is closed", async (t) => {
  const { client } = await start(t);
  const lines = () => createInterface({ input: Readable.from(["first\nsec", "ond\n"]) });
  assert.deepEqual(names(await collect(client.predictMany(lines()))), ["first", "second"]);

  let closed = false;
  function* texts(): Generator<string> {
    try {
      yield "text";
    } finally {
      closed = true;
    }
  }
  const away = clientOf(t, "127.0.0.1:9");
  await assert.rejects(collect(away.predictMany(texts(), { batch: 1 })), { name: "Unavailable" });
  assert.ok(closed);
});

test("an error of the input comes through", async (t) => {
  const { client } = await start(t);
  function* failing(): Generator<string> {
    yield "first";
    throw new RangeError("the file ended");
  }
  await assert.rejects(collect(client.predictMany(failing(), { batch: 1 })), { name: "RangeError" });
});

test("a document refused ends the answers, and is placed in the input", async (t) => {
  const { client } = await start(t, strict);
  const texts = [...numbers(10), "", ...numbers(10)];
  const answers: Answer[] = [];
  const all = (async () => {
    for await (const answer of client.predictMany(texts, { batch: 4 })) answers.push(answer);
  })();
  await assert.rejects(all, {
    name: "InvalidArgument",
    detail: "document 3 is empty, counted from document 9 of the input",
    fieldViolations: [{ field: "documents[10]", description: "document 3 is empty" }],
  });
  assert.deepEqual(names(answers), [...numbers(8)]);
});

test("with onInvalid the others are answered", async (t) => {
  const { client } = await start(t, strict);
  const invalid: [number, string | undefined][] = [];
  const onInvalid: PredictManyOptions["onInvalid"] = (error, index) => {
    invalid.push([index, error.fieldViolations[0]?.field]);
  };
  const texts = ["", "b", "c", "", "e", "\udc00", "g", "h", ""];
  const answers = await collect(client.predictMany(texts, { batch: 6, onInvalid }));
  assert.deepEqual(
    answers.map(({ index, decided }) => [index, decided[0]]),
    [
      [1, "b"],
      [2, "c"],
      [4, "e"],
      [6, "g"],
      [7, "h"],
    ],
  );
  assert.deepEqual(
    invalid.sort(),
    [0, 3, 5, 8].map((index) => [index, `documents[${index}]`]),
  );
});

test("what is wrong with no document isn't put on one", async (t) => {
  const { client, server } = await start(t, named);
  const onInvalid = () => assert.fail("not a document's fault");
  const wrong = collect(client.predictMany(numbers(9), { version: 1.5, onInvalid }));
  await assert.rejects(wrong, { name: "InvalidArgument", detail: "version is out of range or of the wrong type" });
  assert.equal(server.asked("Predict").length, 0);
});

test("a full server's word when to come back is kept", async (t) => {
  // More often than gRPC would by itself.
  const { server, client } = await start(t, ...Array<Step>(6).fill(full(50)), named);
  const started = Date.now();
  assert.deepEqual(names(await collect(client.predictMany(["a"]))), ["a"]);
  assert.ok(Date.now() - started >= 300);
  assert.equal(server.asked("Predict").length, 7);

  server.script("Predict", full(1, 5));
  await assert.rejects(collect(client.predictMany(["a"], { timeoutMs: 4000 })), { name: "ResourceExhausted" });
  server.script("Predict", new Failure("RESOURCE_EXHAUSTED", "too large"));
  await assert.rejects(collect(client.predictMany(["a"])), { name: "ResourceExhausted", detail: "too large" });
});

test("each answer names its version, which can be one for all", async (t) => {
  const { server, client } = await start(t);
  assert.deepEqual(
    (await collect(client.predictMany(["a"]))).map((answer) => answer.version),
    [1],
  );
  assert.deepEqual(
    (await collect(client.predictMany(["a"], { pin: true }))).map((answer) => answer.version),
    [4],
  );
  assert.deepEqual(
    (await collect(client.predictMany(["a"], { version: 2 }))).map((answer) => answer.version),
    [2],
  );
  assert.equal(server.asked("Predict").length, 3);
});

test("what can't be meant is refused", async (t) => {
  const { client } = await start(t);
  await assert.rejects(collect(client.predictMany("one document")), { name: "InvalidArgument" });
  for (const options of [{ batch: 0 }, { concurrency: 1.5 }]) {
    await assert.rejects(collect(client.predictMany(["a"], options)), { name: "InvalidArgument" });
  }
});
