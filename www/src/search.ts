// Looking for pictures, by words or by a picture.
import { announce, byId, make } from "./dom.js";
import { isAborted, showError } from "./errors.js";
import { fromDialog, hasFiles } from "./files.js";
import { language, number, onLanguage, t } from "./i18n.js";
import type { Picture, Pictures } from "./pictures.js";
import type { Session } from "./session.js";
import { EXAMPLES } from "./words.js";

/** Milliseconds after the last key. */
const PAUSE = 140;

/** What is looked for. */
export type Query =
  | { kind: "text"; text: string }
  /** `id`: the picture on the table, which is not its own answer. */
  | { kind: "picture"; source: Blob | string; id: string | undefined; thumbnail: string };

export interface Found {
  query: Query;
  hits: { picture: Picture; score: number }[];
  /** Milliseconds that the query's vector and the search took. */
  embedTime: number | undefined;
  searchTime: number;
}

export interface SearchListener {
  found(found: Found): void;
  cleared(): void;
}

export class Search {
  readonly #pictures: Pictures;
  readonly #listener: SearchListener;
  readonly #form = byId<HTMLFormElement>("search");
  readonly #input = byId<HTMLInputElement>("query");
  readonly #field = byId("field");
  readonly #hint = byId("query-hint");
  readonly #probe = byId("probe");
  readonly #pick = byId<HTMLInputElement>("pick-query");
  #session: Session | undefined;
  #query: Query | undefined;
  #vector: { query: Query; session: Session; values: Float32Array } | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #abort = new AbortController();

  constructor(pictures: Pictures, listener: SearchListener) {
    this.#pictures = pictures;
    this.#listener = listener;
    this.#input.addEventListener("input", (event) => {
      // Half a character of an input method is no query yet.
      if (!(event as InputEvent).isComposing) this.#typed(PAUSE);
    });
    this.#input.addEventListener("compositionend", () => this.#typed(PAUSE));
    this.#input.addEventListener("keydown", ({ key }) => {
      if (key === "Escape" && this.#query) this.clear();
      if (key === "Backspace" && !this.#input.value && this.#query?.kind === "picture") this.clear();
    });
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#typed(0);
    });
    byId("probe-clear").addEventListener("click", () => {
      this.clear();
      this.#input.focus();
    });
    byId("clear-query").addEventListener("click", () => {
      this.clear();
      this.#input.focus();
    });
    byId("query-picture").addEventListener("click", () => this.#pick.click());
    this.#pick.addEventListener("change", () => {
      const [file] = this.#pick.files ?? [];
      if (file) this.byFile(file);
      this.#pick.value = "";
    });
    addEventListener("paste", (event) => {
      const [file] = fromDialog(event.clipboardData?.files ?? [], true).pictures;
      if (!file) return;
      event.preventDefault();
      this.byFile(file);
    });
    this.#field.addEventListener("dragover", (event) => {
      if (!hasFiles(event.dataTransfer)) return;
      event.preventDefault();
      event.stopPropagation();
      this.#field.classList.add("over");
    });
    this.#field.addEventListener("dragleave", () => this.#field.classList.remove("over"));
    this.#examples();
    onLanguage(() => this.#examples());
  }

  get query(): Query | undefined {
    return this.#query;
  }

  /** Whether a drop's place is the search field. */
  owns(target: EventTarget | null): boolean {
    this.#field.classList.remove("over");
    return target instanceof Node && this.#field.contains(target);
  }

  /** Goes on with another model, or with none. */
  use(session: Session | undefined): void {
    this.#session = session;
    if (session) this.again();
  }

  /** Looks once more, since there are other pictures now. */
  again(): void {
    if (this.#query) void this.#run(this.#query);
  }

  byFile(file: Blob): void {
    this.#start({ kind: "picture", source: file, id: undefined, thumbnail: URL.createObjectURL(file) });
  }

  byPicture({ id, source, thumbnail }: Picture): void {
    this.#start({ kind: "picture", source, id, thumbnail });
  }

  clear(): void {
    clearTimeout(this.#timer);
    this.#abort.abort();
    this.#set(undefined);
    this.#input.value = "";
    this.#hint.textContent = "";
    this.#listener.cleared();
  }

  #typed(pause: number): void {
    clearTimeout(this.#timer);
    const text = this.#input.value.trim();
    if (!text) {
      if (this.#query?.kind === "text") this.clear();
      return;
    }
    this.#timer = setTimeout(() => this.#start({ kind: "text", text }), pause);
  }

  #start(query: Query): void {
    clearTimeout(this.#timer);
    const last = this.#query;
    if (query.kind === "text" && last?.kind === "text" && last.text === query.text) return;
    if (query.kind === "picture") this.#input.value = "";
    this.#set(query);
    void this.#run(query);
  }

  #set(query: Query | undefined): void {
    const last = this.#query;
    if (last?.kind === "picture" && last.id === undefined && last !== query) URL.revokeObjectURL(last.thumbnail);
    this.#query = query;
    this.#probe.hidden = query?.kind !== "picture";
    if (query?.kind === "picture") {
      const image = byId<HTMLImageElement>("probe-image");
      image.hidden = !query.thumbnail;
      image.src = query.thumbnail;
      byId("probe-text").textContent = t("probe.like");
    }
    for (const chip of byId("chips").querySelectorAll("button")) {
      chip.setAttribute("aria-pressed", String(query?.kind === "text" && chip.value === query.text));
    }
  }

  async #run(query: Query): Promise<void> {
    this.#abort.abort();
    this.#abort = new AbortController();
    const { signal } = this.#abort;
    const session = this.#session;
    if (!session) {
      this.#hint.textContent = t("query.waiting");
      return;
    }
    try {
      const start = performance.now();
      const { values, fresh } = await this.#embed(session, query, signal);
      const middle = performance.now();
      const hits = await session.search(values, signal);
      const end = performance.now();
      if (signal.aborted || query !== this.#query || session !== this.#session) return;
      const self = query.kind === "picture" ? query.id : undefined;
      const found = hits.flatMap(({ id, score }) => {
        const picture = id === self ? undefined : this.#pictures.get(id);
        return picture ? [{ picture, score }] : [];
      });
      const first = found[0];
      if (first) announce(t("grid.found", { name: first.picture.name, score: number(first.score, 3) }));
      this.#hint.textContent = "";
      this.#listener.found({ query, hits: found, embedTime: fresh ? middle - start : undefined, searchTime: end - middle });
      if (query.kind === "text") await this.#tellUnknown(session, query.text, signal);
    } catch (thrown) {
      if (isAborted(thrown) || query !== this.#query) return;
      showError(this.#hint, thrown);
    }
  }

  async #embed(session: Session, query: Query, signal: AbortSignal): Promise<{ values: Float32Array; fresh: boolean }> {
    const known = this.#vector;
    if (known && known.query === query && known.session === session) return { values: known.values, fresh: false };
    const kept = query.kind === "picture" && query.id ? await session.index.get(query.id) : undefined;
    const values = kept ?? (query.kind === "text" ? await session.embedText(query.text, signal) : await session.embedImage(query.source, signal));
    this.#vector = { query, session, values };
    return { values, fresh: kept === undefined };
  }

  async #tellUnknown(session: Session, text: string, signal: AbortSignal): Promise<void> {
    const { unknown, all } = await session.unknown(text, signal);
    if (signal.aborted || unknown === 0) return;
    this.#hint.textContent = unknown === all ? t("query.unknown.all") : t("query.unknown.some", { n: unknown });
  }

  #examples(): void {
    const chips = EXAMPLES.map(([zh, en]) => {
      const button = make("button", { type: "button", className: "chip", value: zh }, make("span", { lang: "zh-CN" }, zh));
      if (language() === "en") button.append(make("small", {}, en));
      button.setAttribute("aria-pressed", String(this.#query?.kind === "text" && this.#query.text === zh));
      button.addEventListener("click", () => {
        this.#input.value = zh;
        this.#start({ kind: "text", text: zh });
      });
      return make("li", {}, button);
    });
    byId("chips").replaceChildren(...chips);
    if (this.#query?.kind === "picture") byId("probe-text").textContent = t("probe.like");
  }
}
