// From a model folder to a thread that has the model in it.
import { ErnieVilError, asError } from "./errors.js";
import { createBackend, postable } from "./host.js";
import type { RequestOptions } from "./http.js";
import { type ModelFolder, folderUrl } from "./loader.js";
import type { DeviceInfo, LoadOptions, ModelInfo, ModelSource } from "./options.js";
import { type Plan, plans } from "./plans.js";
import { type Backend, type Calls, DirectBackend, type LoadResult } from "./protocol.js";
import { type ServerOptions, serverHandlers } from "./server.js";
import { absoluteUrl } from "./url.js";

/** A running thread with the loaded model in it. */
export interface Session {
  backend: Backend;
  info: ModelInfo;
  logitScale: number;
  templates: string[];
}

/** @returns the address of a model folder */
export function addressOf(source: string | URL): string {
  return folderUrl(absoluteUrl(source));
}

/** @returns the folder that a caller names or hands over */
export function modelFolder(source: ModelSource, request: RequestOptions): ModelFolder {
  if (typeof source === "string" || source instanceof URL) return { url: addressOf(source), request };
  const files: Record<string, Blob> = {};
  if (typeof source.length === "number") {
    for (const file of Array.from(source as ArrayLike<File>)) files[file.name] = file;
  } else {
    for (const [name, file] of Object.entries(source as Record<string, Blob | BufferSource>)) {
      files[name] = file instanceof Blob ? file : new Blob([file]);
    }
  }
  return { files };
}

/** Failures of a device, after which another one may do. */
const OF_THE_DEVICE: readonly string[] = ["device", "device-lost", "crashed"];
/** Failures of what a device needs as well: the WebAssembly may not even be there. */
const OF_ALL_DEVICES: readonly string[] = [...OF_THE_DEVICE, "worker", "network", "internal"];
const TRIED: Record<Plan["name"], string> = {
  webgpu: "WebGPU was",
  "cpu-threads": "threads were",
  cpu: "the CPU was",
  server: "the server was",
};

/**
 * Loads a model on the first device that takes it.
 *
 * @param choice the options that the devices are chosen by, unless they are `planned`
 */
export async function open(folder: ModelFolder, options: LoadOptions, choice: LoadOptions, planned?: Plan[]): Promise<Session> {
  const refused: string[] = [];
  const list = planned ?? (await plans(choice));
  for (const [position, { name, threads, reason }] of list.entries()) {
    const why = refused.length > 0 ? `the ${name === "server" ? "server" : "CPU"}, since ${refused.join("; ")}` : reason;
    try {
      return await openOn(name, threads, why, folder, options);
    } catch (thrown) {
      const error = asError(thrown);
      const next = list[position + 1];
      // What threads need beside the CPU may be missing: their script, their module, a memory that can be shared.
      const reasons = next?.name === "server" || name === "cpu-threads" ? OF_ALL_DEVICES : OF_THE_DEVICE;
      if (!next || !reasons.includes(error.code)) throw error;
      refused.push(`${TRIED[name]} tried and left: ${error.message}`);
    }
  }
  throw new ErnieVilError("internal", "there was no device to try");
}

async function openOn(name: Plan["name"], threads: number, reason: string, folder: ModelFolder, options: LoadOptions): Promise<Session> {
  const { signal, onProgress, towers, dtype = "auto", cache = true, allowSoftware = false } = options;
  const backend = name === "server" ? new DirectBackend(serverHandlers(options.fallback as ServerOptions)) : await createBackend(name, options);
  try {
    const params: Calls["load"]["params"] = {
      folder,
      towers,
      dtype,
      cache,
      allowSoftware,
      powerPreference: options.powerPreference ?? "high-performance",
      threads,
      wasm: name === "server" ? undefined : postable(options.wasm?.[name]),
    };
    const result = await backend.call("load", params, { signal, onProgress });
    return { backend, info: modelInfo(result, reason, backend.worker), logitScale: result.model.logitScale, templates: result.model.templates };
  } catch (thrown) {
    const error = asError(thrown);
    backend.terminate(error);
    throw error;
  }
}

function modelInfo({ model, version, kind, threads, adapter, cache }: LoadResult, reason: string, worker: boolean): ModelInfo {
  const { logitScale: _, templates: __, ...rest } = model;
  const device: DeviceInfo = { kind, reason, threads, worker, ...(adapter && { adapter }) };
  return { ...rest, version, device, cache };
}
