// The examples as a person has them who installed the package: what npm would publish, and its peers.

import { execFile } from "node:child_process";
import { cp, mkdir, mkdtemp, readdir, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

const run = promisify(execFile);
const here = dirname(fileURLToPath(import.meta.url));
const web = join(here, "../../web");
const [npm, ...npmArgs] = JSON.parse(process.env.NPM ?? '["npm"]');

/** What npm would publish: its files by path, with their sizes. */
export async function packed() {
  const { stdout } = await run(npm, [...npmArgs, "pack", "--dry-run", "--json"], { cwd: join(web, "client") });
  const [{ files }] = Object.values(JSON.parse(stdout));
  return files;
}

/** A folder with the package installed and the examples beside it; gone with the test. */
export async function stage(t) {
  const folder = await mkdtemp(join(tmpdir(), "chat-examples-"));
  t.after(() => rm(folder, { recursive: true }));
  const modules = join(folder, "node_modules");
  await mkdir(join(modules, "@types"), { recursive: true });
  await writeFile(join(folder, "package.json"), '{ "type": "module" }');
  for (const { path } of await packed()) {
    for (const place of [join(modules, "support-chat-client"), join(folder, "client")]) {
      await cp(join(web, "client", path), join(place, path));
    }
  }
  const types = (await readdir(join(here, "node_modules/@types"))).map((name) => `@types/${name}`);
  for (const name of ["eventsource", "react", "react-dom", ...types]) await symlink(join(here, "node_modules", name), join(modules, name));
  // The same that the tests have.
  await symlink(join(here, "../client/node_modules/socket.io-client"), join(modules, "socket.io-client"));
  await cp(join(web, "examples"), join(folder, "examples"), { recursive: true });
  return folder;
}

/** Checks and compiles the examples; the messages of the compiler, and whether there was no error. */
export async function compile(folder) {
  const tsc = join(here, "node_modules/typescript/bin/tsc");
  const args = [tsc, "--project", join(folder, "examples"), "--rootDir", folder, "--outDir", join(folder, "built")];
  return run(process.execPath, args).then(() => "", ({ stdout, stderr }) => stdout + stderr);
}
