/** Every snippet of the README compiles as it stands, and runs. */

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { before, test } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

import ts from "typescript";

import { JobState } from "../dist/generated/amnestic/v1/unlearning_pb.js";
import { Failure, FakeServer } from "./fake.js";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
// Inside the package, so that its own name leads to it.
const FOLDER = join(ROOT, "build", "readme");
const readme = readFileSync(join(ROOT, "README.md"), "utf8");
const snippets = [...readme.matchAll(/```ts( no-run)?\n(.*?)```/gs)].map(([, noRun, code = ""], number) => ({
  name: `snippet-${number}`,
  runs: !noRun,
  code,
}));

const OUTPUT: Record<string, RegExp> = {
  "snippet-0": /^1 \[ 'renal' \] false\n1 \[ 'renal' \] false\n$/,
  "snippet-1": /^0 1 \[ 'renal' \]\n1 1 \[ 'renal' \]\n$/,
  "snippet-2": /^RUNNING 3 9\nSUCCEEDED 9 9\nSUCCEEDED \[\]\n$/,
  "snippet-3": /^document 2 is empty \[\]\n$/,
};

before(() => {
  mkdirSync(FOLDER, { recursive: true });
  writeFileSync(join(FOLDER, "notes.txt"), "a note\nanother\n");
  for (const { name, code } of snippets) writeFileSync(join(FOLDER, `${name}.ts`), code);
});

test("the snippets compile", () => {
  const config = ts.readConfigFile(join(ROOT, "tsconfig.json"), (path) => ts.sys.readFile(path)).config as object;
  const options = {
    ...ts.parseJsonConfigFileContent(config, ts.sys, ROOT).options,
    noEmit: false,
    noUnusedLocals: false,
  };
  const program = ts.createProgram(
    snippets.map(({ name }) => join(FOLDER, `${name}.ts`)),
    options,
  );
  const messages = [...ts.getPreEmitDiagnostics(program), ...program.emit().diagnostics];
  assert.equal(
    ts.formatDiagnostics(messages, {
      getCurrentDirectory: () => ROOT,
      getCanonicalFileName: String,
      getNewLine: () => "\n",
    }),
    "",
  );
  assert.equal(snippets.length, 5);
});

for (const { name, runs } of snippets) {
  test(`${name} runs`, { skip: runs ? false : "it needs files of the reader's" }, async (t) => {
    const server = await FakeServer.start(t);
    const job = (state: JobState, step: number) => ({ job: { jobId: "a", state, progress: { step, steps: 9 } } });
    server.script("GetModel", { maxDocuments: 128, activeVersion: 1n });
    server.script("Predict", ({ documents }: { documents: string[] }) => {
      const empty = documents.indexOf("");
      if (empty >= 0) return new Failure("INVALID_ARGUMENT", `document ${empty + 1} is empty`);
      return { version: 1n, predictions: documents.map(() => ({ scores: [{ label: "renal", decision: true }] })) };
    });
    server.script("Unlearn", job(JobState.QUEUED, 0));
    server.script("WatchJob", [job(JobState.RUNNING, 3), job(JobState.SUCCEEDED, 9)]);
    server.script("Rollback", { version: { version: 1n } });

    const compiled = join(FOLDER, `${name}.js`);
    writeFileSync(compiled, readFileSync(compiled, "utf8").replaceAll("127.0.0.1:8001", server.target));
    const { stdout } = await promisify(execFile)(process.execPath, [compiled], { cwd: FOLDER, timeout: 20_000 });
    assert.match(stdout, OUTPUT[name] ?? /$^/);
  });
}
