// The side panel: beside the table on a wide screen, a sheet at the bottom of a narrow one.
import { byId } from "./dom.js";

export class Panel {
  readonly #panel = byId("panel");
  readonly #button = byId("panel-open");
  readonly #shade = byId("shade");
  readonly #narrow = matchMedia("(max-width: 68rem)");
  #open = false;
  #from: HTMLElement | undefined;

  constructor() {
    this.#button.addEventListener("click", () => (this.#open ? this.close() : this.open()));
    byId("panel-close").addEventListener("click", () => this.close());
    this.#shade.addEventListener("click", () => this.close());
    addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.#open && this.#narrow.matches) this.close();
    });
    this.#narrow.addEventListener("change", () => this.#show());
    this.#show();
  }

  /** Shows the panel where it does not lie open anyway. */
  open(): void {
    if (!this.#narrow.matches || this.#open) return;
    this.#from = document.activeElement instanceof HTMLElement ? document.activeElement : undefined;
    this.#open = true;
    this.#show();
    this.#panel.scrollTop = 0;
    this.#panel.focus();
  }

  close(): void {
    if (!this.#open) return;
    this.#open = false;
    this.#show();
    this.#from?.focus();
  }

  #show(): void {
    const narrow = this.#narrow.matches;
    this.#panel.classList.toggle("open", narrow && this.#open);
    this.#panel.inert = narrow && !this.#open;
    // What lies under the sheet is out of reach as long as it is open.
    for (const part of document.querySelectorAll<HTMLElement>("main, header")) part.inert = narrow && this.#open;
    this.#shade.hidden = !(narrow && this.#open);
    this.#button.setAttribute("aria-expanded", String(narrow && this.#open));
  }
}
