/** Every default of the client, and the options of its channel. Times are in milliseconds. */

import { compressionAlgorithms, type ChannelOptions } from "@grpc/grpc-js";

export const TARGET = "127.0.0.1:8001";

// Longest wait for an answer; a call always has a deadline. Only a watch has none: a job may take hours.
export const TIMEOUT = 10_000;
// A rollback answers only when no call to the version left is in flight.
export const ROLLBACK_TIMEOUT = 60_000;
export const READY_TIMEOUT = 60_000;

// A readiness probe is short, so that a server which hangs is asked again.
export const PROBE_TIMEOUT = 1_000;
export const PROBE_INTERVAL = 100;

// A broken watch is taken up again this often in a row, 0.25 s to 5 s apart, about two minutes in all: time
// for a server to restart, load its bundle and warm up.
export const WATCH_RECONNECTS = 30;
export const WATCH_FIRST_PAUSE = 250;
export const WATCH_LONGEST_PAUSE = 5_000;

// Enough to keep the server's queue filled while answers travel, far below what it admits: it batches across calls.
export const CONCURRENCY = 4;
export const BATCH = 32;

const MAX_MESSAGE_BYTES = 128 * 2 ** 20;

// Sending these again changes nothing more. Unlearn is among them because its request id makes a repetition
// answer with the first one's job. Rollback and CancelJob are not: a repetition could undo, or be refused for,
// what the first had done.
const REPEATABLE = {
  "amnestic.v1.PredictionService": ["Predict", "GetModel"],
  "amnestic.v1.UnlearningService": ["Unlearn", "WatchJob", "GetJob", "ListJobs", "ListVersions"],
};
const RETRY_POLICY = {
  maxAttempts: 5,
  initialBackoff: "0.1s",
  maxBackoff: "1s",
  backoffMultiplier: 2,
  retryableStatusCodes: ["UNAVAILABLE"],
};

export function channelOptions(compression: "gzip" | undefined, serverName: string | undefined): ChannelOptions {
  return {
    "grpc.max_send_message_length": MAX_MESSAGE_BYTES,
    "grpc.max_receive_message_length": MAX_MESSAGE_BYTES,
    // gRPC servers count pings that come more often than every 5 minutes as an attack, unless told otherwise.
    "grpc.keepalive_time_ms": 330_000,
    "grpc.keepalive_timeout_ms": 20_000,
    // A server that restarts is found again within a second, not after gRPC's usual two minutes.
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 1_000,
    // Clinical text must not take a detour because a proxy happens to be set in the environment.
    "grpc.enable_http_proxy": 0,
    "grpc.service_config": serviceConfig(),
    "grpc.service_config_disable_resolution": 1,
    ...(compression && { "grpc.default_compression_algorithm": compressionAlgorithms[compression] }),
    ...(serverName && { "grpc.ssl_target_name_override": serverName, "grpc.default_authority": serverName }),
  };
}

function serviceConfig(): string {
  const name = Object.entries(REPEATABLE).flatMap(([service, methods]) =>
    methods.map((method) => ({ service, method })),
  );
  return JSON.stringify({ methodConfig: [{ name, retryPolicy: RETRY_POLICY }] });
}
