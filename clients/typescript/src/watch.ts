/** A watch as it outlives its streams. */

import { isDeepStrictEqual } from "node:util";

import * as convert from "./convert.js";
import { Cancelled, Unavailable } from "./errors.js";
import { UnlearningService } from "./generated/amnestic/v1/unlearning_pb.js";
import { pause } from "./pause.js";
import { WATCH_FIRST_PAUSE, WATCH_LONGEST_PAUSE, WATCH_RECONNECTS } from "./settings.js";
import type { Transport } from "./transport.js";
import type { CallOptions, Job } from "./types.js";

/**
 * Yield the job as it is and after each change, until it has ended.
 *
 * The server may restart while the job goes on, so a stream that breaks is taken up again, a bounded number of times
 * in a row; what it then repeats is left out. One that never answered is not: then there is no server or no such job.
 */
export async function* watchJob(
  transport: Transport,
  jobId: string,
  { timeoutMs = Infinity, signal }: CallOptions,
): AsyncGenerator<Job, void, undefined> {
  const deadline = Date.now() + timeoutMs;
  const call = UnlearningService.method.watchJob;
  const request = convert.request(call.input, { jobId });
  let last: Job | undefined;
  let broken = 0;
  for (;;) {
    try {
      for await (const answer of transport.serverStream(call, request, { timeoutMs: deadline - Date.now(), signal })) {
        broken = 0;
        const job = convert.job(answer.job);
        if (isDeepStrictEqual(job, last)) continue;
        last = job;
        yield job;
        if (job.ended) return;
      }
      throw new Unavailable("the server ended the watch before the job");
    } catch (error) {
      // A server that is stopped by force may tell of it as a cancelled call.
      const dropped = error instanceof Cancelled && !signal?.aborted && !transport.closed;
      const wait = pauseBefore(++broken);
      if (!(dropped || error instanceof Unavailable) || last === undefined || wait === undefined) throw error;
      await pause(Math.min(wait, deadline - Date.now()), signal);
    }
  }
}

/** Milliseconds before a broken watch is taken up for the nth time in a row; undefined if it shall not be. */
export function pauseBefore(n: number): number | undefined {
  return n > WATCH_RECONNECTS ? undefined : Math.min(WATCH_FIRST_PAUSE * 2 ** (n - 1), WATCH_LONGEST_PAUSE);
}
