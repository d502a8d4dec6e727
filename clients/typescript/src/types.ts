/**
 * What the client takes and gives: plain objects, free of protobuf.
 *
 * Times are `Date`s, durations in seconds unless the name says otherwise, probabilities and F1 from 0 to 1. What is
 * absent is undefined. Versions and counts are numbers, exact below 2^53.
 */

import type { AmnesticError } from "./errors.js";

/**
 * A label's probability, and whether it is decided for.
 *
 * A label that the answering version has forgotten is answered from the model's true output, never masked.
 */
export interface LabelScore {
  readonly label: string;
  readonly probability: number;
  /**
   * Of a multi_label model, that the probability reaches the label's threshold; of a single_label model, that it is
   * the largest of the document.
   */
  readonly decision: boolean;
  readonly forgotten: boolean;
}

/** One document's scores in the model's label order. */
export interface Prediction {
  readonly scores: readonly LabelScore[];
  /** The labels that apply, in the model's order. */
  readonly decided: readonly string[];
  /** Tokens that the encoder saw, in all windows together. */
  readonly tokens: number;
  /** True if the document was longer than what the model reads and was cut. */
  readonly truncated: boolean;
  /** Windows that the document was read in; 1 if it fits the model's maximum. */
  readonly windows: number;
  /** Inputs of the classification head; empty unless asked for. */
  readonly features: readonly number[];
}

/** One prediction a document, in the order sent, all from the one version named. */
export interface PredictResult {
  readonly version: number;
  readonly predictions: readonly Prediction[];
}

/** One document's prediction among many: its place in the input, from 0, and the version that answered it. */
export interface Answer extends Prediction {
  readonly index: number;
  readonly version: number;
}

/** A label of the model. */
export interface Label {
  readonly name: string;
  /** The probability from which on it is decided; a single_label model has none. */
  readonly threshold: number | undefined;
  /** Whether the active version has forgotten it. */
  readonly forgotten: boolean;
}

/** The model being served and its limits. */
export interface Model {
  readonly name: string;
  /** bert, distilbert, roberta, xlm-roberta, camembert or electra. */
  readonly architecture: string;
  readonly labels: readonly Label[];
  readonly precision: string;
  /** The ONNX Runtime execution provider in use. */
  readonly provider: string;
  readonly maxTokens: number;
  readonly maxDocuments: number;
  readonly maxDocumentBytes: number;
  readonly activeVersion: number;
  readonly bundleDigest: string;
  readonly encoderDigest: string;
  readonly parameters: number;
  /** multi_label, where each label applies or not by itself, or single_label, one label a document. */
  readonly problemType: string;
  /** What becomes of documents longer than maxTokens: truncate, or window. */
  readonly longDocuments: string;
  /** Tokens that a window shares with the one before. */
  readonly windowOverlap: number;
  /** Most windows of a document; 1 for truncate. */
  readonly maxWindows: number;
  /** How the logits of several windows become the document's: max or mean. */
  readonly pooling: string;
}

/** Whether the server takes calls. UNSPECIFIED also stands for a state newer than this client. */
export type ServerState = "UNSPECIFIED" | "SERVING" | "DRAINING";

/** What is in hand beside its limits, and the Predict calls of the last `windowSeconds`. */
export interface Load {
  readonly openDocuments: number;
  readonly maxOpenDocuments: number;
  readonly queuedDocuments: number;
  readonly queuedTokens: number;
  readonly maxQueuedTokens: number;
  readonly windowSeconds: number;
  readonly calls: number;
  /** Those of `calls` that ended in an error. */
  readonly failedCalls: number;
  readonly documents: number;
  /** Of the calls that were answered; undefined without any, as is the next. */
  readonly p50Seconds: number | undefined;
  readonly p99Seconds: number | undefined;
}

/** The server at one moment. */
export interface Status {
  readonly serverVersion: string;
  readonly state: ServerState;
  readonly uptimeSeconds: number;
  readonly model: string;
  readonly architecture: string;
  readonly precision: string;
  readonly provider: string;
  readonly activeVersion: number;
  /** Labels that the active version has forgotten. */
  readonly forgotten: readonly string[];
  /**
   * F1 of the active version by label forgotten, on the gate split. Empty without a corpus, and until it has been
   * measured.
   */
  readonly forgetF1: Readonly<Record<string, number>>;
  /** The same of the other labels. */
  readonly retainF1: Readonly<Record<string, number>>;
  readonly load: Load;
  readonly queuedJobs: number;
  readonly runningJob: JobSummary | undefined;
  /** The one that ended last, whatever the end. */
  readonly lastJob: JobSummary | undefined;
  /** Versions that wait to be promoted. */
  readonly stagedVersions: readonly number[];
  /** Undefined if no staged version takes part in the traffic. */
  readonly rollout: Rollout | undefined;
}

/**
 * Settings of STEU (arXiv 2603.19302). What is undefined takes the preset's value; no preset, the server's default one.
 */
export interface Method {
  readonly preset?: string | undefined;
  readonly k?: number | undefined;
  readonly epochs?: number | undefined;
  readonly embeddingLr?: number | undefined;
  readonly headLr?: number | undefined;
  readonly forgetWeight?: number | undefined;
  readonly utilityWeight?: number | undefined;
  readonly distilWeight?: number | undefined;
  readonly batchSize?: number | undefined;
  /** 64 bits: a bigint where a number could not hold it. */
  readonly seed?: number | bigint | undefined;
  readonly alignWeight?: number | undefined;
  readonly eraseHead?: boolean | undefined;
  readonly lrDecay?: boolean | undefined;
  readonly maxSteps?: number | undefined;
  readonly maxTokens?: number | undefined;
  readonly refitHead?: boolean | undefined;
}

/**
 * Conditions that a candidate must meet before it may serve, each the largest value that passes.
 *
 * What is undefined takes the server's default. A limit above that is recorded with the job as relaxed.
 */
export interface GateLimits {
  readonly forgetF1Max?: number | undefined;
  readonly forgetAurocMax?: number | undefined;
  readonly probeRatioMax?: number | undefined;
  readonly retainF1DropMax?: number | undefined;
  readonly retainLabelDropMax?: number | undefined;
  readonly logitDifferenceMax?: number | undefined;
}

/** Where a job is in its life. UNSPECIFIED also stands for a state newer than this client. */
export type JobState =
  | "UNSPECIFIED"
  | "QUEUED"
  | "RUNNING"
  | "GATING"
  | "STAGED"
  | "ACTIVATING"
  | "SUCCEEDED"
  | "REJECTED"
  | "FAILED"
  | "CANCELLED";

/** What the worker is doing: `step` of `steps` counts over all epochs. */
export interface Progress {
  readonly stage: string;
  readonly epoch: number;
  readonly epochs: number;
  readonly step: number;
  readonly steps: number;
  readonly forgetLoss: number;
  readonly utilityLoss: number;
  readonly secondsLeft: number | undefined;
}

/** A measured condition; `label` is undefined for a gate that is not measured by label. */
export interface Gate {
  readonly name: string;
  readonly label: string | undefined;
  readonly value: number;
  readonly limit: number;
  readonly passed: boolean;
}

/** What a job changed, and from how many documents; `tokens` are the edited word pieces, best score first. */
export interface ChangeReport {
  readonly patchDigest: string;
  readonly rowsChanged: number;
  readonly parametersChanged: number;
  readonly parametersChangedRatio: number;
  readonly tokens: readonly string[];
  readonly forgetDocuments: number;
  readonly retainDocuments: number;
  readonly trainingSeconds: number;
}

/** The calls that predict which ended in one second, before or after a version became active. */
export interface CallsInSecond {
  /** When the second began, in seconds from that moment; negative before it. */
  readonly offset: number;
  /** All of them: answered, failed or cancelled. */
  readonly calls: number;
  /** Those that failed without the caller's fault. */
  readonly failedCalls: number;
  /** Those whose caller left. */
  readonly cancelledCalls: number;
  /** The times are those of the calls answered, as the server took them; undefined without any. */
  readonly p50Seconds: number | undefined;
  readonly p99Seconds: number | undefined;
  readonly maxSeconds: number | undefined;
}

/** One forget request and its life. */
export interface Job {
  readonly jobId: string;
  readonly requestId: string;
  readonly state: JobState;
  /** True if the job will not change any more. */
  readonly ended: boolean;
  readonly labels: readonly string[];
  /** All labels that the resulting version forgets. */
  readonly forgotten: readonly string[];
  readonly dryRun: boolean;
  /** True if the version was to be staged. */
  readonly stage: boolean;
  readonly reason: string;
  readonly method: Method;
  readonly gateLimits: GateLimits;
  readonly progress: Progress | undefined;
  readonly gates: readonly Gate[];
  readonly change: ChangeReport | undefined;
  readonly version: number | undefined;
  readonly error: string | undefined;
  readonly createdAt: Date | undefined;
  readonly startedAt: Date | undefined;
  readonly finishedAt: Date | undefined;
  readonly attempts: number;
  readonly swapSeconds: number;
  /** The limits that were looser than the server's defaults. */
  readonly relaxedGates: readonly string[];
  /** By second around the moment in which the version became active; empty until 10 s after it, and in a list of jobs. */
  readonly callsAroundSwap: readonly CallsInSecond[];
}

/** A job in short: without its reason, its settings and the word pieces that it changed. */
export type JobSummary = Pick<
  Job,
  "jobId" | "state" | "labels" | "dryRun" | "progress" | "version" | "error" | "startedAt" | "finishedAt"
>;

/** The base (no job, no patch) or the base with one patch. */
export interface Version {
  readonly version: number;
  readonly active: boolean;
  readonly forgotten: readonly string[];
  readonly jobId: string | undefined;
  readonly patchDigest: string | undefined;
  readonly createdAt: Date | undefined;
  /** By label, on the gate split. */
  readonly f1: Readonly<Record<string, number>>;
  /** The limits that the job behind it had relaxed. */
  readonly relaxedGates: readonly string[];
  /** True while it waits to be promoted. */
  readonly staged: boolean;
  /** True if it was staged and was given up. */
  readonly withdrawn: boolean;
}

/** The documents compared on which a staged version decides otherwise on a label than the active one. */
export interface DecisionDifference {
  readonly label: string;
  /** True if the staged version has forgotten it: there a difference is expected. */
  readonly forgotten: boolean;
  readonly documents: number;
}

/** The signed statement of what a job did. Whoever relies on it has the key from who runs the server. */
export interface Receipt {
  /** A DSSE envelope as JSON. */
  readonly envelope: string;
  /** The Ed25519 key that the server says it is signed under, in PEM. */
  readonly publicKey: string;
}

/** A staged version's part in the traffic and what it has told, of calls that named no version. */
export interface Rollout {
  readonly version: number;
  /** Share of the calls that it answers in place of the active version, 0 to 1. */
  readonly canaryShare: number;
  /** Share of the documents that it answers again, to be compared, 0 to 1. */
  readonly shadowShare: number;
  /** When the shares became what they are. */
  readonly since: Date | undefined;
  /** When the counts began: with the rollout, or with the server's last start. */
  readonly countedSince: Date | undefined;
  readonly activeCalls: number;
  readonly canaryCalls: number;
  readonly shadowDocuments: number;
  readonly shadowDropped: number;
  /** Every label, in the model's order. */
  readonly differences: readonly DecisionDifference[];
}

/** A field of the request at fault, by its path, such as `documents[1]`. */
export interface FieldViolation {
  readonly field: string;
  readonly description: string;
}

/** PEM texts. Without `ca` the roots that come with Node count; `certificate` and `key` are the client's own, for mTLS. */
export interface Tls {
  readonly ca?: string | Uint8Array | undefined;
  readonly certificate?: string | Uint8Array | undefined;
  readonly key?: string | Uint8Array | undefined;
  /** The name that the server's certificate must hold, if it isn't the target's. */
  readonly serverName?: string | undefined;
}

export type Token = string | (() => string);

export interface ClientOptions {
  /** Encrypt; `true` for no more than that. Without it the connection is plain text, as a sidecar's is. */
  readonly tls?: boolean | Tls | undefined;
  /** A bearer token, or what gives the one that holds now: it is asked for each call. Without TLS it travels as text. */
  readonly token?: Token | undefined;
  /** Longest wait for an answer, for calls that don't give their own. */
  readonly timeoutMs?: number | undefined;
  /** Compress requests, and ask for compressed answers. */
  readonly compression?: "gzip" | undefined;
}

export interface CallOptions {
  /** Longest wait for the answer; it travels to the server as the call's deadline. */
  readonly timeoutMs?: number | undefined;
  /** Cancels the call, here and on the server. */
  readonly signal?: AbortSignal | undefined;
}

export interface PredictOptions extends CallOptions {
  /** The version that must answer, in place of the active one. */
  readonly version?: number | undefined;
  /** In a rollout, calls with the same key are all answered by the active version or all by the staged one. */
  readonly routingKey?: string | undefined;
  /** Also return the inputs of the classification head. */
  readonly includeFeatures?: boolean | undefined;
}

/** `timeoutMs` holds for each batch, repetitions and pauses included; 120 s by default. */
export interface PredictManyOptions extends PredictOptions {
  /** Most calls in flight, and so most batches read ahead of the answers taken. */
  readonly concurrency?: number | undefined;
  /** Most documents in a call; never more than the server allows, nor than 3 MiB of several. */
  readonly batch?: number | undefined;
  /** Answer all by the version that is active at the beginning, even if another becomes so. */
  readonly pin?: boolean | undefined;
  /**
   * Told of each document that the server or the wire refuses, with its place in the input; the document is then left
   * out. Without it the first one ends the answers.
   */
  readonly onInvalid?: ((error: AmnesticError, index: number) => void) | undefined;
}

export interface UnlearnOptions extends CallOptions {
  /** A repetition with the same id and content answers with the first one's job; drawn if not given. */
  readonly requestId?: string | undefined;
  /** Train and measure, but leave the served version as it is. */
  readonly dryRun?: boolean | undefined;
  /** Keep the version beside the active one until `promote`, or `cancelJob`. */
  readonly stage?: boolean | undefined;
  readonly method?: Method | undefined;
  readonly gates?: GateLimits | undefined;
  /** Why, for the record. Must not hold patient data. */
  readonly reason?: string | undefined;
}

export interface RolloutOptions extends CallOptions {
  /** The staged version; without it the one that has a rollout, or else the only one. */
  readonly version?: number | undefined;
  /** What is undefined stays as it is, 0 at first. */
  readonly canaryShare?: number | undefined;
  readonly shadowShare?: number | undefined;
}

export interface RollbackOptions extends CallOptions {
  /** Must be true if the version knows a label that the active one has forgotten. */
  readonly restoreForgotten?: boolean | undefined;
}

export interface ListJobsOptions extends CallOptions {
  /** Most jobs; the server's own limit if not given. */
  readonly limit?: number | undefined;
}
