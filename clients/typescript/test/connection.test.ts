/** How the client connects: sockets, TLS, compression, and what it must not go through. */

import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test, type TestContext } from "node:test";

import { ServerCredentials } from "@grpc/grpc-js";
import type { Tls } from "amnestic-client";

import { type Call, clientOf, counted, FakeServer } from "./fake.js";

interface Signed {
  readonly ca: string;
  readonly certificate: string;
  readonly key: string;
}

function folderOf(t: TestContext): string {
  const folder = mkdtempSync(join(tmpdir(), "amnestic-"));
  t.after(() => {
    rmSync(folder, { recursive: true });
  });
  return folder;
}

test("a Unix domain socket", { skip: process.platform === "win32" }, async (t) => {
  const socket = `unix:${join(folderOf(t), "grpc.sock")}`;
  const server = new FakeServer();
  await server.listen(socket);
  t.after(() => {
    server.stop();
  });
  server.script("GetModel", { name: "by socket" });
  assert.equal((await clientOf(t, socket).getModel()).name, "by socket");
});

test("a proxy set in the environment is not used", async (t) => {
  process.env["http_proxy"] = process.env["grpc_proxy"] = "http://127.0.0.1:9";
  t.after(() => {
    delete process.env["http_proxy"];
    delete process.env["grpc_proxy"];
  });
  const server = await FakeServer.start(t);
  server.script("GetModel", { name: "direct" });
  assert.equal((await clientOf(t, server.target).getModel()).name, "direct");
});

test("a token goes with every call, the one that holds then", async (t) => {
  const server = await FakeServer.start(t);
  const sent: unknown[] = [];
  server.script("GetModel", (_: never, call: Call) => {
    sent.push(...call.metadata.get("authorization"));
    return {};
  });
  let number = 0;
  for (const token of ["fixed", () => `renewed-${String(++number)}`]) {
    const client = clientOf(t, server.target, { token });
    await client.getModel();
    await client.getModel();
  }
  await clientOf(t, server.target).getModel();
  assert.deepEqual(sent, ["Bearer fixed", "Bearer fixed", "Bearer renewed-1", "Bearer renewed-2"]);
});

test("compression makes what is sent smaller", async (t) => {
  const server = await FakeServer.start(t);
  const wishes: unknown[] = [];
  server.script("Predict", (_: never, call: Call) => {
    wishes.push(call.metadata.get("amnestic-compression"));
    return {};
  });
  const text = "admitted with diabetic ketoacidosis ".repeat(2000);
  const sent: number[] = [];
  for (const compression of [undefined, "gzip"] as const) {
    const wire = await counted(t, server.port);
    await clientOf(t, `127.0.0.1:${wire.port}`, { compression }).predict(text);
    sent.push(wire.sent());
  }
  const [plain = 0, compressed = 0] = sent;
  assert.deepEqual(
    server.asked("Predict").map((request) => request["documents"]),
    [[text], [text]],
  );
  assert.deepEqual(wishes, [[], ["gzip"]], "answers are asked for so, too");
  assert.ok(plain > text.length && compressed < plain / 10, `${compressed} of ${plain} bytes`);
});

const noOpenssl = spawnSync("openssl", ["version"]).error ? "openssl is not installed" : false;

test("TLS in both directions", { skip: noOpenssl }, async (t) => {
  const folder = folderOf(t);
  const [ours, theirs] = [authority(folder, "ours"), authority(folder, "theirs")];
  const host = ours("sidecar");
  const credentials = ServerCredentials.createSsl(
    Buffer.from(host.ca),
    [{ private_key: Buffer.from(host.key), cert_chain: Buffer.from(host.certificate) }],
    true,
  );
  const server = await FakeServer.start(t, 0, credentials);
  server.script("GetModel", { name: "encrypted" });
  const model = (tls: Tls) => clientOf(t, server.target, { tls }).getModel({ timeoutMs: 4000 });

  const mine = { ...ours("client"), serverName: "sidecar" };
  assert.equal((await model(mine)).name, "encrypted");
  const refused: Record<string, Tls> = {
    "no certificate": { ca: mine.ca, serverName: "sidecar" },
    "one of another authority": { ...theirs("client"), ca: mine.ca, serverName: "sidecar" },
    "an authority that did not sign the server's": { ...mine, ca: theirs("client").ca },
    "another name than the server's": { ...mine, serverName: "elsewhere" },
  };
  for (const [what, tls] of Object.entries(refused)) {
    await assert.rejects(model(tls), { name: "Unavailable" }, what);
  }
  await assert.rejects(clientOf(t, server.target).getModel({ timeoutMs: 4000 }), { name: "Unavailable" }, "plain text");
});

test("a certificate without its key is refused at once", () => {
  const make = (tls: Tls) => () => clientOf({ after: () => undefined } as never, "127.0.0.1:9", { tls });
  assert.throws(make({ key: "k" }), { name: "InvalidArgument" });
  assert.throws(make({ certificate: "c" }), { name: "InvalidArgument" });
});

/** A certificate authority, which signs certificates of names. */
function authority(folder: string, name: string): (subject: string) => Signed {
  const file = (suffix: string) => join(folder, `${name}-${suffix}`);
  const openssl = (...args: string[]) => execFileSync("openssl", args, { stdio: "pipe" });
  const ec = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
  openssl(
    "req",
    "-x509",
    ...ec,
    "-days",
    "1",
    "-subj",
    `/CN=${name}`,
    "-keyout",
    file("ca.key"),
    "-out",
    file("ca.pem"),
  );
  return (subject) => {
    const [key, request, certificate] = [file(`${subject}.key`), file(`${subject}.csr`), file(`${subject}.pem`)];
    openssl("req", ...ec, "-subj", `/CN=${subject}`, "-keyout", key, "-out", request);
    writeFileSync(file("names"), `subjectAltName=DNS:${subject}`);
    openssl(
      "x509",
      "-req",
      "-in",
      request,
      "-CA",
      file("ca.pem"),
      "-CAkey",
      file("ca.key"),
      "-CAcreateserial",
      "-days",
      "1",
      "-extfile",
      file("names"),
      "-out",
      certificate,
    );
    const read = (path: string) => readFileSync(path, "utf8");
    return { ca: read(file("ca.pem")), certificate: read(certificate), key: read(key) };
  };
}
