/** A real gRPC server in this process, with programmable answers, and clients of it. */

import { connect, createServer, type AddressInfo } from "node:net";
import type { TestContext } from "node:test";

import {
  create,
  fromBinary,
  toBinary,
  type DescMessage,
  type DescService,
  type Message,
  type MessageInitShape,
} from "@bufbuild/protobuf";
import { anyPack } from "@bufbuild/protobuf/wkt";
import {
  Metadata,
  Server,
  ServerCredentials,
  status,
  type handleServerStreamingCall,
  type handleUnaryCall,
  type StatusObject,
  type UntypedServiceImplementation,
} from "@grpc/grpc-js";
import { AmnesticClient, type ClientOptions } from "amnestic-client";

import { PredictionService } from "../dist/generated/amnestic/v1/prediction_pb.js";
import { UnlearningService } from "../dist/generated/amnestic/v1/unlearning_pb.js";
import { StatusSchema } from "../dist/generated/google/rpc/error_details_pb.js";

/** What a call is answered with: a message, an error, or a function that says so, now or later. */
export type Step = object | Failure | ((request: never, call: Call) => unknown);

/** What a step may look at of the call that it answers. */
export interface Call {
  readonly metadata: Metadata;
  readonly cancelled: boolean;
  on(event: "cancelled", listener: () => void): unknown;
  getDeadline(): Date | number;
}

/** An answer that is an error, perhaps with details. */
export class Failure {
  constructor(
    readonly code: keyof typeof status,
    readonly detail: string,
    readonly metadata = new Metadata(),
  ) {}

  /** The same with `grpc-status-details-bin`. */
  with(...details: [DescMessage, MessageInitShape<DescMessage>][]): this {
    const packed = details.map(([schema, init]) => anyPack(schema, create(schema, init)));
    const bytes = toBinary(StatusSchema, create(StatusSchema, { code: status[this.code], details: packed }));
    this.metadata.set("grpc-status-details-bin", Buffer.from(bytes));
    return this;
  }

  get object(): Partial<StatusObject> {
    return { code: status[this.code], details: this.detail, metadata: this.metadata };
  }
}

/** Answers each method by its script, one step a call; the last step stays. A step of WatchJob is a list of steps. */
export class FakeServer {
  readonly requests: { method: string; request: unknown }[] = [];
  port = 0;
  ready = true;
  #scripts = new Map<string, (Step | Step[])[]>();
  #server = new Server({ "grpc.max_receive_message_length": -1 });

  static async start(
    test: TestContext,
    port = 0,
    credentials = ServerCredentials.createInsecure(),
  ): Promise<FakeServer> {
    const fake = new FakeServer();
    await fake.listen(`127.0.0.1:${port}`, credentials);
    test.after(() => {
      fake.stop();
    });
    return fake;
  }

  get target(): string {
    return `127.0.0.1:${this.port}`;
  }

  async listen(address: string, credentials = ServerCredentials.createInsecure()): Promise<void> {
    for (const service of [PredictionService, UnlearningService]) this.#serve(service);
    this.#serveHealth();
    this.port = await new Promise((resolve, reject) => {
      this.#server.bindAsync(address, credentials, (error, port) => {
        if (error) reject(error);
        else resolve(port);
      });
    });
  }

  stop(): void {
    this.#server.forceShutdown();
  }

  script(method: string, ...steps: (Step | Step[])[]): void {
    this.#scripts.set(method, steps);
  }

  /** Every request of a method so far. */
  asked(method: string): Record<string, unknown>[] {
    return this.requests.filter((one) => one.method === method).map((one) => one.request as Record<string, unknown>);
  }

  #next(method: string, request: unknown): Step | Step[] {
    this.requests.push({ method, request });
    const steps = this.#scripts.get(method) ?? [];
    const step = steps.length > 1 ? steps.shift() : steps[0];
    return step ?? new Failure("UNIMPLEMENTED", `no script for ${method}`);
  }

  /** The standard health service, whose answer is field 1: 1 for serving, 2 for not. */
  #serveHealth(): void {
    const definition = {
      path: "/grpc.health.v1.Health/Check",
      requestStream: false,
      responseStream: false,
      requestSerialize: (bytes: Buffer) => bytes,
      requestDeserialize: (bytes: Buffer) => bytes,
      responseSerialize: (bytes: Buffer) => bytes,
      responseDeserialize: (bytes: Buffer) => bytes,
    };
    const check: handleUnaryCall<Buffer, Buffer> = (_, done) => {
      done(null, Buffer.from([8, this.ready ? 1 : 2]));
    };
    this.#server.addService({ Check: definition }, { Check: check });
  }

  #serve(service: DescService): void {
    const implementation: UntypedServiceImplementation = {};
    for (const { name, output, methodKind } of service.methods) {
      const unary: handleUnaryCall<unknown, Message> = (call, done) => {
        void answerOf(this.#next(name, call.request), call.request, call).then((answer) => {
          if (answer instanceof Failure) done(answer.object);
          else done(null, create(output, answer));
        });
      };
      const stream: handleServerStreamingCall<unknown, Message> = (call) => {
        void (async () => {
          for (const step of this.#next(name, call.request) as Step[]) {
            const answer = await answerOf(step, call.request, call);
            if (answer instanceof Failure) return call.emit("error", answer.object);
            call.write(create(output, answer));
          }
          return call.end();
        })();
      };
      implementation[name] = methodKind === "unary" ? unary : stream;
    }
    this.#server.addService(definitionOf(service), implementation);
  }
}

/** A client of the target that is gone after the test. */
export function clientOf(test: TestContext, target: string, options?: ClientOptions): AmnesticClient {
  const client = new AmnesticClient(target, options);
  test.after(() => {
    client.close();
  });
  return client;
}

/** A proxy to a port of this machine, which counts the bytes that are sent there and that come back. */
export async function counted(
  test: TestContext,
  to: number,
): Promise<{ port: number; sent: () => number; received: () => number }> {
  let [sent, received] = [0, 0];
  const proxy = createServer((near) => {
    const far = connect(to, "127.0.0.1");
    near.on("data", (data) => (sent += data.length));
    far.on("data", (data) => (received += data.length));
    near.pipe(far).pipe(near);
    for (const [one, other] of [
      [near, far],
      [far, near],
    ] as const) {
      one.on("error", () => undefined);
      one.on("close", () => other.destroy());
    }
  });
  await new Promise<void>((resolve) => proxy.listen(0, "127.0.0.1", resolve));
  test.after(() => {
    proxy.close();
  });
  return { port: (proxy.address() as AddressInfo).port, sent: () => sent, received: () => received };
}

export async function collect<T>(items: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const item of items) all.push(item);
  return all;
}

async function answerOf(step: Step | Step[], request: unknown, call: Call): Promise<Failure | Record<string, unknown>> {
  try {
    return (typeof step === "function" ? await step(request as never, call) : step) as
      Failure | Record<string, unknown>;
  } catch (error) {
    return new Failure("INTERNAL", `the script failed: ${String(error)}`);
  }
}

function definitionOf(service: DescService) {
  return Object.fromEntries(
    service.methods.map(({ name, input, output, methodKind }) => [
      name,
      {
        path: `/${service.typeName}/${name}`,
        requestStream: false,
        responseStream: methodKind !== "unary",
        requestSerialize: (message: Message) => Buffer.from(toBinary(input, message)),
        requestDeserialize: (bytes: Buffer) => fromBinary(input, bytes),
        responseSerialize: (message: Message) => Buffer.from(toBinary(output, message)),
        responseDeserialize: (bytes: Buffer) => fromBinary(output, bytes),
      },
    ]),
  );
}
