import { answer } from "../../dist/protocol.js";

const made = [];

/** Ends all workers: one that a test leaves behind would keep the process alive. */
export function endWorkers() {
  for (const port of made.splice(0)) port.close();
}

/** A worker in this thread; its messages are copied like those of a real one. Without handlers it never gets ready. */
export function fakeWorker(handlers) {
  const { port1, port2 } = new MessageChannel();
  const listeners = {};
  const worker = {
    terminated: false,
    addEventListener: (type, listener) => (listeners[type] = listener),
    postMessage: (message, transfer) => port1.postMessage(message, transfer),
    terminate() {
      worker.terminated = true;
      port1.close();
    },
    fire: (type, event) => listeners[type](event),
  };
  port1.onmessage = ({ data }) => listeners.message?.({ data });
  const scope = { postMessage: (message, transfer) => port2.postMessage(message, transfer), onmessage: null };
  port2.onmessage = (event) => scope.onmessage?.(event);
  if (handlers) answer(scope, handlers);
  made.push(port1);
  return worker;
}
