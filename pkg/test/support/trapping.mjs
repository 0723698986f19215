// A module, of WebAssembly or made up, that stops where a test wants it to, as a panic does: the call throws a trap, and whoever
// enters the instance afterwards is counted.

/**
 * @param glue the generated JavaScript, or a made-up module
 * @param traps for `crop`, `embedText` and `embedImages`: whether a call with these arguments stops the instance
 * @returns the module; `seen.instances` counts its instances, `seen.reentered` the calls of one that had stopped
 */
export function trapping(glue, traps, seen = { instances: 0, reentered: 0 }) {
  seen.instances += 1;
  let stopped = false;
  const around = (model) =>
    new Proxy(model, {
      get(target, name) {
        const value = target[name];
        if (typeof value !== "function") return value;
        return (...args) => {
          if (stopped) seen.reentered += 1;
          if (traps[name]?.(...args)) {
            stopped = true;
            throw new WebAssembly.RuntimeError("unreachable");
          }
          return value.apply(target, args);
        };
      },
    });
  class ModelLoader {
    #own;
    constructor(...args) {
      if (stopped) seen.reentered += 1;
      this.#own = new glue.ModelLoader(...args);
    }
    feed(...args) {
      this.#own.feed(...args);
    }
    finish() {
      return around(this.#own.finish());
    }
    free() {
      this.#own.free();
    }
  }
  const create = glue.create && (() => trapping(glue.create(), traps, seen).glue);
  return { glue: { ...glue, ModelLoader, create }, seen };
}
