// The page's side of the service worker.
import { byId } from "./dom.js";
import { onLanguage, t } from "./i18n.js";

let offline = false;

/** Has the page kept for visits without the network. */
export function registerOffline(): void {
  const tell = (): void => {
    byId("offline").textContent = navigator.onLine ? (offline ? t("offline.ready") : "") : t("offline.now");
  };
  addEventListener("online", tell);
  addEventListener("offline", tell);
  onLanguage(tell);
  tell();
  if (!import.meta.env.PROD || !("serviceWorker" in navigator)) return;
  void navigator.serviceWorker.ready.then(() => {
    offline = true;
    tell();
  });
  navigator.serviceWorker
    .register(new URL("sw.js", document.baseURI))
    .then((registration) => {
      const waiting = (): void => {
        // Without a page that is under its control the new version is the first one.
        byId("toast").hidden = !registration.waiting || !navigator.serviceWorker.controller;
      };
      waiting();
      registration.addEventListener("updatefound", () => registration.installing?.addEventListener("statechange", waiting));
      byId("update").addEventListener("click", () => {
        navigator.serviceWorker.addEventListener("controllerchange", () => location.reload(), { once: true });
        registration.waiting?.postMessage("take over");
      });
    })
    .catch((thrown: unknown) => console.warn("no service worker, so no visit without the network:", thrown));
}

/** Has what the device needs kept as well, where it is too large to be fetched for everybody. */
export function keepOffline(device: "cpu" | "webgpu" | "server"): void {
  if (device !== "webgpu" || !import.meta.env.PROD || !("serviceWorker" in navigator)) return;
  void navigator.serviceWorker.ready.then(({ active }) => active?.postMessage("keep everything"));
}
