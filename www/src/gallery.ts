// The pictures as they lie on the table.
import { byId, calm, make } from "./dom.js";
import { type Key, number, onLanguage, t } from "./i18n.js";
import type { Picture, PictureState } from "./pictures.js";

/** A picture in its place, with its similarity where something is looked for. */
export interface Placed {
  picture: Picture;
  score: number | undefined;
}

export interface Actions {
  labels(picture: Picture): void;
  similar(picture: Picture): void;
  remove(picture: Picture): void;
  addFiles(): void;
  addFolder(): void;
}

/** Slides that are laid out at once: what a screen shows. Who scrolls gets more of them, as often as needed. */
const STEP = 24;
const MOVE = { duration: 480, easing: "cubic-bezier(0.2, 0.75, 0.15, 1)" };
/** Slides arrive one shortly after the other. */
const STAGGER = 18;

/** A slide's elements, and what they show. */
class Slide {
  readonly element: HTMLLIElement;
  readonly mount: HTMLElement;
  readonly buttons: readonly HTMLElement[];
  readonly #score: HTMLElement;
  #shown = "";

  constructor(template: HTMLTemplateElement, { id, name, number: printed, own, thumbnail }: Picture) {
    this.element = template.content.firstElementChild?.cloneNode(true) as HTMLLIElement;
    const part = (selector: string): HTMLElement => this.element.querySelector(selector) as HTMLElement;
    this.mount = part(".mount");
    this.buttons = Array.from(this.element.querySelectorAll<HTMLElement>("[data-act]"));
    this.#score = part(".score");
    this.element.dataset["id"] = id;
    this.element.classList.toggle("own", own);
    const image = part("img") as HTMLImageElement;
    if (thumbnail) image.src = thumbnail;
    else image.replaceWith(make("span", { className: "no-thumbnail" }, name.split(".").at(-1) ?? ""));
    part(".number").textContent = `▸ ${printed}`;
    part(".caption").textContent = name;
    part("[data-act=remove]").hidden = !own;
    this.name(name);
  }

  /** The words that depend on the language. */
  name(name: string): void {
    for (const button of this.buttons) {
      const act = button.dataset["act"] as keyof typeof WORDS;
      const { label, title } = WORDS[act];
      button.setAttribute("aria-label", t(label, { name }));
      if (title) button.title = t(title);
    }
    this.#shown = "";
  }

  /** Shows what has changed, and touches nothing else. */
  show(state: PictureState, score: number | undefined, strength: number, best: boolean): void {
    const text = score === undefined ? "" : number(score, 3);
    const shown = `${state} ${text} ${strength.toFixed(2)} ${best}`;
    if (shown === this.#shown) return;
    this.#shown = shown;
    this.element.dataset["state"] = state;
    this.element.classList.toggle("best", best);
    this.element.style.setProperty("--strength", strength.toFixed(3));
    this.#score.textContent = text;
    if (text) this.#score.setAttribute("aria-label", t("card.score", { score: text }));
    else this.#score.removeAttribute("aria-label");
  }

  /** Whether the tab key reaches it. */
  set reachable(reachable: boolean) {
    for (const button of this.buttons) button.tabIndex = reachable ? 0 : -1;
  }
}

const WORDS = {
  labels: { label: "card.labels", title: undefined },
  similar: { label: "card.similar", title: "card.similar.short" },
  remove: { label: "card.remove", title: "card.remove.short" },
} as const satisfies Record<string, { label: Key; title: Key | undefined }>;

export class Gallery {
  readonly #grid = byId<HTMLOListElement>("grid");
  readonly #more = byId<HTMLButtonElement>("more");
  readonly #template = byId<HTMLTemplateElement>("slide");
  readonly #slides = new Map<string, Slide>();
  readonly #slot: HTMLLIElement;
  readonly #mark = pencilMark();
  readonly #actions: Actions;
  #placed: readonly Placed[] = [];
  #marked = false;
  #limit = STEP;
  #current = "";
  #chosen = "";

  constructor(actions: Actions) {
    this.#actions = actions;
    this.#slot = this.#makeSlot();
    this.#grid.addEventListener("click", (event) => this.#click(event));
    this.#grid.addEventListener("keydown", (event) => this.#key(event));
    this.#grid.addEventListener("focusin", (event) => this.#focused(event));
    const more = (): void => {
      this.#limit += STEP;
      this.#render(false);
    };
    this.#more.addEventListener("click", more);
    // Who scrolls on need not ask.
    const observer = new IntersectionObserver(
      ([entry]) => {
        if (!entry?.isIntersecting || this.#more.hidden) return;
        more();
        // The button may be as near as before; it is only told about changes.
        observer.unobserve(this.#more);
        observer.observe(this.#more);
      },
      { rootMargin: "500px" },
    );
    observer.observe(this.#more);
    onLanguage(() => {
      // Slides that are not on the table are made anew when they come back.
      const there = new Map(this.#placed.map(({ picture }) => [picture.id, picture]));
      for (const [id, slide] of this.#slides) {
        const picture = there.get(id);
        if (picture) slide.name(picture.name);
        else this.#slides.delete(id);
      }
      this.#render(false);
    });
  }

  /**
   * Lays pictures out.
   *
   * @param search whether they are in the order of a search, of which the first is marked
   */
  show(placed: readonly Placed[], search: boolean): void {
    const before = this.#marked;
    this.#placed = placed;
    this.#marked = search;
    if (before !== search || search) this.#limit = STEP;
    this.#render(true);
  }

  /** Takes over what has changed. */
  update(placed: readonly Placed[]): void {
    this.#placed = placed;
    this.#render(false);
  }

  /** The picture that the side panel is about. */
  choose(id: string): void {
    this.#slides.get(this.#chosen)?.mount.setAttribute("aria-pressed", "false");
    this.#chosen = id;
    this.#slides.get(id)?.mount.setAttribute("aria-pressed", "true");
  }

  #render(move: boolean): void {
    const placed = this.#placed.slice(0, this.#limit);
    const before = move && !calm.matches ? this.#places() : undefined;
    const scores = placed.flatMap(({ score }) => score ?? []);
    const [highest, lowest] = [Math.max(...scores), Math.min(...scores, 0)];
    this.#grid.classList.toggle("scored", scores.length > 0);

    let next: Element | null = this.#grid.firstElementChild;
    const lay = (element: HTMLLIElement): void => {
      if (element === next) next = element.nextElementSibling;
      else this.#grid.insertBefore(element, next);
    };
    if (!this.#marked) lay(this.#slot);
    const wanted = new Set(placed.map(({ picture }) => picture.id));
    for (const [position, { picture, score }] of placed.entries()) {
      const slide = this.#slides.get(picture.id) ?? this.#makeSlide(picture);
      const { element } = slide;
      const best = this.#marked && position === 0;
      slide.show(picture.state, score, score === undefined ? 0 : (score - lowest) / (highest - lowest || 1), best);
      if (best && this.#mark.parentElement !== element) element.append(this.#mark);
      // A slide that goes down the list for one that comes up from below is laid in one step.
      if (next && next !== element && !wanted.has((next as HTMLElement).dataset["id"] ?? "")) {
        const gone = next;
        next = next.nextElementSibling;
        gone.remove();
      }
      lay(element);
    }
    while (next) {
      const gone: Element = next;
      next = next.nextElementSibling;
      gone.remove();
    }
    if (!this.#marked) this.#mark.remove();
    if (!wanted.has(this.#current)) this.#setCurrent(placed[0]?.picture.id ?? "");

    const rest = this.#placed.length - placed.length;
    this.#more.hidden = rest === 0;
    this.#more.textContent = t("grid.more", { n: Math.min(rest, STEP) });
    if (before) this.#animate(before);
  }

  /** Where the slides are that can be seen. */
  #places(): Map<Element, DOMRect> {
    const places = new Map<Element, DOMRect>();
    for (const slide of this.#grid.children) {
      const place = slide.getBoundingClientRect();
      if (place.top > innerHeight * 1.5) break;
      if (place.bottom > -innerHeight / 2) places.set(slide, place);
    }
    return places;
  }

  #animate(before: Map<Element, DOMRect>): void {
    const after = this.#places();
    let arriving = 0;
    for (const [slide, place] of after) {
      const old = before.get(slide);
      if (old) {
        const [x, y] = [old.left - place.left, old.top - place.top];
        if (x || y) slide.animate([{ transform: `translate(${x}px, ${y}px)` }, { transform: "none" }], MOVE);
      } else {
        const delay = Math.min(arriving++ * STAGGER, 240);
        slide.animate([{ opacity: 0, transform: "scale(0.94)" }, { opacity: 1, transform: "none" }], { ...MOVE, delay, fill: "backwards" });
      }
    }
  }

  /** Lets go of the slides of pictures that were removed. */
  drop(ids: readonly string[]): void {
    for (const id of ids) {
      this.#slides.get(id)?.element.remove();
      this.#slides.delete(id);
    }
  }

  #makeSlide(picture: Picture): Slide {
    const slide = new Slide(this.#template, picture);
    this.#slides.set(picture.id, slide);
    if (picture.id === this.#chosen) this.choose(picture.id);
    return slide;
  }

  /** The empty mount that waits for the visitor's pictures. */
  #makeSlot(): HTMLLIElement {
    const title = make("p", { className: "slot-title" });
    const about = make("p", { className: "slot-about" });
    const files = make("button", { type: "button", className: "small" });
    const folder = make("button", { type: "button", className: "small" });
    files.addEventListener("click", () => this.#actions.addFiles());
    folder.addEventListener("click", () => this.#actions.addFolder());
    const words = (): void => {
      title.textContent = t("slot.title");
      about.textContent = t("slot.about");
      files.textContent = t("add.files.short");
      folder.textContent = t("add.folder.short");
    };
    words();
    onLanguage(words);
    return make("li", { className: "slide slot" }, make("div", { className: "slot-inner" }, title, about, make("p", { className: "slot-buttons" }, files, folder)));
  }

  #at(event: Event): { picture: Picture; slide: HTMLElement; button: HTMLElement } | undefined {
    const button = (event.target as Element).closest<HTMLElement>("[data-act]");
    const slide = button?.closest<HTMLElement>(".slide");
    const placed = this.#placed.find(({ picture }) => picture.id === slide?.dataset["id"]);
    return button && slide && placed ? { picture: placed.picture, slide, button } : undefined;
  }

  #click(event: Event): void {
    const at = this.#at(event);
    const act = at?.button.dataset["act"];
    if (at && (act === "labels" || act === "similar" || act === "remove")) this.#actions[act](at.picture);
  }

  #focused(event: Event): void {
    const at = this.#at(event);
    if (at) this.#setCurrent(at.picture.id);
  }

  /** Of all slides one can be reached with the tab key; arrows move to the others. */
  #setCurrent(id: string): void {
    const before = this.#slides.get(this.#current);
    if (before) before.reachable = false;
    this.#current = id;
    const now = this.#slides.get(id);
    if (now) now.reachable = true;
  }

  #key(event: KeyboardEvent): void {
    const at = this.#at(event);
    if (!at || event.altKey || event.ctrlKey || event.metaKey) return;
    const slides = Array.from(this.#grid.querySelectorAll<HTMLElement>(".slide[data-id]"));
    const here = slides.indexOf(at.slide);
    const row = slides.findIndex((slide, i) => i > 0 && slide.offsetTop > (slides[i - 1] as HTMLElement).offsetTop);
    // The empty mount takes a place of the first row.
    const columns = row < 0 ? slides.length : row + (this.#marked ? 0 : 1);
    const to = { ArrowRight: here + 1, ArrowLeft: here - 1, ArrowDown: here + columns, ArrowUp: here - columns, Home: 0, End: slides.length - 1 }[event.key];
    const target = to === undefined ? undefined : slides[to];
    if (!target) return;
    event.preventDefault();
    const act = at.button.dataset["act"];
    const button = target.querySelector<HTMLElement>(`[data-act=${act}]:not([hidden])`) ?? target.querySelector<HTMLElement>(".mount");
    button?.focus();
    target.scrollIntoView({ block: "nearest", behavior: calm.matches ? "auto" : "smooth" });
  }

  /** Puts the focus on the first picture. */
  focusFirst(): void {
    this.#grid.querySelector<HTMLElement>(".mount")?.focus();
  }
}

/** What a photographer draws around the frame to print. */
function pencilMark(): SVGSVGElement {
  const mark = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  mark.setAttribute("viewBox", "0 0 200 200");
  mark.setAttribute("preserveAspectRatio", "none");
  mark.setAttribute("aria-hidden", "true");
  mark.classList.add("mark");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
  line.setAttribute("d", "M22 31C55 9 120 4 165 13c26 6 28 32 29 82 1 55-3 86-29 93-40 10-104 9-137 1C5 182 4 150 5 104 6 52 8 24 38 16 70 8 112 9 152 17");
  line.setAttribute("pathLength", "1");
  mark.append(line);
  return mark;
}
