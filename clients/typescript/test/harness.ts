/**
 * A real Amnestic server, started and stopped by the tests.
 *
 * `AMNESTIC_TEST_SERVE` is the command that serves a bundle, as a JSON list without flags of ports; the tests that need a
 * server are skipped without it. `AMNESTIC_TEST_SETTINGS` are a method and gates that forget a label of it.
 */

import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";

import type { GateLimits, Method } from "amnestic-client";

const READY = /^ready: grpc=(?<target>\S+) /;

export const serveCommand = JSON.parse(process.env["AMNESTIC_TEST_SERVE"] ?? "[]") as string[];
export const { method, gates } = JSON.parse(process.env["AMNESTIC_TEST_SETTINGS"] ?? "{}") as {
  method?: Method;
  gates?: GateLimits;
};

export class AmnesticServer {
  readonly target: string;
  readonly #process: ChildProcess;

  private constructor(target: string, process: ChildProcess) {
    this.target = target;
    this.#process = process;
  }

  get port(): string {
    return this.target.split(":").at(-1) ?? "";
  }

  /** Resolves once the server is ready. */
  static async start(...flags: string[]): Promise<AmnesticServer> {
    const [program = "", ...args] = serveCommand;
    const child = spawn(program, [...args, "--metrics-port", "0", ...flags], { stdio: ["ignore", "pipe", "pipe"] });
    let log = "";
    child.stderr.on("data", (data: Buffer) => (log += data.toString()));
    for await (const line of createInterface({ input: child.stdout })) {
      const target = READY.exec(line)?.groups?.["target"];
      if (target) return new AmnesticServer(target, child);
    }
    throw new Error(`the server did not start:\n${log}`);
  }

  /** Ends it in good order, or at once with SIGKILL. */
  async stop(signal: NodeJS.Signals = "SIGTERM"): Promise<void> {
    if (this.#process.exitCode !== null || this.#process.signalCode !== null) return;
    const exited = once(this.#process, "exit");
    this.#process.kill(signal);
    await exited;
  }
}
