/** Every default of the client, and the options of its channel. Times are in milliseconds. */

import type { DescMethod } from "@bufbuild/protobuf";
import { compressionAlgorithms, type ChannelOptions } from "@grpc/grpc-js";

import SERVICE_CONFIG from "./generated/service_config.js";

export const TARGET = "127.0.0.1:8001";

export const READY_TIMEOUT = 60_000;

// A readiness probe is short, so that a server which hangs is asked again.
export const PROBE_TIMEOUT = 1_000;
export const PROBE_INTERVAL = 100;

// A broken watch is taken up again this often in a row, 0.25 s to 5 s apart, about two minutes in all: time
// for a server to restart, load its bundle and warm up.
export const WATCH_RECONNECTS = 30;
export const WATCH_FIRST_PAUSE = 250;
export const WATCH_LONGEST_PAUSE = 5_000;

// Of a run over many documents: each batch's longest wait for its answers, repetitions and pauses included.
export const PREDICT_MANY_TIMEOUT = 120_000;
// Enough to keep the server's queue filled while answers travel, far below what it admits: it batches across calls.
export const CONCURRENCY = 4;
// A batch is small enough to be answered in time on a few cores, and in bytes below the 4 MiB that gRPC allows a message
// by default, which a proxy on the way may still hold to.
export const BATCH = 32;
export const BATCH_BYTES = 3 * 2 ** 20;

const MAX_MESSAGE_BYTES = 128 * 2 ** 20;

// gRPC keeps what it may have to send again, so that a full call of documents can be; by default only 1 MiB.
const MAX_RETRY_BYTES = 8 * 2 ** 20;

/** Longest wait for a method's answer, as published. Only a watch has none: a job may take hours. */
export function timeoutOf({ parent, name }: DescMethod): number {
  const config = SERVICE_CONFIG.methodConfig.find((one) =>
    one.name.some(({ service, method }) => service === parent.typeName && method === name),
  );
  if (config?.timeout === undefined) throw new RangeError(`${name} has no timeout`);
  return Number.parseFloat(config.timeout) * 1000;
}

export function channelOptions(compression: "gzip" | undefined, serverName: string | undefined): ChannelOptions {
  return {
    "grpc.max_send_message_length": MAX_MESSAGE_BYTES,
    "grpc.max_receive_message_length": MAX_MESSAGE_BYTES,
    // While a call is open. The server allows a ping every 10 seconds.
    "grpc.keepalive_time_ms": 60_000,
    "grpc.keepalive_timeout_ms": 20_000,
    // A server that restarts is found again within a second, not after gRPC's usual two minutes.
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 1_000,
    // Clinical text must not take a detour because a proxy happens to be set in the environment.
    "grpc.enable_http_proxy": 0,
    "grpc.per_rpc_retry_buffer_size": MAX_RETRY_BYTES,
    "grpc.service_config": serviceConfig(),
    "grpc.service_config_disable_resolution": 1,
    ...(compression && { "grpc.default_compression_algorithm": compressionAlgorithms[compression] }),
    ...(serverName && { "grpc.ssl_target_name_override": serverName, "grpc.default_authority": serverName }),
  };
}

/** The published policy without its timeouts, which would cut those that callers ask for: every call brings its own. */
function serviceConfig(): string {
  const methodConfig = SERVICE_CONFIG.methodConfig.map(({ timeout: _timeout, ...policy }) => policy);
  return JSON.stringify({ ...SERVICE_CONFIG, methodConfig });
}
