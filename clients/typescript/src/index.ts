/**
 * Client of Amnestic.
 *
 *     const client = new AmnesticClient("127.0.0.1:8001");
 *     const { predictions } = await client.predict("patient in acute renal failure");
 */

export { AmnesticClient } from "./client.js";
export {
  AlreadyExists,
  AmnesticError,
  Cancelled,
  DeadlineExceeded,
  FailedPrecondition,
  Internal,
  InvalidArgument,
  NotFound,
  PermissionDenied,
  ResourceExhausted,
  Unauthenticated,
  Unavailable,
  type StatusCode,
} from "./errors.js";
export type * from "./types.js";
