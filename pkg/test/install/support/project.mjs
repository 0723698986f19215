// Small projects that the packed package is installed into.
import { spawn, spawnSync } from "node:child_process";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";

import { pkg } from "../../browser/support/native.mjs";

/** Runs a program in a folder and returns what it prints. */
export function execute(folder, program, ...args) {
  const { status, stdout, stderr, error } = spawnSync(program, args, { cwd: folder, encoding: "utf8", maxBuffer: 1 << 26, timeout: 15 * 60_000 });
  if (status !== 0) throw new Error(`${program} ${args.join(" ")}: ${error?.message ?? ""}${stdout.slice(-2000)}${stderr.slice(-2000)}`);
  return stdout;
}

const npm = (folder, ...args) => execute(folder, "npm", ...args, "--no-audit", "--no-fund", "--no-update-notifier");

/** Packs the package into `folder` and returns the tarball's path. */
export function pack(folder) {
  const [{ filename }] = JSON.parse(npm(pkg, "pack", "--ignore-scripts", "--json", "--pack-destination", folder));
  return join(folder, filename);
}

/**
 * Makes a project with the package and some tools in it.
 *
 * @param tools npm packages with their versions
 * @returns the project's folder, or why a tool cannot be had
 */
export async function makeProject(parent, name, tarball, files, ...tools) {
  const folder = join(parent, name);
  await mkdir(folder);
  await writeFile(join(folder, "package.json"), JSON.stringify({ name, private: true, type: "module" }));
  for (const [path, content] of Object.entries(files)) await writeFile(join(folder, path), content);
  try {
    if (tools.length) npm(folder, "install", ...tools);
  } catch (error) {
    return { skip: `npm has no ${tools.join(", ")} here: ${error.message.slice(0, 300)}` };
  }
  npm(folder, "install", tarball);
  return { folder };
}

/** Runs a script until the test `t` ends; returns the address that it prints. */
export async function startServer(t, folder, script) {
  const child = spawn(process.execPath, [script], { cwd: folder, stdio: ["ignore", "pipe", "inherit"] });
  t.after(() => child.kill());
  for await (const text of child.stdout.setEncoding("utf8")) {
    const [address] = /http:\S+/.exec(text) ?? [];
    if (address) return address;
  }
  throw new Error(`${script} ended without an address`);
}
