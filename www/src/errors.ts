// Failures in words: what happened, what to do, and what the package said.
import { ErnieVilError } from "ernie-vil";
import { make } from "./dom.js";
import { type Key, isKey, t } from "./i18n.js";

export function codeOf(thrown: unknown): string {
  return thrown instanceof ErnieVilError ? thrown.code : "other";
}

export function isAborted(thrown: unknown): boolean {
  const code = codeOf(thrown);
  return code === "aborted" || code === "disposed";
}

/** What happened and what to do. */
export function advice(thrown: unknown): string {
  const key = `error.${codeOf(thrown)}`;
  return t(isKey(key) ? (key as Key) : "error.other");
}

/** The failure's own words. */
export function words(thrown: unknown): string {
  return thrown instanceof Error ? thrown.message : String(thrown);
}

/** Shows a failure where it happened. */
export function showError(place: HTMLElement, thrown: unknown, ...actions: readonly { text: string; run: () => void }[]): void {
  const buttons = actions.map(({ text, run }) => {
    const button = make("button", { type: "button", className: "small" }, text);
    button.addEventListener("click", run);
    return button;
  });
  place.replaceChildren(
    make("p", { className: "alert-text" }, advice(thrown)),
    make("p", { className: "alert-detail" }, t("error.details"), make("q", { lang: "en" }, words(thrown))),
    ...(buttons.length ? [make("p", { className: "row" }, ...buttons)] : []),
  );
  place.hidden = false;
}
