import { setTimeout } from "node:timers/promises";

import { cancelledBy } from "./errors.js";

/** Wait; rejects with Cancelled as soon as the signal says so. */
export async function pause(milliseconds: number, signal: AbortSignal | undefined): Promise<void> {
  try {
    await setTimeout(milliseconds, undefined, signal ? { signal } : {});
  } catch (error) {
    throw signal?.aborted ? cancelledBy(signal) : error;
  }
}
