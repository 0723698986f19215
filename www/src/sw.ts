// Keeps the page's files for visits without the network. The models are kept by the package, in a cache of its own.

/** What workers of this kind have; TypeScript knows it in its worker library only. */
interface Scope {
  readonly location: Location;
  readonly clients: { claim(): Promise<void> };
  skipWaiting(): Promise<void>;
  addEventListener(type: "install" | "activate", listener: (event: Extendable) => void): void;
  addEventListener(type: "message", listener: (event: Extendable & { data: unknown }) => void): void;
  addEventListener(type: "fetch", listener: (event: Extendable & { request: Request; respondWith(response: Promise<Response>): void }) => void): void;
}
interface Extendable {
  waitUntil(work: Promise<unknown>): void;
}

const scope = globalThis as unknown as Scope;

/** The build writes its files in here. */
const { version, files } = "%BUILD%" as unknown as { version: string; files: { url: string; size: number }[] };
const PREFIX = "light-table ";
const NAME = PREFIX + version;
/** Larger files are fetched only for those who need them. */
const LARGE = 4 << 20;

const address = (url: string): string => new URL(url, scope.location.href).href;
const known = new Set(files.map(({ url }) => address(url)));
const home = address("index.html");

async function keep(wanted: readonly { url: string }[]): Promise<void> {
  const cache = await caches.open(NAME);
  const earlier = (await caches.keys()).filter((name) => name.startsWith(PREFIX) && name !== NAME);
  for (const { url } of wanted) {
    const file = address(url);
    if (await cache.match(file)) continue;
    // A name with a hash in it stands for the same bytes in every version.
    const before = /-[\w-]{8}\.\w+$/.test(url) ? await firstOf(earlier, file) : undefined;
    const response = before ?? (await fetch(file, { cache: "no-cache" }));
    if (!response.ok) throw new Error(`${file}: ${response.status}`);
    await cache.put(file, response);
  }
}

async function firstOf(names: readonly string[], file: string): Promise<Response | undefined> {
  for (const name of names) {
    const response = await (await caches.open(name)).match(file);
    if (response) return response;
  }
  return undefined;
}

/** The headers that isolate the page and hold it to its policy, also where its server does not send them. */
function isolated(response: Response): Response {
  const headers = new Headers(response.headers);
  for (const [name, value] of Object.entries(__HEADERS__)) headers.set(name, value);
  const { status, statusText } = response;
  return new Response(response.body, { headers, status, statusText });
}

async function answer(request: Request, file: string): Promise<Response> {
  const kept = await (await caches.open(NAME)).match(file);
  return isolated(kept ?? (await fetch(request)));
}

scope.addEventListener("install", (event) => {
  event.waitUntil(keep(files.filter(({ size }) => size < LARGE)));
});

scope.addEventListener("activate", (event) => {
  const tidy = async (): Promise<void> => {
    for (const name of await caches.keys()) if (name.startsWith(PREFIX) && name !== NAME) await caches.delete(name);
    await scope.clients.claim();
  };
  event.waitUntil(tidy());
});

scope.addEventListener("message", (event) => {
  if (event.data === "take over") event.waitUntil(scope.skipWaiting());
  if (event.data === "keep everything") event.waitUntil(keep(files));
});

scope.addEventListener("fetch", (event) => {
  const { request } = event;
  if (request.method !== "GET") return;
  const url = new URL(request.url);
  url.search = url.hash = "";
  const file = request.mode === "navigate" && url.href === address("./") ? home : url.href;
  if (known.has(file)) event.respondWith(answer(request, file));
});
