// The device's badge, progress, and what has been measured.
import type { LoadProgress, ModelInfo } from "ernie-vil";
import type { Developer, Run } from "./developer.js";
import { byId, facts, make, perFrame } from "./dom.js";
import { advice, words } from "./errors.js";
import { bytes, duration, isKey, language, number, onLanguage, t } from "./i18n.js";
import { reasonText } from "./reasons.js";
import type { Choice, Session } from "./session.js";

/** Failures that a report names; of more it says how many there are. */
const NAMED = 5;

/** What has been measured, for the panel. */
export interface Figures {
  queryTime: number | undefined;
  searchTime: number | undefined;
  memory: { kind: "page" | "heap"; size: number } | undefined;
}

function gpuName({ adapter }: ModelInfo["device"]): string {
  if (!adapter) return "";
  const { vendor, architecture, description } = adapter;
  const name = { nvidia: "NVIDIA", amd: "AMD", intel: "Intel", apple: "Apple", qualcomm: "Qualcomm", arm: "Arm" }[vendor] ?? vendor;
  return description || [name, architecture].filter(Boolean).join(" ");
}

/** The device in a few words. */
export function deviceText({ device }: ModelInfo): string {
  if (device.kind === "cpu") return ["CPU", t("badge.threads", { n: device.threads }), "WebAssembly SIMD"].join(" · ");
  return ["WebGPU", gpuName(device), device.adapter?.software ? t("badge.software") : ""].filter(Boolean).join(" · ");
}

export class Status {
  readonly #badge = byId<HTMLButtonElement>("badge");
  readonly #pop = byId("device");
  readonly #developer: Developer;
  readonly figures: Figures = { queryTime: undefined, searchTime: undefined, memory: undefined };
  #session: Session | undefined;
  #loading = false;
  /** Whether the browser was asked for the memory and does not tell. */
  #silent = false;
  /** Whether the model comes from the disk. */
  #disk = false;
  #progress: LoadProgress | undefined;
  #files = new Map<string, { row: HTMLElement; bar: HTMLProgressElement; text: HTMLElement }>();
  readonly #showProgress = perFrame(() => this.#drawProgress());
  readonly #showFigures = perFrame(() => this.#drawFigures());
  readonly #showRun = perFrame(() => this.#drawRun());
  #run: Run | undefined;
  #report: (() => void) | undefined;

  constructor(developer: Developer) {
    this.#developer = developer;
    this.#pop.addEventListener("toggle", (event) => {
      if ((event as ToggleEvent).newState !== "open") return;
      const { bottom, right } = this.#badge.getBoundingClientRect();
      const left = Math.min(right, innerWidth - 12) - this.#pop.offsetWidth;
      this.#pop.style.setProperty("top", `${bottom + 8}px`);
      this.#pop.style.setProperty("left", `${Math.max(12, left)}px`);
    });
    onLanguage(() => this.#draw());
    this.#draw();
  }

  /** A model is being loaded. */
  loading({ kind }: Choice): void {
    this.#loading = true;
    this.#disk = kind === "disk";
    this.#session = undefined;
    this.#progress = undefined;
    this.#files.clear();
    byId("loading-files").replaceChildren();
    byId("loading").hidden = false;
    byId("loading-text").textContent = t("loading.start");
    byId<HTMLProgressElement>("loading-bar").removeAttribute("value");
    this.#draw();
  }

  progress(progress: LoadProgress): void {
    this.#progress = progress;
    this.#file(progress);
    this.#showProgress();
  }

  openingIndex(): void {
    byId("loading-text").textContent = t("loading.index");
  }

  /** Loading has come to its end, with a model or without one. */
  loaded(session: Session | undefined): void {
    this.#loading = false;
    this.#session = session;
    byId("loading").hidden = true;
    this.figures.queryTime = this.figures.searchTime = undefined;
    this.#draw();
  }

  /** The model has moved to another device. */
  moved(): void {
    this.#draw();
  }

  #file({ file, fileLoaded, fileTotal }: LoadProgress): void {
    let known = this.#files.get(file);
    if (!known) {
      const bar = make("progress", { max: 1, value: 0 });
      const text = make("span");
      const row = make("label", { className: "bar" }, make("span", { className: "file", lang: "en" }, file), text, bar);
      byId("loading-files").append(row);
      known = { row, bar, text };
      this.#files.set(file, known);
    }
    known.bar.value = fileTotal ? fileLoaded / fileTotal : 1;
    known.text.textContent = `${bytes(fileLoaded)} / ${bytes(fileTotal)}`;
  }

  #drawProgress(): void {
    const progress = this.#progress;
    if (!progress || !this.#loading) return;
    const { loaded, total, fromCache } = progress;
    const from = t(this.#disk ? "loading.disk" : fromCache ? "loading.cache" : "loading.network");
    byId("loading-text").textContent = t("loading.bytes", { loaded: bytes(loaded), total: bytes(total), from });
    byId<HTMLProgressElement>("loading-bar").value = total ? loaded / total : 1;
  }

  #draw(): void {
    const info = this.#session?.model.info;
    const kind = info?.device.kind ?? (this.#loading ? "loading" : "none");
    this.#badge.dataset["kind"] = kind;
    const [device, ...rest] = info ? deviceText(info).split(" · ") : [t(this.#loading ? "badge.loading" : "badge.none")];
    // The last part is left out where there is no room.
    const last = rest.length > 1 ? rest.pop() : undefined;
    byId("badge-text").replaceChildren([device, ...rest].join(" · "), ...(last ? [make("span", { className: "roomy" }, ` · ${last}`)] : []));
    byId("device-reason").textContent = info ? reasonText(info.device.reason) : t(this.#loading ? "badge.loading" : "badge.none");
    const { adapter } = info?.device ?? {};
    const limit = adapter?.limits["maxBufferSize"];
    facts(
      byId("device-list"),
      info
        ? [
            [t("device.adapter"), adapter && (adapter.description || [adapter.vendor, adapter.architecture, adapter.device].filter(Boolean).join(" "))],
            [t("device.f16"), adapter && t(adapter.f16 ? "yes" : "no")],
            [t("device.buffer"), limit ? bytes(limit) : undefined],
            [t("device.dtype"), info.dtype],
            [t("device.worker"), t(info.device.worker ? "device.worker.yes" : "device.worker.no")],
            [t("device.isolated"), t(crossOriginIsolated ? "device.isolated.yes" : "device.isolated.no")],
            [t("device.version"), `ernie-vil ${info.version}`],
          ]
        : [],
    );
    this.#drawFigures();
    this.#drawRun();
    this.#report?.();
  }

  /** Shows the figures as they are now. */
  measured(): void {
    this.#showFigures();
  }

  #drawFigures(): void {
    const session = this.#session;
    const { queryTime, searchTime, memory } = this.figures;
    const { embedded, time } = this.#developer;
    const info = session?.model.info;
    const none = "–";
    const stored = info && session ? `storage.${session.index.info.storage.kind}` : "";
    facts(byId("figures"), [
      [
        t("figures.load"),
        session && info ? t(`figures.load.${this.#disk ? "disk" : info.cache.fromCache ? "cache" : "network"}`, { time: duration(session.loadTime) }) : none,
      ],
      [t("figures.image"), embedded ? t("figures.image.of", { time: duration(time / embedded), n: embedded }) : none],
      [t("figures.query"), queryTime === undefined ? none : duration(queryTime)],
      [t("figures.search", { n: session?.index.size ?? 0 }), searchTime === undefined ? none : duration(searchTime)],
      [t("figures.memory"), memory ? t(`figures.memory.${memory.kind}`, { size: bytes(memory.size) }) : this.#silent ? t("figures.memory.none") : none],
      [t("figures.storage"), isKey(stored) ? t(stored) : undefined],
    ]);
  }

  /** Asks the browser how much memory the page and its workers take; it may take its time to answer. */
  async measureMemory(): Promise<void> {
    const { measureUserAgentSpecificMemory, memory } = performance as Performance & {
      measureUserAgentSpecificMemory?: () => Promise<{ bytes: number }>;
      memory?: { usedJSHeapSize: number };
    };
    const page = crossOriginIsolated ? await measureUserAgentSpecificMemory?.call(performance).catch(() => undefined) : undefined;
    if (page) this.figures.memory = { kind: "page", size: page.bytes };
    else if (memory) this.figures.memory = { kind: "heap", size: memory.usedJSHeapSize };
    else this.#silent = true;
    this.measured();
  }

  /** Pictures are being developed. */
  developing(run: Run | undefined): void {
    this.#run = run;
    this.#showRun();
  }

  #drawRun(): void {
    const run = this.#run;
    byId("developing").hidden = !run || run.total === 0;
    if (!run || run.total === 0) return;
    const { done, total, embedded, time } = run;
    const parts = [t("developing.text", { done: number(done), total: number(total) })];
    if (embedded) {
      const each = time / embedded;
      parts.push(t("developing.rate", { ms: duration(each) }));
      if (each * (total - done) > 3000) parts.push(t("developing.left", { time: duration(each * (total - done)) }));
    }
    byId("developing-text").textContent = parts.join(" · ");
    byId<HTMLProgressElement>("developing-bar").value = done / total;
    this.#drawFigures();
  }

  /** Says what became of files that came in. */
  reportRun(run: Run, ignored: number, remarks: readonly string[]): void {
    this.#report = () => {
      const { added, duplicates, failures, cancelled, unsaved } = run;
      const sentences = [
        cancelled ? t("report.cancelled") : "",
        added ? t("report.added", { n: added }) : "",
        duplicates ? t("report.duplicates", { n: duplicates }) : "",
        ignored ? t("report.ignored", { n: ignored }) : "",
        ...remarks,
      ].filter(Boolean);
      const place = byId("add-report");
      const close = make("button", { type: "button", className: "small" }, t("close"));
      close.addEventListener("click", () => this.clearReport());
      const failed = failures.slice(0, NAMED).map(({ name, error }) =>
        make("li", {}, make("strong", {}, name), language() === "zh" ? "：" : ": ", advice(error), " ", make("q", { lang: "en", className: "quiet" }, words(error))),
      );
      if (failures.length > NAMED) failed.push(make("li", {}, `… +${failures.length - NAMED}`));
      place.replaceChildren(
        make("p", { className: "alert-text" }, sentences.join(" ")),
        ...(failures.length ? [make("p", {}, t("report.failed", { n: failures.length })), make("ul", {}, ...failed)] : []),
        ...(unsaved ? [make("p", {}, t("report.unsaved"), " ", advice(unsaved))] : []),
        make("p", { className: "row" }, close),
      );
      place.classList.toggle("good", failures.length === 0 && !unsaved);
      place.hidden = false;
    };
    this.#report();
  }

  /** Says one thing in the place of reports. */
  say(text: () => string): void {
    this.#report = () => {
      const close = make("button", { type: "button", className: "small" }, t("close"));
      close.addEventListener("click", () => this.clearReport());
      const place = byId("add-report");
      place.replaceChildren(make("p", { className: "alert-text" }, text()), make("p", { className: "row" }, close));
      place.classList.add("good");
      place.hidden = false;
    };
    this.#report();
  }

  clearReport(): void {
    this.#report = undefined;
    byId("add-report").hidden = true;
  }
}
