import type { DescMessage, DescMethodUnary, MessageInitShape, MessageShape } from "@bufbuild/protobuf";

import { predictMany } from "./bulk.js";
import * as convert from "./convert.js";
import { DeadlineExceeded, InvalidArgument, Unavailable } from "./errors.js";
import { PredictionService } from "./generated/amnestic/v1/prediction_pb.js";
import { UnlearningService } from "./generated/amnestic/v1/unlearning_pb.js";
import { pause } from "./pause.js";
import * as settings from "./settings.js";
import { Transport } from "./transport.js";
import type {
  Answer,
  CallOptions,
  ClientOptions,
  Job,
  ListJobsOptions,
  Model,
  PredictManyOptions,
  PredictOptions,
  PredictResult,
  Receipt,
  Rollout,
  RollbackOptions,
  RolloutOptions,
  Status,
  UnlearnOptions,
  Version,
} from "./types.js";
import { watchJob } from "./watch.js";

/**
 * A connection to one Amnestic server, which may be shared by everything in the process.
 *
 * It connects at the first call and stays until `close`. Every call rejects with an `AmnesticError`. Calls that are
 * safe to repeat are retried by gRPC while the server is unavailable, predictions also while it is full, within their
 * timeout.
 */
export class AmnesticClient {
  readonly #transport: Transport;
  readonly #timeoutMs: number | undefined;

  /** `target` is host:port or unix:/path/of/socket. */
  constructor(target: string = settings.TARGET, options: ClientOptions = {}) {
    this.#transport = new Transport(target, options);
    this.#timeoutMs = options.timeoutMs;
  }

  /** End the connection; calls in flight are cancelled. */
  close(): void {
    this.#transport.close();
  }

  /** Classify one or many documents, all by the same version: the active one, or the one pinned. */
  async predict(texts: string | readonly string[], options: PredictOptions = {}): Promise<PredictResult> {
    const { method } = PredictionService;
    const request = convert.predictRequest(texts, options);
    return convert.predictResult(await this.#unary(method.predict, request, options));
  }

  /**
   * Classify any number of documents, yielding one answer each in the order of `texts`.
   *
   * The input is read only as fast as answers are taken. Each answer names its version: without `version` or `pin`
   * a new one may become active on the way. Leaving early cancels the calls in flight.
   */
  async *predictMany(
    texts: Iterable<string> | AsyncIterable<string>,
    options: PredictManyOptions = {},
  ): AsyncGenerator<Answer, void, undefined> {
    if (typeof texts === "string") throw new InvalidArgument("texts is one document; give predict that");
    const { concurrency = settings.CONCURRENCY, batch = settings.BATCH } = options;
    for (const [name, value] of Object.entries({ concurrency, batch })) {
      if (!Number.isInteger(value) || value < 1) throw new InvalidArgument(`${name} is not a positive integer`);
    }
    const plan = this.getModel(options).then(({ maxDocuments, activeVersion }) => ({
      batch: Math.min(batch, maxDocuments),
      version: options.version ?? (options.pin ? activeVersion : undefined),
    }));
    const { timeoutMs } = this.#within(options, settings.PREDICT_MANY_TIMEOUT);
    yield* predictMany((some, each) => this.predict(some, each), texts, { ...options, plan, concurrency, timeoutMs });
  }

  /** Describe the model being served, with its labels and limits. */
  async getModel(options: CallOptions = {}): Promise<Model> {
    const { method } = PredictionService;
    return convert.model(await this.#unary(method.getModel, {}, options));
  }

  /** How the server is: what serves and how well, under what load, and which job runs. One that drains answers too. */
  async status(options: CallOptions = {}): Promise<Status> {
    return convert.status(await this.#unary(PredictionService.method.getStatus, {}, options));
  }

  /** Ask for labels to be forgotten; answers at once with the job. */
  async unlearn(labels: string | readonly string[], options: UnlearnOptions = {}): Promise<Job> {
    const { method } = UnlearningService;
    const request = convert.unlearnRequest(labels, options);
    return convert.job((await this.#unary(method.unlearn, request, options)).job);
  }

  /**
   * Yield the job as it is and after each change, until it has ended.
   *
   * The watch survives a restart of the server. It has no deadline unless `timeoutMs` sets one for the whole.
   */
  watchJob(jobId: string, options: CallOptions = {}): AsyncGenerator<Job, void, undefined> {
    return watchJob(this.#transport, jobId, options);
  }

  /** Watch the job until it has ended, whatever the end, or is staged, and return it so. */
  async waitForJob(jobId: string, options: CallOptions = {}): Promise<Job> {
    for await (const job of this.watchJob(jobId, options)) if (job.ended || job.state === "STAGED") return job;
    throw new Unavailable("the watch ended before the job");
  }

  async getJob(jobId: string, options: CallOptions = {}): Promise<Job> {
    const { getJob } = UnlearningService.method;
    const request = convert.request(getJob.input, { jobId });
    return convert.job((await this.#unary(getJob, request, options)).job);
  }

  /**
   * The signed statement of what a job did and what was measured: a DSSE envelope as JSON, with an in-toto statement in
   * it. Rejects with `FailedPrecondition` unless the job succeeded or was rejected.
   */
  async receipt(jobId: string, options: CallOptions = {}): Promise<Receipt> {
    const { getReceipt } = UnlearningService.method;
    const request = convert.request(getReceipt.input, { jobId });
    const { envelope, publicKey } = await this.#unary(getReceipt, request, options);
    return { envelope, publicKey };
  }

  /** The newest jobs first. */
  async listJobs(options: ListJobsOptions = {}): Promise<Job[]> {
    const { listJobs } = UnlearningService.method;
    const request = convert.request(listJobs.input, { limit: options.limit });
    return (await this.#unary(listJobs, request, options)).jobs.map(convert.job);
  }

  /** Stop a job, or withdraw a staged one's version; rejects with FailedPrecondition once it has begun to activate. */
  async cancelJob(jobId: string, options: CallOptions = {}): Promise<Job> {
    const { cancelJob } = UnlearningService.method;
    const request = convert.request(cancelJob.input, { jobId });
    return convert.job((await this.#unary(cancelJob, request, options)).job);
  }

  /** Every version, oldest first. */
  async listVersions(options: CallOptions = {}): Promise<Version[]> {
    const { listVersions } = UnlearningService.method;
    return (await this.#unary(listVersions, {}, options)).versions.map(convert.version);
  }

  /** Make an earlier version the active one; answers when no call to the version left is in flight. */
  async rollback(version: number, reason: string, options: RollbackOptions = {}): Promise<Version> {
    const { rollback } = UnlearningService.method;
    const { restoreForgotten } = options;
    const request = convert.request(rollback.input, { version, reason, restoreForgotten });
    return convert.version((await this.#unary(rollback, request, options)).version);
  }

  /**
   * Make the active version the bundle itself, for good, and delete every other; nothing brings them back.
   *
   * The version must be the active one, and no job unfinished. Answers when nothing is left that knows what was
   * forgotten; after a timeout the purge goes on. Where access is controlled, it needs the role admin.
   */
  async purge(version: number, reason: string, options: CallOptions = {}): Promise<Version> {
    const { purge } = UnlearningService.method;
    const request = convert.request(purge.input, { version, reason });
    return convert.version((await this.#unary(purge, request, options)).version);
  }

  /** Make a staged version the active one; answers when no call to the version before is in flight. */
  async promote(version: number, options: CallOptions = {}): Promise<Version> {
    const { promoteVersion } = UnlearningService.method;
    const request = convert.request(promoteVersion.input, { version });
    return convert.version((await this.#unary(promoteVersion, request, options)).version);
  }

  /** Give a staged version its shares of the traffic, 0 to 1. */
  async setRollout(options: RolloutOptions): Promise<Rollout> {
    const { setRollout } = UnlearningService.method;
    const { version, canaryShare, shadowShare } = options;
    const request = convert.request(setRollout.input, { version, canaryShare, shadowShare });
    return convert.rollout((await this.#unary(setRollout, request, options)).rollout);
  }

  /** The staged version that takes part in the traffic, with what it has told; undefined if none does. */
  async rollout(options: CallOptions = {}): Promise<Rollout | undefined> {
    const { rollout } = await this.#unary(UnlearningService.method.getRollout, {}, options);
    return rollout && convert.rollout(rollout);
  }

  /** Ask the standard health service once; false if the server is away, warming up or draining. */
  async isReady(options: CallOptions = {}): Promise<boolean> {
    try {
      return await this.#transport.isServing(this.#within(options, settings.PROBE_TIMEOUT));
    } catch (error) {
      if (error instanceof Unavailable || error instanceof DeadlineExceeded) return false;
      throw error;
    }
  }

  /** Resolve once the server is ready; rejects with DeadlineExceeded if it is not within the timeout. */
  async waitUntilReady({ timeoutMs = settings.READY_TIMEOUT, signal }: CallOptions = {}): Promise<void> {
    const deadline = Date.now() + timeoutMs;
    for (let left = timeoutMs; left > 0; left = deadline - Date.now()) {
      if (await this.isReady({ timeoutMs: Math.min(left, settings.PROBE_TIMEOUT), signal })) return;
      await pause(settings.PROBE_INTERVAL, signal);
    }
    throw new DeadlineExceeded(`the server was not ready within ${timeoutMs} ms`);
  }

  async #unary<Q extends DescMessage, A extends DescMessage>(
    method: DescMethodUnary<Q, A>,
    request: MessageInitShape<Q>,
    options: CallOptions,
  ): Promise<MessageShape<A>> {
    return this.#transport.unary(method, request, this.#within(options, settings.timeoutOf(method)));
  }

  /** The options of a call with its timeout: its own, the client's, or the default of its kind. */
  #within(options: CallOptions, byDefault: number): CallOptions & { timeoutMs: number } {
    return { signal: options.signal, timeoutMs: options.timeoutMs ?? this.#timeoutMs ?? byDefault };
  }
}
