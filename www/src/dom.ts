// Small helpers for the page's elements.

/** The element with an id; its absence is a mistake in index.html. */
export function byId<T extends HTMLElement = HTMLElement>(id: string): T {
  const element = document.getElementById(id);
  if (!element) throw new Error(`index.html has no #${id}`);
  return element as T;
}

/** An element with properties and children. */
export function make<K extends keyof HTMLElementTagNameMap>(
  name: K,
  properties: Partial<HTMLElementTagNameMap[K]> = {},
  ...children: (Node | string)[]
): HTMLElementTagNameMap[K] {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

/** A list of terms and what they are. */
export function facts(list: HTMLElement, rows: readonly (readonly [term: string, value: string | undefined])[]): void {
  list.replaceChildren(
    ...rows.flatMap(([term, value]) => (value ? [make("div", {}, make("dt", {}, term), make("dd", {}, value))] : [])),
  );
}

export const calm = matchMedia("(prefers-reduced-motion: reduce)");

/** Runs `work` before the next frame, however often it is asked for until then. */
export function perFrame(work: () => void): () => void {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      work();
    });
  };
}

const live = byId("live");

/** Tells people who do not see the page. */
export function announce(text: string): void {
  // The same words again would not be read out.
  live.textContent = live.textContent === text ? `${text}\u00a0` : text;
}
