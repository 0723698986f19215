// Which model runs, on what, and whether its files are kept.
import { ErnieVil } from "ernie-vil";
import { byId, facts, make } from "./dom.js";
import { showError } from "./errors.js";
import { keep, number, onLanguage, read, t } from "./i18n.js";
import type { Choice, Device, Session } from "./session.js";

const KEEP_DEVICE = "light-table.device";
const KEEP_CACHE = "light-table.cache";
const KEEP_MODEL = "light-table.model";

const SCENES = "models/scenes/";

export interface ModelSettings {
  choice: Choice;
  device: Device;
  cache: boolean;
  /** For tests: a program that behaves like a GPU counts as one. */
  allowSoftware: boolean;
}

function isDevice(value: string | null | undefined): value is Device {
  return value === "auto" || value === "cpu" || value === "webgpu";
}

const scenes = (): Choice => ({ kind: "scenes", source: new URL(SCENES, document.baseURI), name: "scenes" });
const at = (url: string): Choice => ({ kind: "url", source: new URL(url, document.baseURI), name: url });

export class ModelPanel {
  readonly #device = byId<HTMLSelectElement>("device-choice");
  readonly #cache = byId<HTMLInputElement>("cache");
  readonly #state = byId("cache-state");
  readonly #url = byId<HTMLInputElement>("model-url");
  readonly #pick = byId<HTMLInputElement>("pick-model");
  readonly #change: (settings: ModelSettings) => void;
  #session: Session | undefined;
  #settings: ModelSettings;

  constructor(change: (settings: ModelSettings) => void) {
    this.#change = change;
    const address = new URLSearchParams(location.search);
    const device = address.get("device") ?? read(KEEP_DEVICE);
    const model = address.get("model") ?? read(KEEP_MODEL);
    this.#settings = {
      choice: model ? at(model) : scenes(),
      device: isDevice(device) ? device : "auto",
      cache: read(KEEP_CACHE) !== "no",
      allowSoftware: address.has("software"),
    };
    this.#device.value = this.#settings.device;
    this.#cache.checked = this.#settings.cache;
    if (model) this.#url.value = model;

    this.#device.addEventListener("change", () => {
      if (!isDevice(this.#device.value)) return;
      keep(KEEP_DEVICE, this.#device.value);
      this.#set({ device: this.#device.value });
    });
    this.#cache.addEventListener("change", () => {
      keep(KEEP_CACHE, this.#cache.checked ? undefined : "no");
      // What is loaded need not be loaded again to be kept: the next visit does that.
      this.#settings = { ...this.#settings, cache: this.#cache.checked };
      if (this.#cache.checked) this.#set({});
      else void this.#clear();
    });
    byId("cache-clear").addEventListener("click", () => void this.#clear());
    byId("model-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#load(this.#url.value.trim());
    });
    byId("model-folder").addEventListener("click", () => this.#pick.click());
    this.#pick.addEventListener("change", () => {
      const files = Array.from(this.#pick.files ?? []);
      this.#pick.value = "";
      const [first] = files;
      if (!first) return;
      // Of folders in the folder nothing is wanted.
      const own = files.filter(({ webkitRelativePath }) => webkitRelativePath.split("/").length <= 2);
      const folder = first.webkitRelativePath.split("/")[0] ?? "";
      keep(KEEP_MODEL, undefined);
      this.#set({ choice: { kind: "disk", source: own, name: folder } });
    });
    byId("model-scenes").addEventListener("click", () => {
      keep(KEEP_MODEL, undefined);
      this.#set({ choice: scenes() });
    });
    onLanguage(() => this.#draw());
    this.#draw();
  }

  get settings(): ModelSettings {
    return this.#settings;
  }

  /** Goes back to the bundled model. */
  useScenes(): void {
    keep(KEEP_MODEL, undefined);
    this.#set({ choice: scenes() });
  }

  use(session: Session | undefined): void {
    this.#session = session;
    this.#draw();
    if (session) void this.#showCache();
    else this.#state.textContent = "";
  }

  #set(settings: Partial<ModelSettings>): void {
    this.#settings = { ...this.#settings, ...settings };
    this.#draw();
    this.#change(this.#settings);
  }

  #load(address: string): void {
    if (!address) return;
    let url: URL;
    try {
      url = new URL(address, document.baseURI);
    } catch (thrown) {
      showError(this.#state, thrown);
      return;
    }
    if (url.origin !== location.origin) {
      this.#wrong(t("model.url.other", { host: url.host }));
      return;
    }
    keep(KEEP_MODEL, address);
    this.#set({ choice: at(address) });
  }

  #wrong(text: string): void {
    byId("model-url-about").replaceChildren(make("strong", { className: "wrong" }, text));
    this.#url.focus();
  }

  #draw(): void {
    const { choice } = this.#settings;
    const other = choice.kind === "disk" ? t("model.disk", { name: choice.name }) : choice.name;
    const { note } = this.#session?.model.info ?? {};
    const about = choice.kind === "scenes" ? t("model.scenes.note") : t("model.other.note", { source: other });
    for (const place of ["lead-note", "model-note"]) {
      // A model of random or small weights says so itself.
      byId(place).replaceChildren(about, ...(note && choice.kind !== "scenes" ? [" ", make("q", { lang: "en" }, note)] : []));
    }
    byId("model-scenes").hidden = choice.kind === "scenes";
    byId("model-url-about").textContent = t("model.url.about");
    const info = this.#session?.model.info;
    facts(
      byId("model-facts"),
      info
        ? [
            [t("model.structure"), info.structure === "other" ? undefined : info.structure],
            [t("model.parameters"), number(info.parameters)],
            [t("model.dimensions"), number(info.dimensions)],
            [t("model.image"), `${info.imageSize} px`],
            [t("model.vocab"), number(info.vocabSize)],
            [t("model.fingerprint"), info.fingerprint.slice(0, 12)],
          ]
        : [],
    );
  }

  async #clear(): Promise<void> {
    const { source } = this.#settings.choice;
    try {
      if (source instanceof URL) await ErnieVil.clearCache(source);
      this.#state.textContent = t("cache.cleared");
    } catch (thrown) {
      showError(this.#state, thrown);
    }
  }

  async #showCache(): Promise<void> {
    const { source } = this.#settings.choice;
    const cache = this.#session?.model.info.cache;
    try {
      if (!(source instanceof URL)) this.#state.textContent = t("cache.disk");
      else if (await ErnieVil.isCached(source)) this.#state.textContent = t("cache.kept");
      else this.#state.textContent = cache?.reason && this.#settings.cache ? t("cache.failed", { reason: cache.reason }) : t("cache.empty");
    } catch (thrown) {
      showError(this.#state, thrown);
    }
  }
}
