/** Many documents through bounded calls: answers in input order, nothing read ahead of what is being answered. */

import { setMaxListeners } from "node:events";

import { AmnesticError, cancelledBy, errorOf, InvalidArgument, ResourceExhausted } from "./errors.js";
import { pause } from "./pause.js";
import { BATCH_BYTES } from "./settings.js";
import type { Answer, PredictManyOptions, PredictOptions, PredictResult } from "./types.js";

type Predict = (texts: readonly string[], options: PredictOptions) => Promise<PredictResult>;

/** Documents of one call; `start` is the first one's place in the input. */
interface Batch {
  readonly start: number;
  readonly texts: readonly string[];
}

/** What the server must be asked for first: the size of a batch, and the version that answers all. */
export interface Plan {
  readonly batch: number;
  readonly version: number | undefined;
}

export interface Bulk extends Omit<PredictManyOptions, "batch" | "pin" | "version"> {
  readonly plan: Promise<Plan>;
  readonly concurrency: number;
  readonly timeoutMs: number;
}

/**
 * Yield one answer a document, in the order of `texts`.
 *
 * At most `concurrency` batches are being read, being answered or waiting to be taken. Who leaves early cancels the
 * calls in flight and closes the input.
 */
export async function* predictMany(
  predict: Predict,
  texts: Iterable<string> | AsyncIterable<string>,
  options: Bulk,
): AsyncGenerator<Answer, void, undefined> {
  const left = new AbortController();
  const signal = AbortSignal.any(options.signal ? [options.signal, left.signal] : [left.signal]);
  setMaxListeners(0, signal); // each call in flight listens
  const batches = inBatches(texts, quiet(options.plan));
  const running: Promise<Answer[]>[] = [];
  let reading: Promise<IteratorResult<Batch, void>> | undefined;
  let more = true;
  try {
    for (;;) {
      if (more && running.length < options.concurrency) reading ??= quiet(batches.next());
      const awaited = [reading, running[0]].filter((promise) => promise !== undefined);
      if (awaited.length === 0) return;
      // A slow input must not hold back answers that are there, nor a slow answer the input.
      const event = await firstOf<Answer[] | IteratorResult<Batch, void>>(awaited, signal);
      if (Array.isArray(event)) {
        void running.shift();
        yield* event;
      } else {
        reading = undefined;
        if (event.done) more = false;
        else running.push(quiet(send(predict, event.value, { ...options, signal })));
      }
    }
  } finally {
    left.abort();
    const closed = quiet(batches.return());
    // An input that is waiting for its next document can't be closed before that has come.
    if (!reading) await closed;
  }
}

/** One batch's answers. A batch that a full server turns away is sent again when the server says, within its time. */
async function send(predict: Predict, batch: Batch, options: Bulk): Promise<Answer[]> {
  const deadline = Date.now() + options.timeoutMs;
  const { routingKey, includeFeatures, signal } = options;
  const { version } = await options.plan;
  for (;;) {
    try {
      const timeoutMs = deadline - Date.now();
      const result = await predict(batch.texts, { version, routingKey, includeFeatures, signal, timeoutMs });
      return result.predictions.map((prediction, position) => ({
        ...prediction,
        index: batch.start + position,
        version: result.version,
      }));
    } catch (error) {
      if (options.onInvalid && isAboutDocuments(error)) return sendApart(predict, batch, options, error);
      const wait = error instanceof ResourceExhausted ? error.retryAfterMs : undefined;
      if (wait === undefined || Date.now() + wait >= deadline) {
        throw error instanceof AmnesticError ? placed(error, batch) : error;
      }
      await pause(wait, signal);
    }
  }
}

/** The answers of a batch that was refused: halved until what is refused is one document, which is reported. */
async function sendApart(predict: Predict, batch: Batch, options: Bulk, error: InvalidArgument): Promise<Answer[]> {
  const { start, texts } = batch;
  if (texts.length === 1) {
    options.onInvalid?.(placed(error, batch), start);
    return [];
  }
  const middle = Math.ceil(texts.length / 2);
  const first = await send(predict, { start, texts: texts.slice(0, middle) }, options);
  return [...first, ...(await send(predict, { start: start + middle, texts: texts.slice(middle) }, options))];
}

function isAboutDocuments(error: unknown): error is InvalidArgument {
  return error instanceof InvalidArgument && error.fieldViolations.every(({ field }) => field.startsWith("documents"));
}

/** The error of a batch, with the places of its documents counted through the whole input. */
function placed(error: AmnesticError, { start }: Batch): AmnesticError {
  if (start === 0) return error;
  const detail = `${error.detail}, counted from document ${start + 1} of the input`;
  const { cause, retryAfterMs, reason } = error;
  const fieldViolations = error.fieldViolations.map(({ field, description }) => ({
    field: field.replace(/^documents\[(\d+)\]/, (_, position) => `documents[${start + Number(position)}]`),
    description,
  }));
  return errorOf(error.code, detail, { cause, fieldViolations, retryAfterMs, reason });
}

/** The input is opened before the plan is there: the lines of a readline are lost until someone reads them. */
async function* inBatches(
  texts: Iterable<string> | AsyncIterable<string>,
  plan: Promise<Plan>,
): AsyncGenerator<Batch, void> {
  let batch: Batch & { texts: string[] } = { start: 0, texts: [] };
  let bytes = 0;
  const cut = (): Batch => {
    const done = batch;
    batch = { start: done.start + done.texts.length, texts: [] };
    bytes = 0;
    return done;
  };
  for await (const text of texts) {
    const size = sizeOf(text);
    if (batch.texts.length > 0 && bytes + size > BATCH_BYTES) yield cut();
    batch.texts.push(text);
    bytes += size;
    if (batch.texts.length >= (await plan).batch) yield cut();
  }
  if (batch.texts.length > 0) yield cut();
}

/** Bytes that a document adds to a call; what is no string is refused when its batch is sent. */
function sizeOf(text: unknown): number {
  return typeof text === "string" ? Buffer.byteLength(text) : 0;
}

/** The first of the promises; rejects with Cancelled as soon as the signal says so. */
async function firstOf<T>(promises: Promise<T>[], signal: AbortSignal): Promise<T> {
  // Made anew each time: a promise that is raced again and again keeps all that ever won.
  let stop = (): void => undefined;
  const stopped = new Promise<never>((_, reject) => {
    stop = () => {
      reject(cancelledBy(signal));
    };
  });
  signal.addEventListener("abort", stop);
  if (signal.aborted) stop();
  try {
    return await Promise.race([stopped, ...promises]);
  } finally {
    signal.removeEventListener("abort", stop);
  }
}

/** The same promise, whose rejection may come before anyone waits for it. */
function quiet<T>(promise: Promise<T>): Promise<T> {
  promise.catch(() => undefined);
  return promise;
}
