// The page: puts its parts together.
import { Developer, type Run } from "./developer.js";
import { announce, byId, perFrame } from "./dom.js";
import { codeOf, isAborted, showError } from "./errors.js";
import { fromDialog, fromDrop, hasFiles, type Incoming } from "./files.js";
import { Gallery, type Placed } from "./gallery.js";
import { language, onLanguage, setLanguage, t, translate } from "./i18n.js";
import { Labels } from "./labels.js";
import { ModelPanel, type ModelSettings } from "./model-panel.js";
import { keepOffline, registerOffline } from "./offline.js";
import { Panel } from "./panel.js";
import { type Picture, Pictures } from "./pictures.js";
import { type Found, Search } from "./search.js";
import { Session } from "./session.js";
import { Status, deviceText } from "./status.js";

type Filter = "all" | "own" | "scenes";

translate(document);

const pictures = new Pictures();
let session: Session | undefined;
let found: Found | undefined;
let filter: Filter = "all";
/** Files of folders that were passed over in the run under way. */
let ignored = 0;
/** Whether the run under way is of the visitor's files, so that its end is reported. */
let ownRun = false;

/** What tests and the curious may read: data, nothing to call. */
const demo = {
  /** Resolves when the model is there and every picture has its vector. */
  ready: undefined as unknown as Promise<void>,
  counters: { loads: 0, embedded: 0, failed: 0, queries: 0 },
  error: undefined as { code: string; message: string } | undefined,
  get device() {
    return session && { text: deviceText(session.model.info), ...session.model.info.device };
  },
  get model() {
    return session?.model.info;
  },
  get pictures() {
    return pictures.list().map(({ id, name, own, state }) => ({ id, name, own, state }));
  },
  get index() {
    return session && { size: session.index.size, elsewhere: session.elsewhere, ...session.index.info.storage };
  },
  get found() {
    return found && { query: found.query.kind === "text" ? found.query.text : found.query.id, hits: found.hits.map(({ picture, score }) => ({ id: picture.id, name: picture.name, score })) };
  },
  get labels() {
    return labels.results;
  },
  get figures() {
    return { ...status.figures, loadTime: session?.loadTime, imageTime: developer.embedded ? developer.time / developer.embedded : undefined };
  },
};

const developer = new Developer(pictures, {
  changed: () => changed(),
  progress(run) {
    demo.counters.embedded = developer.embedded;
    status.developing(run);
  },
  finished(run) {
    status.developing(undefined);
    demo.counters.failed += run.failures.length;
    if (ownRun || run.failures.length || run.unsaved) report(run);
    ownRun = false;
    ignored = 0;
    search.again();
    status.measured();
    void status.measureMemory();
  },
  failed: (error) => failed(error),
});
const status = new Status(developer);
const labels = new Labels();
const panel = new Panel();
const gallery = new Gallery({
  labels(picture) {
    gallery.choose(picture.id);
    labels.set(picture);
    panel.open();
  },
  similar(picture) {
    search.byPicture(picture);
    byId("pictures-title").focus({ preventScroll: true });
    byId("glass").scrollIntoView({ block: "start" });
  },
  remove: (picture) => void remove([picture]),
  addFiles: () => byId("pick-files").click(),
  addFolder: () => byId("pick-folder").click(),
});
const search = new Search(pictures, {
  found(next) {
    found = next;
    demo.counters.queries += 1;
    if (next.embedTime !== undefined) status.figures.queryTime = next.embedTime;
    status.figures.searchTime = next.searchTime;
    status.measured();
    show();
  },
  cleared() {
    found = undefined;
    show();
  },
});
const modelPanel = new ModelPanel((settings) => void connect(settings));

/** The pictures that are shown, in their order. */
function placed(): Placed[] {
  const fits = (own: boolean): boolean => filter === "all" || own === (filter === "own");
  if (found) return found.hits.filter(({ picture }) => fits(picture.own) && pictures.get(picture.id) !== undefined);
  return pictures.list(filter).map((picture) => ({ picture, score: undefined }));
}

function describe(count: number): void {
  const query = found?.query;
  const title = byId("pictures-title");
  if (!query) title.textContent = t("grid.all", { n: count });
  else title.textContent = query.kind === "text" ? t("grid.text", { query: query.text }) : t("grid.image");
  byId("clear-query").hidden = !query;
  byId("glass").dataset["query"] = String(query !== undefined);
  const own = pictures.own;
  byId("filter").hidden = own === 0;
  byId("remove-all").hidden = own === 0 || query !== undefined;
  if (own === 0 && filter !== "all") setFilter("all");
  const empty = byId("empty");
  empty.hidden = count > 0;
  empty.textContent = t(query ? "grid.none" : "grid.empty");
}

function show(): void {
  const list = placed();
  describe(list.length);
  gallery.show(list, found !== undefined);
}

/** Pictures have come, changed or gone: the order stays until the next search. */
const changed = perFrame(() => {
  const list = placed();
  describe(list.length);
  gallery.update(list);
});

function setFilter(next: Filter): void {
  filter = next;
  for (const button of byId("filter").querySelectorAll("button")) button.setAttribute("aria-pressed", String(button.dataset["filter"] === next));
}

function report(run: Run): void {
  const remarks = [];
  if (session?.elsewhere) remarks.push(t("report.locked"));
  else if (session?.index.info.storage.kind === "memory") remarks.push(t("report.memory"));
  if (run.total === 0) remarks.push(t("report.empty"));
  status.reportRun(run, ignored, remarks);
}

async function take({ pictures: files, ignored: others }: Incoming): Promise<void> {
  ignored += others;
  ownRun = true;
  if (found) search.clear();
  status.clearReport();
  await developer.add(files);
}

async function remove(list: readonly Picture[]): Promise<void> {
  const ids = list.map(({ id }) => id);
  if (labels.picture && ids.includes(labels.picture.id)) labels.set(undefined);
  try {
    await Promise.all([pictures.remove(ids), session?.index.remove(ids)]);
    announce(t("remove.done", { n: ids.length }));
  } catch (thrown) {
    failed(thrown);
  }
  gallery.drop(ids);
  show();
}

/** Shows a failure where the page's work is. */
function failed(thrown: unknown): void {
  if (isAborted(thrown)) return;
  showError(byId("add-report"), thrown, { text: t("close"), run: () => status.clearReport() });
  byId("add-report").classList.remove("good");
}

let connecting = new AbortController();

/** Loads a model, and gives every picture its vector. */
async function connect(settings: ModelSettings): Promise<void> {
  connecting.abort();
  const abort = (connecting = new AbortController());
  const { signal } = abort;
  const before = session;
  session = undefined;
  use(undefined);
  status.loading(settings.choice);
  byId("load-error").hidden = true;
  byId("glass").dataset["lit"] = "false";
  const stopped = developer.use(undefined);
  await before?.close();
  await stopped;
  if (signal.aborted) return;
  try {
    const next = await Session.open({
      ...settings,
      signal,
      onProgress: (progress) => !signal.aborted && status.progress(progress),
      onIndex: () => !signal.aborted && status.openingIndex(),
      onDeviceChange: () => status.moved(),
    });
    if (signal.aborted) return void next.close();
    session = next;
  } catch (thrown) {
    if (signal.aborted && connecting !== abort) return;
    status.loaded(undefined);
    demo.error = { code: codeOf(thrown), message: String(thrown) };
    const place = byId("load-error");
    const retry = { text: t("retry"), run: () => void connect(modelPanel.settings) };
    const scenes = { text: t("model.scenes"), run: () => modelPanel.useScenes() };
    showError(place, thrown, ...(settings.choice.kind === "scenes" ? [retry] : [retry, scenes]));
    if (isAborted(thrown)) {
      place.querySelector(".alert-text")?.replaceChildren(t("loading.aborted"));
      place.querySelector(".alert-detail")?.remove();
    }
    return;
  }
  demo.error = undefined;
  demo.counters.loads += 1;
  status.loaded(session);
  byId("glass").dataset["lit"] = "true";
  await match(session);
  changed();
  use(session);
  const { elsewhere, index } = session;
  if (elsewhere) status.say(() => t("report.locked"));
  else if (index.info.storage.kind === "memory") status.say(() => t("report.memory"));
  keepOffline(session.model.info.device.kind);
  await developer.use(session);
  void status.measureMemory();
}

/** Sees which pictures the index has, and takes from it what is no longer on the table. */
async function match({ index }: Session): Promise<void> {
  const ids = new Set(await index.ids());
  for (const picture of pictures.list()) picture.state = ids.delete(picture.id) ? "ready" : "waiting";
  if (ids.size) await index.remove([...ids]);
}

function use(next: Session | undefined): void {
  search.use(next);
  labels.use(next);
  modelPanel.use(next);
}

function listen(): void {
  byId("language").addEventListener("click", () => setLanguage(language() === "zh" ? "en" : "zh"));
  const name = (): void => {
    const button = byId("language");
    [button.textContent, button.lang] = language() === "zh" ? ["English", "en"] : ["中文", "zh-CN"];
    show();
  };
  onLanguage(name);
  name();

  byId("lead-model").addEventListener("click", () => {
    byId<HTMLDetailsElement>("other-model").open = true;
    panel.open();
    byId("model-card").scrollIntoView({ block: "nearest" });
    byId("model-url").focus({ preventScroll: true });
  });
  byId("loading-cancel").addEventListener("click", () => connecting.abort());
  byId("developing-cancel").addEventListener("click", () => void developer.cancel());
  for (const [button, input, folder] of [
    ["add-files", "pick-files", false],
    ["add-folder", "pick-folder", true],
  ] as const) {
    const picker = byId<HTMLInputElement>(input);
    byId(button).addEventListener("click", () => picker.click());
    picker.addEventListener("change", () => {
      const incoming = fromDialog(picker.files ?? [], folder);
      picker.value = "";
      void take(incoming);
    });
  }
  byId("filter").addEventListener("click", (event) => {
    const next = (event.target as HTMLElement).dataset["filter"];
    if (next !== "all" && next !== "own" && next !== "scenes") return;
    setFilter(next);
    show();
  });

  const all = byId<HTMLButtonElement>("remove-all");
  let sure: ReturnType<typeof setTimeout> | undefined;
  const rest = (): void => {
    clearTimeout(sure);
    sure = undefined;
    all.textContent = t("remove.all");
  };
  all.addEventListener("click", () => {
    const own = pictures.list("own");
    if (sure === undefined) {
      // Nothing is asked in a window of its own; the button asks itself, for five seconds.
      all.textContent = t("remove.sure", { n: own.length });
      sure = setTimeout(rest, 5000);
      return;
    }
    rest();
    void remove(own).then(() => byId("add-files").focus());
  });
  all.addEventListener("blur", rest);

  let depth = 0;
  const dragging = (on: boolean): void => void document.body.classList.toggle("dragging", on);
  addEventListener("dragenter", ({ dataTransfer }) => hasFiles(dataTransfer) && dragging(++depth > 0));
  addEventListener("dragleave", ({ dataTransfer }) => hasFiles(dataTransfer) && dragging((depth = Math.max(0, depth - 1)) > 0));
  addEventListener("dragover", (event) => hasFiles(event.dataTransfer) && event.preventDefault());
  addEventListener("drop", (event) => {
    dragging((depth = 0) > 0);
    if (!event.dataTransfer || !hasFiles(event.dataTransfer)) return;
    event.preventDefault();
    const file = event.dataTransfer.files[0];
    if (search.owns(event.target) && file) search.byFile(file);
    else void fromDrop(event.dataTransfer).then(take);
  });
}

async function begin(): Promise<void> {
  await pictures.loadScenes().catch((thrown: unknown) => failed(thrown));
  await pictures.loadOwn().catch((thrown: unknown) => failed(thrown));
  listen();
  labels.set(pictures.list("scenes")[0]);
  await connect(modelPanel.settings);
}

demo.ready = begin();
Object.assign(globalThis, { __demo: demo });
registerOffline();
