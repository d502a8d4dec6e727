/** What the package gives: its names, its files, CommonJS, and a place for every field of the wire. */

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { test } from "node:test";

import * as amnestic from "amnestic-client";

import * as prediction from "../dist/generated/amnestic/v1/prediction_pb.js";
import * as unlearning from "../dist/generated/amnestic/v1/unlearning_pb.js";
import { channelOptions, timeoutOf } from "../dist/settings.js";

const ROOT = fileURLToPath(new URL("..", import.meta.url));

const NAMES = [
  "AlreadyExists",
  "AmnesticClient",
  "AmnesticError",
  "Cancelled",
  "DeadlineExceeded",
  "FailedPrecondition",
  "Internal",
  "InvalidArgument",
  "NotFound",
  "PermissionDenied",
  "ResourceExhausted",
  "Unauthenticated",
  "Unavailable",
];

/** `true`, or the wire's names that a type of ours has no place for: the compiler then says which. */
type Complete<Wire, Ours> = [Missing<Wire, Ours>] extends [never] ? true : Missing<Wire, Ours>;
type Missing<Wire, Ours> = Exclude<Wire, Ours | "$typeName" | "$unknown">;

// Checked by the compiler alone.
export const COMPLETE: [
  Complete<keyof prediction.Prediction, keyof amnestic.Prediction>,
  Complete<keyof prediction.PredictResponse, keyof amnestic.PredictResult>,
  Complete<keyof prediction.LabelScore, keyof amnestic.LabelScore>,
  Complete<keyof prediction.GetModelResponse, keyof amnestic.Model>,
  Complete<keyof prediction.Label, keyof amnestic.Label>,
  Complete<keyof prediction.GetStatusResponse, keyof amnestic.Status>,
  Complete<keyof prediction.Load, keyof amnestic.Load>,
  Complete<keyof prediction.JobSummary, keyof amnestic.JobSummary>,
  Complete<keyof typeof prediction.ServerState, amnestic.ServerState>,
  Complete<keyof unlearning.Job, keyof amnestic.Job>,
  Complete<keyof unlearning.Method, keyof amnestic.Method>,
  Complete<keyof unlearning.GateLimits, keyof amnestic.GateLimits>,
  Complete<keyof unlearning.Progress, keyof amnestic.Progress>,
  Complete<keyof unlearning.Gate, keyof amnestic.Gate>,
  Complete<keyof unlearning.ChangeReport, keyof amnestic.ChangeReport>,
  Complete<keyof unlearning.CallsInSecond, keyof amnestic.CallsInSecond>,
  Complete<keyof unlearning.GetReceiptResponse, keyof amnestic.Receipt>,
  Complete<keyof unlearning.Version, keyof amnestic.Version>,
  Complete<keyof unlearning.Rollout, keyof amnestic.Rollout>,
  Complete<keyof unlearning.DecisionDifference, keyof amnestic.DecisionDifference>,
  Complete<keyof typeof unlearning.JobState, amnestic.JobState>,
] = [
  true,
  true,
  true,
  true,
  true,
  true,
  true,
  true,
  true,
  true,
  true,
  true,
  true,
  true,
  true,
  true,
  true,
  true,
  true,
  true,
  true,
];

test("the public names", () => {
  assert.deepEqual(Object.keys(amnestic).sort(), NAMES);
});

const METHODS = [...prediction.PredictionService.methods, ...unlearning.UnlearningService.methods];

test("the client has every method of both services", () => {
  const named = new Map([
    ["getStatus", "status"],
    ["getReceipt", "receipt"],
    ["getRollout", "rollout"],
    ["promoteVersion", "promote"],
  ]);
  const theirs = METHODS.map(({ localName }) => named.get(localName) ?? localName);
  const ours = Object.getOwnPropertyNames(amnestic.AmnesticClient.prototype);
  assert.deepEqual(
    theirs.filter((name) => !ours.includes(name)),
    [],
  );
});

test("the policy is the published one, and its timeouts are the client's", () => {
  interface Policy {
    methodConfig: { name: { service: string; method: string }[]; timeout?: string }[];
  }
  const published = JSON.parse(
    readFileSync(join(ROOT, "..", "..", "proto", "amnestic", "service_config.json"), "utf8"),
  ) as Policy;
  const used = JSON.parse(String(channelOptions(undefined, undefined)["grpc.service_config"])) as Policy;
  assert.deepEqual(used, {
    ...published,
    methodConfig: published.methodConfig.map(({ timeout: _timeout, ...policy }) => policy),
  });
  for (const method of METHODS) {
    const of = published.methodConfig.find((one) => one.name.some((name) => name.method === method.name));
    if (method.methodKind === "unary") assert.equal(`${timeoutOf(method) / 1000}s`, of?.timeout, method.name);
    else assert.throws(() => timeoutOf(method), RangeError);
  }
});

test("CommonJS can require it", () => {
  const code = "console.log(Object.keys(require('amnestic-client')).sort().join())";
  assert.equal(node("--input-type=commonjs", "-e", code).trim(), NAMES.join());
});

test("an idle client doesn't keep the process", () => {
  const code = `
    import { AmnesticClient } from "amnestic-client";
    await new AmnesticClient("127.0.0.1:9").isReady();
  `;
  assert.equal(node("--input-type=module", "-e", code), "");
});

test("the package holds what was built, and nothing else", () => {
  const output = execFileSync("npm", ["pack", "--dry-run", "--json"], { cwd: ROOT, encoding: "utf8" });
  const files = (JSON.parse(output) as { files: { path: string }[] }[])[0]?.files.map((file) => file.path) ?? [];
  for (const path of ["package.json", "README.md", "dist/index.js", "dist/index.d.ts"])
    assert.ok(files.includes(path), path);
  assert.deepEqual(
    files.filter((path) => !/^(dist\/.*\.(js|d\.ts)|package\.json|README\.md|LICENSE)$/.test(path)),
    [],
  );
});

function node(...args: string[]): string {
  return execFileSync(process.execPath, args, { cwd: ROOT, encoding: "utf8", timeout: 20_000 });
}
