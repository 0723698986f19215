// In a worker, imported before everything else: keeps count of the memories of WebAssembly that come to be, and tells
// their size on a channel of the worker's name. Such a memory never shrinks, so its size is its peak.

const memories = new Set();

WebAssembly.Memory = new Proxy(WebAssembly.Memory, {
  construct(target, parameters) {
    const memory = new target(...parameters);
    memories.add(memory);
    return memory;
  },
});

for (const name of ["instantiate", "instantiateStreaming"]) {
  const original = WebAssembly[name];
  WebAssembly[name] = async (...parameters) => {
    const result = await original.apply(WebAssembly, parameters);
    for (const value of Object.values((result.instance ?? result).exports)) {
      if (value instanceof WebAssembly.Memory) memories.add(value);
    }
    return result;
  };
}

const channel = new BroadcastChannel(self.name);
channel.onmessage = () => channel.postMessage([...memories].reduce((sum, { buffer }) => sum + buffer.byteLength, 0));
