/** One gRPC channel: sends messages, reads answers, and turns gRPC's errors into ours. */

import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import type {
  DescMessage,
  DescMethodServerStreaming,
  DescMethodUnary,
  MessageInitShape,
  MessageShape,
} from "@bufbuild/protobuf";
import { Client, credentials, Metadata, type ChannelCredentials } from "@grpc/grpc-js";

import { Cancelled, cancelledBy, fromGrpc, Internal, InvalidArgument } from "./errors.js";
import { channelOptions } from "./settings.js";
import type { CallOptions, ClientOptions, Tls, Token } from "./types.js";

// The standard health service (grpc.health.v1), asked about the server as a whole: the empty request means that, and
// field 1 of the answer is 1 for SERVING.
const HEALTH_CHECK = "/grpc.health.v1.Health/Check";
const SERVING = Buffer.from([8, 1]);

interface Cancellable {
  cancel(): void;
}

export class Transport {
  readonly #client: Client;
  readonly #compression: ClientOptions["compression"];
  readonly #token: Token | undefined;
  readonly #inFlight = new Set<Cancellable>();
  #closed = false;

  constructor(target: string, options: ClientOptions) {
    this.#compression = options.compression;
    this.#token = options.token;
    const tls = typeof options.tls === "object" ? options.tls : {};
    this.#client = new Client(
      target,
      options.tls ? sslCredentials(tls) : credentials.createInsecure(),
      channelOptions(options.compression, tls.serverName),
    );
  }

  get closed(): boolean {
    return this.#closed;
  }

  /** End the connection; calls in flight are cancelled. */
  close(): void {
    this.#closed = true;
    for (const call of this.#inFlight) call.cancel();
    this.#client.close();
  }

  async unary<Q extends DescMessage, A extends DescMessage>(
    method: DescMethodUnary<Q, A>,
    request: MessageInitShape<Q>,
    options: CallOptions,
  ): Promise<MessageShape<A>> {
    return read(method.output, await this.#send(pathOf(method), bytesOf(method.input, request), options));
  }

  /** Yields the answers as they come; leaving it early cancels the call. */
  async *serverStream<Q extends DescMessage, A extends DescMessage>(
    method: DescMethodServerStreaming<Q, A>,
    request: MessageInitShape<Q>,
    options: CallOptions,
  ): AsyncGenerator<MessageShape<A>, void, undefined> {
    this.#checkOpen(options.signal);
    const call = this.#client.makeServerStreamRequest(
      pathOf(method),
      asIs,
      asIs,
      bytesOf(method.input, request),
      this.#metadata(),
      deadlineOf(options),
    );
    // What comes after the reader has left is nobody's; without a listener it would end the process.
    call.on("error", () => undefined);
    const forget = this.#follow(call, options.signal);
    try {
      for await (const answer of call) yield read(method.output, answer as Buffer);
    } catch (error) {
      throw options.signal?.aborted ? cancelledBy(options.signal) : fromGrpc(error);
    } finally {
      forget();
      call.cancel();
    }
  }

  async isServing(options: CallOptions): Promise<boolean> {
    return SERVING.equals(await this.#send(HEALTH_CHECK, Buffer.alloc(0), options));
  }

  async #send(path: string, request: Buffer, options: CallOptions): Promise<Buffer> {
    const { signal } = options;
    this.#checkOpen(signal);
    return new Promise((resolve, reject) => {
      const [metadata, deadline] = [this.#metadata(), deadlineOf(options)];
      const call = this.#client.makeUnaryRequest(path, asIs, asIs, request, metadata, deadline, (error, answer) => {
        forget();
        if (error) reject(signal?.aborted ? cancelledBy(signal) : (fromGrpc(error) as Error));
        else resolve(answer ?? Buffer.alloc(0));
      });
      const forget = this.#follow(call, signal);
    });
  }

  /** Made anew for each call, because gRPC adds to it. */
  #metadata(): Metadata {
    const metadata = new Metadata();
    const token = typeof this.#token === "function" ? this.#token() : this.#token;
    if (token !== undefined) metadata.set("authorization", `Bearer ${token}`);
    // gRPC compresses requests by itself; this asks the server to do the same with its answer.
    if (this.#compression) metadata.set("amnestic-compression", this.#compression);
    return metadata;
  }

  #checkOpen(signal: AbortSignal | undefined): void {
    if (signal?.aborted) throw cancelledBy(signal);
    if (this.#closed) throw new Cancelled("the client is closed");
  }

  /** Cancels the call when the signal or `close` says so, until what is returned is called. */
  #follow(call: Cancellable, signal: AbortSignal | undefined): () => void {
    const cancel = () => {
      call.cancel();
    };
    this.#inFlight.add(call);
    signal?.addEventListener("abort", cancel, { once: true });
    return () => {
      this.#inFlight.delete(call);
      signal?.removeEventListener("abort", cancel);
    };
  }
}

function sslCredentials(tls: Tls): ChannelCredentials {
  if ((tls.certificate === undefined) !== (tls.key === undefined)) {
    throw new InvalidArgument("tls.certificate and tls.key go together");
  }
  const [ca, key, certificate] = [tls.ca, tls.key, tls.certificate].map((pem) =>
    pem === undefined ? null : Buffer.from(pem),
  );
  return credentials.createSsl(ca, key, certificate);
}

function deadlineOf({ timeoutMs }: CallOptions): { deadline?: number } {
  if (timeoutMs === undefined) return {};
  if (Number.isNaN(timeoutMs)) throw new InvalidArgument("timeoutMs is not a number");
  return { deadline: Date.now() + timeoutMs };
}

function pathOf(method: DescMethodUnary | DescMethodServerStreaming): string {
  return `/${method.parent.typeName}/${method.name}`;
}

function bytesOf<Desc extends DescMessage>(schema: Desc, message: MessageInitShape<Desc>): Buffer {
  const bytes = toBinary(schema, create(schema, message));
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

function read<Desc extends DescMessage>(schema: Desc, bytes: Buffer): MessageShape<Desc> {
  try {
    return fromBinary(schema, bytes);
  } catch {
    throw new Internal("the server's answer can't be read");
  }
}

function asIs(bytes: Buffer): Buffer {
  return bytes;
}
