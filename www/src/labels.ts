// Zero-shot labels: which of some words is a picture most like?
import type { Classification } from "ernie-vil";
import { announce, byId, make } from "./dom.js";
import { isAborted, showError } from "./errors.js";
import { keep, language, onLanguage, percent, read, t } from "./i18n.js";
import type { Picture } from "./pictures.js";
import type { Session } from "./session.js";
import { LABEL_SETS, type LabelSetName, MEANINGS } from "./words.js";

const KEEP_LABELS = "light-table.labels";
const KEEP_TEMPLATE = "light-table.template";
const MOST = 60;

export class Labels {
  readonly #list = byId<HTMLOListElement>("labels");
  readonly #hint = byId("labels-hint");
  readonly #sets = byId("label-sets");
  readonly #template = byId<HTMLInputElement>("template");
  #labels: string[];
  #results = new Map<string, Classification>();
  #rows = new Map<string, HTMLLIElement>();
  #picture: Picture | undefined;
  #session: Session | undefined;
  #abort = new AbortController();

  constructor() {
    this.#labels = keptLabels() ?? [...LABEL_SETS.things.labels];
    this.#template.value = read(KEEP_TEMPLATE) ?? LABEL_SETS.things.template;
    const field = byId<HTMLInputElement>("label-new");
    byId("label-form").addEventListener("submit", (event) => {
      event.preventDefault();
      const added = field.value.split(/[,，、;；\s]+/).map((label) => label.trim()).filter((label) => label && !this.#labels.includes(label));
      field.value = "";
      if (added.length === 0) return;
      this.#labels = [...this.#labels, ...added].slice(0, MOST);
      this.#changed();
    });
    this.#list.addEventListener("click", (event) => {
      const label = (event.target as Element).closest("button")?.value;
      if (label === undefined) return;
      const next = this.#rows.get(label)?.nextElementSibling ?? this.#rows.get(label)?.previousElementSibling;
      this.#labels = this.#labels.filter((other) => other !== label);
      this.#changed();
      // The focus would fall back to the page's start.
      (next?.querySelector("button") ?? field).focus();
    });
    this.#template.addEventListener("change", () => this.#changed());
    this.#sets.addEventListener("click", (event) => {
      const name = (event.target as HTMLElement).dataset["set"];
      const set = name !== undefined && name in LABEL_SETS ? LABEL_SETS[name as LabelSetName] : undefined;
      if (!set) return;
      this.#labels = [...set.labels];
      this.#template.value = set.template;
      this.#changed();
    });
    onLanguage(() => {
      this.#rows.clear();
      this.#show();
    });
    this.#show();
  }

  use(session: Session | undefined): void {
    this.#session = session;
    this.#results.clear();
    this.#show();
    void this.#compare();
  }

  /** The picture that is compared. */
  set(picture: Picture | undefined): void {
    this.#picture = picture;
    byId("subject").hidden = !picture;
    if (picture) {
      byId<HTMLImageElement>("subject-image").src = picture.thumbnail;
      byId("subject-name").textContent = picture.name;
    }
    this.#results.clear();
    this.#show();
    void this.#compare();
  }

  get picture(): Picture | undefined {
    return this.#picture;
  }

  /** What came out last, the likeliest first. */
  get results(): readonly Classification[] {
    return [...this.#results.values()];
  }

  #changed(): void {
    keep(KEEP_LABELS, JSON.stringify(this.#labels));
    keep(KEEP_TEMPLATE, this.#template.value);
    this.#results.clear();
    this.#show();
    void this.#compare();
  }

  async #compare(): Promise<void> {
    this.#abort.abort();
    this.#abort = new AbortController();
    const { signal } = this.#abort;
    const [picture, session] = [this.#picture, this.#session];
    this.#hint.classList.remove("wrong");
    if (!picture) {
      this.#hint.textContent = t("labels.pick");
      return;
    }
    if (this.#labels.length === 0 || !this.#template.value.includes("{}")) {
      this.#hint.classList.add("wrong");
      this.#hint.textContent = t(this.#labels.length === 0 ? "labels.none" : "labels.template.wrong");
      return;
    }
    this.#hint.textContent = t("labels.waiting");
    if (!session) return;
    try {
      const results = await session.classify(picture.source, this.#labels, this.#template.value, signal);
      if (signal.aborted) return;
      this.#results = new Map(results.map((result) => [result.label, result]));
      this.#tell();
      this.#show();
    } catch (thrown) {
      if (!isAborted(thrown)) showError(this.#hint, thrown);
    }
  }

  #tell(): void {
    const [best] = this.#results.values();
    if (!best) return;
    this.#hint.textContent = t("labels.result", { label: best.label, share: percent(best.probability) });
    announce(this.#hint.textContent);
  }

  #show(): void {
    for (const button of this.#sets.querySelectorAll("button")) {
      const { labels, template } = LABEL_SETS[button.dataset["set"] as LabelSetName];
      const same = template === this.#template.value && labels.length === this.#labels.length && labels.every((label) => this.#labels.includes(label));
      button.setAttribute("aria-pressed", String(same));
    }
    const order = this.#results.size ? [...this.#results.keys()] : this.#labels;
    for (const label of this.#rows.keys()) if (!order.includes(label)) this.#rows.delete(label);
    const rows = order.map((label, position) => {
      const row = this.#rows.get(label) ?? makeRow(label);
      this.#rows.set(label, row);
      const result = this.#results.get(label);
      row.classList.toggle("first", position === 0 && result !== undefined);
      row.style.setProperty("--share", (result?.probability ?? 0).toFixed(4));
      const share = row.querySelector(".share");
      if (share) share.textContent = result ? percent(result.probability) : "";
      return row;
    });
    this.#list.replaceChildren(...rows);
    if (!this.#picture) this.#hint.textContent = t("labels.pick");
    else if (this.#results.size) this.#hint.textContent = t("labels.result", { label: order[0] ?? "", share: percent(this.#results.get(order[0] ?? "")?.probability ?? 0) });
  }
}

function makeRow(label: string): HTMLLIElement {
  const remove = make("button", { type: "button", className: "plain", value: label });
  remove.setAttribute("aria-label", t("labels.remove", { label }));
  remove.innerHTML = '<svg viewBox="0 0 16 16" aria-hidden="true"><path d="M4 4l8 8M12 4l-8 8" /></svg>';
  const name = make("span", { className: "label-name" }, make("span", { lang: "zh-CN" }, label));
  const meaning = language() === "en" ? MEANINGS[label] : undefined;
  if (meaning) name.append(" ", make("small", {}, meaning));
  return make("li", {}, name, make("span", { className: "share" }), remove);
}

function keptLabels(): string[] | undefined {
  try {
    const kept: unknown = JSON.parse(read(KEEP_LABELS) ?? "");
    return Array.isArray(kept) && kept.every((label) => typeof label === "string") ? kept : undefined;
  } catch {
    return undefined;
  }
}
