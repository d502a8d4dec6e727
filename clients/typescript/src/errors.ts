/**
 * Everything that a call can reject with, and the one place where gRPC's errors become ours.
 *
 *     AmnesticError             any other status code; see `code`
 *     ├── InvalidArgument       the request can never succeed
 *     ├── NotFound              no such label, version or job
 *     ├── AlreadyExists         the request id or the label is taken by another job
 *     ├── FailedPrecondition    not in the present state of the server
 *     ├── Unauthenticated       the token or the certificate says nothing, or nothing that holds
 *     ├── PermissionDenied      the caller has not the role for it
 *     ├── ResourceExhausted     the server's queue is full, or the message too large; retry later
 *     ├── DeadlineExceeded      no answer within the timeout
 *     ├── Unavailable           no server there, or it is shutting down
 *     ├── Cancelled             the call was cancelled, here or there
 *     └── Internal              the server failed
 *
 * No text repeats what was sent: a document never travels in an error.
 */

import { fromBinary, type DescMessage, type MessageShape } from "@bufbuild/protobuf";
import { anyUnpack, durationMs, type Any } from "@bufbuild/protobuf/wkt";
import { Metadata, status, type ServiceError } from "@grpc/grpc-js";

import {
  BadRequestSchema,
  ErrorInfoSchema,
  RetryInfoSchema,
  StatusSchema,
} from "./generated/google/rpc/error_details_pb.js";
import type { FieldViolation } from "./types.js";

/** A gRPC status code by its name. */
export type StatusCode = keyof typeof status;

/** What a server may say beside the status. */
export interface ErrorDetails {
  readonly fieldViolations?: readonly FieldViolation[];
  readonly retryAfterMs?: number | undefined;
  readonly reason?: string | undefined;
  readonly cause?: unknown;
}

/** A call failed: `code` is its gRPC status, `detail` a sentence for people. */
export class AmnesticError extends Error {
  readonly code: StatusCode;
  readonly detail: string;
  /** The fields of the request at fault; empty if the server names none. */
  readonly fieldViolations: readonly FieldViolation[];
  /** Milliseconds after which to ask again, if the server says so. */
  readonly retryAfterMs: number | undefined;
  /** Why, in upper snake case and fixed for each cause, if the server says so. */
  readonly reason: string | undefined;

  constructor(detail: string, details: ErrorDetails = {}, code: StatusCode = "UNKNOWN") {
    super(detail, details.cause === undefined ? {} : { cause: details.cause });
    this.name = new.target.name;
    this.code = code;
    this.detail = detail;
    this.fieldViolations = details.fieldViolations ?? [];
    this.retryAfterMs = details.retryAfterMs;
    this.reason = details.reason;
  }
}

export class InvalidArgument extends AmnesticError {
  override readonly code = "INVALID_ARGUMENT";
}

export class NotFound extends AmnesticError {
  override readonly code = "NOT_FOUND";
}

export class AlreadyExists extends AmnesticError {
  override readonly code = "ALREADY_EXISTS";
}

export class FailedPrecondition extends AmnesticError {
  override readonly code = "FAILED_PRECONDITION";
}

export class Unauthenticated extends AmnesticError {
  override readonly code = "UNAUTHENTICATED";
}

export class PermissionDenied extends AmnesticError {
  override readonly code = "PERMISSION_DENIED";
}

export class ResourceExhausted extends AmnesticError {
  override readonly code = "RESOURCE_EXHAUSTED";
}

export class DeadlineExceeded extends AmnesticError {
  override readonly code = "DEADLINE_EXCEEDED";
}

export class Unavailable extends AmnesticError {
  override readonly code = "UNAVAILABLE";
}

export class Cancelled extends AmnesticError {
  override readonly code = "CANCELLED";
}

export class Internal extends AmnesticError {
  override readonly code = "INTERNAL";
}

const BY_CODE: Partial<Record<StatusCode, new (detail: string, details?: ErrorDetails) => AmnesticError>> = {
  INVALID_ARGUMENT: InvalidArgument,
  NOT_FOUND: NotFound,
  ALREADY_EXISTS: AlreadyExists,
  FAILED_PRECONDITION: FailedPrecondition,
  UNAUTHENTICATED: Unauthenticated,
  PERMISSION_DENIED: PermissionDenied,
  RESOURCE_EXHAUSTED: ResourceExhausted,
  DEADLINE_EXCEEDED: DeadlineExceeded,
  UNAVAILABLE: Unavailable,
  CANCELLED: Cancelled,
  INTERNAL: Internal,
};

/** The error of a status. */
export function errorOf(code: StatusCode, detail: string, details: ErrorDetails = {}): AmnesticError {
  const Kind = BY_CODE[code];
  return Kind ? new Kind(detail, details) : new AmnesticError(detail, details, code);
}

/** The error for one of gRPC's; what is none of gRPC's is a fault of this client and comes back as it is. */
export function fromGrpc(error: unknown): unknown {
  if (!isServiceError(error)) return error;
  const code = (status[error.code] as StatusCode | undefined) ?? "UNKNOWN";
  const detail = error.details || code.toLowerCase().replaceAll("_", " ");
  return errorOf(code, detail, detailsOf(error.metadata));
}

/** The error of a call that was cancelled here, by the caller's signal. */
export function cancelledBy(signal: AbortSignal): Cancelled {
  return new Cancelled("the call was cancelled by the caller", { cause: signal.reason });
}

function isServiceError(error: unknown): error is ServiceError {
  return error instanceof Error && "metadata" in error && error.metadata instanceof Metadata;
}

function detailsOf(metadata: Metadata): ErrorDetails {
  const messages = messagesOf(metadata);
  const retry = find(messages, RetryInfoSchema)?.retryDelay;
  return {
    fieldViolations: (find(messages, BadRequestSchema)?.fieldViolations ?? []).map(({ field, description }) => ({
      field,
      description,
    })),
    retryAfterMs: retry ? durationMs(retry) : pushback(metadata),
    reason: find(messages, ErrorInfoSchema)?.reason,
  };
}

/** The details beside the status. What can't be read is as good as absent: the status itself must not be lost. */
function messagesOf(metadata: Metadata): Any[] {
  const [bytes] = metadata.get("grpc-status-details-bin");
  if (!(bytes instanceof Uint8Array)) return [];
  try {
    return fromBinary(StatusSchema, bytes).details;
  } catch {
    return [];
  }
}

function find<Desc extends DescMessage>(messages: readonly Any[], schema: Desc): MessageShape<Desc> | undefined {
  try {
    return messages.map((message) => anyUnpack(message, schema)).find((found) => found !== undefined);
  } catch {
    return undefined;
  }
}

/** Milliseconds that gRPC's own retries are told to wait; a negative number means never. */
function pushback(metadata: Metadata): number | undefined {
  const [text] = metadata.get("grpc-retry-pushback-ms");
  return typeof text === "string" && /^\d{1,9}$/.test(text) ? Number(text) : undefined;
}
