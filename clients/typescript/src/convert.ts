/**
 * Between the wire's messages and the client's types; nothing else in the client touches a message's fields.
 *
 * Requests throw InvalidArgument, naming the field, for what the wire cannot carry. What it can carry is the server's
 * to judge.
 */

import { randomUUID } from "node:crypto";

import {
  create,
  ScalarType,
  type DescField,
  type DescMessage,
  type Message,
  type MessageShape,
} from "@bufbuild/protobuf";
import { reflect } from "@bufbuild/protobuf/reflect";
import { timestampDate, type Timestamp } from "@bufbuild/protobuf/wkt";

import { Internal, InvalidArgument } from "./errors.js";
import * as prediction from "./generated/amnestic/v1/prediction_pb.js";
import * as unlearning from "./generated/amnestic/v1/unlearning_pb.js";
import type * as types from "./types.js";

const ENDED: readonly types.JobState[] = ["SUCCEEDED", "REJECTED", "FAILED", "CANCELLED"];

export function predictRequest(
  texts: string | readonly string[],
  options: types.PredictOptions,
): prediction.PredictRequest {
  const documents = listOf(texts);
  documents.forEach((text, index) => {
    checkText(text, `document ${index + 1}`, `documents[${index}]`);
  });
  const { version, routingKey, includeFeatures } = options;
  return { ...request(prediction.PredictRequestSchema, { version, routingKey, includeFeatures }), documents };
}

export function unlearnRequest(
  labels: string | readonly string[],
  options: types.UnlearnOptions,
): unlearning.UnlearnRequest {
  const names = listOf(labels);
  names.forEach((name, index) => {
    checkText(name, "a label", `labels[${index}]`);
  });
  const { requestId = randomUUID(), dryRun, stage, reason, method, gates } = options;
  const message = { ...request(unlearning.UnlearnRequestSchema, { requestId, dryRun, stage, reason }), labels: names };
  if (method) message.method = request(unlearning.MethodSchema, method, "method.");
  if (gates) message.gates = request(unlearning.GateLimitsSchema, gates, "gates.");
  return message;
}

/** A message with the fields that are not undefined, none of them a list; `path` leads to it in an error. */
export function request<Desc extends DescMessage>(schema: Desc, values: object, path = ""): MessageShape<Desc> {
  const message = create(schema);
  const fields = reflect(schema, message);
  for (const [name, value] of Object.entries(values) as [string, unknown][]) {
    if (value === undefined) continue;
    const field = schema.field[name];
    if (!field) throw invalid(`there is no ${path}${name}`, path + name);
    if (field.scalar === ScalarType.STRING) checkText(value, path + name, path + name);
    try {
      fields.set(field, is64Bit(field) ? exact(value) : value);
    } catch {
      // Reflection's own error repeats the value.
      throw invalid(`${path}${name} is out of range or of the wrong type`, path + name);
    }
  }
  return message;
}

export function predictResult(response: prediction.PredictResponse): types.PredictResult {
  return { version: Number(response.version), predictions: response.predictions.map(predictionOf) };
}

export function model(response: prediction.GetModelResponse): types.Model {
  return {
    ...plain(response),
    labels: response.labels.map((label) => ({ ...plain(label), threshold: label.threshold })),
    activeVersion: Number(response.activeVersion),
    parameters: Number(response.parameters),
    // Servers from before it was told are all multi-label, and cut long documents.
    problemType: response.problemType || "multi_label",
    longDocuments: response.longDocuments || "truncate",
    maxWindows: response.maxWindows || 1,
    pooling: response.pooling || "max",
  };
}

export function status(response: prediction.GetStatusResponse): types.Status {
  const load = response.load ?? create(prediction.LoadSchema);
  return {
    ...plain(response),
    state: nameOf(prediction.ServerState, response.state),
    activeVersion: Number(response.activeVersion),
    load: { ...plain(load), p50Seconds: load.p50Seconds, p99Seconds: load.p99Seconds },
    runningJob: response.runningJob && summaryOf(response.runningJob),
    lastJob: response.lastJob && summaryOf(response.lastJob),
    stagedVersions: response.stagedVersions.map(Number),
    rollout: response.rollout && rollout(response.rollout),
  };
}

export function job(message: unlearning.Job | undefined): types.Job {
  if (!message) throw new Internal("the server answered without the job");
  const course = courseOf(message);
  return {
    ...plain(message),
    ...course,
    ended: ENDED.includes(course.state),
    method: message.method ? methodOf(message.method) : {},
    gateLimits: message.gateLimits ? plain(message.gateLimits) : {},
    gates: message.gates.map((gate) => ({ ...plain(gate), label: gate.label || undefined })),
    change: message.change && { ...plain(message.change), parametersChanged: Number(message.change.parametersChanged) },
    createdAt: dateOf(message.createdAt),
    callsAroundSwap: message.callsAroundSwap.map(secondOf),
  };
}

export function version(message: unlearning.Version | undefined): types.Version {
  if (!message) throw new Internal("the server answered without the version");
  return {
    ...plain(message),
    version: Number(message.version),
    jobId: message.jobId || undefined,
    patchDigest: message.patchDigest || undefined,
    createdAt: dateOf(message.createdAt),
  };
}

export function rollout(message: unlearning.Rollout | undefined): types.Rollout {
  if (!message) throw new Internal("the server answered without the rollout");
  return {
    ...plain(message),
    version: Number(message.version),
    since: dateOf(message.since),
    countedSince: dateOf(message.countedSince),
    activeCalls: Number(message.activeCalls),
    canaryCalls: Number(message.canaryCalls),
    shadowDocuments: Number(message.shadowDocuments),
    shadowDropped: Number(message.shadowDropped),
    differences: message.differences.map((one) => ({ ...plain(one), documents: Number(one.documents) })),
  };
}

function predictionOf(message: prediction.Prediction): types.Prediction {
  return {
    ...plain(message),
    scores: message.scores.map(plain),
    decided: message.scores.filter((score) => score.decision).map((score) => score.label),
    windows: message.windows || 1,
  };
}

function summaryOf(message: prediction.JobSummary): types.JobSummary {
  return { ...plain(message), ...courseOf(message) };
}

/** What a job and its summary both tell, but for what is plain. */
function courseOf(message: unlearning.Job | prediction.JobSummary) {
  return {
    state: nameOf(unlearning.JobState, message.state),
    progress: message.progress && progressOf(message.progress),
    version: Number(message.version) || undefined,
    error: message.error || undefined,
    startedAt: dateOf(message.startedAt),
    finishedAt: dateOf(message.finishedAt),
  };
}

function methodOf(message: unlearning.Method): types.Method {
  const { seed, ...others } = plain(message);
  return seed === undefined ? others : { ...others, seed: seed <= Number.MAX_SAFE_INTEGER ? Number(seed) : seed };
}

function secondOf(message: unlearning.CallsInSecond): types.CallsInSecond {
  return {
    ...plain(message),
    calls: Number(message.calls),
    failedCalls: Number(message.failedCalls),
    cancelledCalls: Number(message.cancelledCalls),
    p50Seconds: message.p50Seconds,
    p99Seconds: message.p99Seconds,
    maxSeconds: message.maxSeconds,
  };
}

function progressOf(message: unlearning.Progress): types.Progress {
  return { ...plain(message), secondsLeft: message.secondsLeft >= 0 ? message.secondsLeft : undefined };
}

/** A state by its name; UNSPECIFIED for one that is newer than this client. */
function nameOf<State extends string>(states: Readonly<Record<State, number>>, value: number): State | "UNSPECIFIED" {
  return (states as Readonly<Record<number, State | undefined>>)[value] ?? "UNSPECIFIED";
}

function dateOf(timestamp: Timestamp | undefined): Date | undefined {
  return timestamp && timestampDate(timestamp);
}

/** A message's fields, without what makes it one. */
function plain<M extends Message>(message: M): Omit<M, "$typeName" | "$unknown"> {
  const { $typeName: _name, $unknown: _unknown, ...fields } = message;
  return fields;
}

function listOf(one: string | readonly string[]): string[] {
  return Array.isArray(one) ? [...(one as readonly string[])] : [one as string];
}

/** The check is ours, because a lone surrogate would be sent as another character. */
function checkText(text: unknown, what: string, field: string): void {
  if (typeof text !== "string") throw invalid(`${what} is not a string`, field);
  if (!text.isWellFormed()) throw invalid(`${what} is not valid Unicode: it holds a lone surrogate`, field);
}

function is64Bit(field: DescField): boolean {
  return field.scalar === ScalarType.INT64 || field.scalar === ScalarType.UINT64;
}

/** A 64-bit integer; throws for a number that may not be the one meant. */
function exact(value: unknown): bigint {
  if (typeof value === "bigint") return value;
  if (!Number.isSafeInteger(value)) throw new RangeError("not an exact integer");
  return BigInt(value as number);
}

function invalid(detail: string, field: string): InvalidArgument {
  return new InvalidArgument(detail, { fieldViolations: [{ field, description: detail }] });
}
