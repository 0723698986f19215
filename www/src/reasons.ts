// The package says in English why a device was chosen; here are the same sentences in Chinese.
import { language } from "./i18n.js";

const SENTENCES: readonly (readonly [RegExp, string])[] = [
  [/^the CPU, as asked for/, "处理器：按你的选择"],
  [/^the CPU, since /, "处理器，因为"],
  [/^the CPU, ; /, "处理器；"],
  [/^WebGPU, as asked for/, "WebGPU：按你的选择"],
  [/^WebGPU, since there is a GPU \((.*)\)/, "WebGPU，因为有显卡（$1）"],
  [/^the server, as asked for/, "服务器：按你的选择"],
  [/^the server, since /, "服务器，因为"],
  [/WebGPU was tried and left: /, "试过 WebGPU，没有采用："],
  [/threads were tried and left: /, "试过多线程，没有采用："],
  [/the CPU was tried and left: /, "试过处理器，没有采用："],
  [/(".*") computes wrong vectors of (images|captions), expected those of the processor/, "$1 算出的向量不对"],
  [/the GPU device was lost twice/, "显卡两次断开"],
  [/the GPU computes wrong (text|image) vectors/, "显卡算出的向量不对"],
  [/the module for WebGPU is not there/, "没有 WebGPU 的计算模块"],
  [/this browser or runtime has no WebGPU/, "这个浏览器没有 WebGPU"],
  [/WebGPU needs a page served over HTTPS or from localhost/, "WebGPU 只在 HTTPS 或本机页面上可用"],
  [/WebGPU is there, but it finds no GPU/, "浏览器有 WebGPU，但没有找到显卡"],
  [/WebGPU offers only a software adapter \(([^)]*)\)/, "WebGPU 只有软件模拟的显卡（$1），比处理器还慢"],
  [/WebGPU failed when asked for a GPU: /, "WebGPU 没能给出显卡："],
  [/no answer in 10 seconds/, "十秒没有回音"],
  [/one thread: asked for/, "单线程：按要求"],
  [/one thread: the build with threads is not there/, "单线程：没有多线程的计算模块"],
  [/one thread: the page is not cross-origin isolated \(.*\)/, "单线程：页面没有跨源隔离（服务器没有发送 COOP 与 COEP）"],
  [/one thread: threads of WebAssembly are not reliable on iOS/, "单线程：iOS 上 WebAssembly 的多线程不可靠"],
  [/one thread: threads need a worker to compute in/, "单线程：多线程要在后台线程里计算"],
  [/one thread: there are no web workers here/, "单线程：这里没有后台线程"],
  [/one thread: the machine has one core/, "单线程：这台机器只有一个核心"],
  [/\b(\d+) threads$/, "$1 个线程"],
  [/; /g, "；"],
];

/** A reason of the package's in the page's language, as far as it is known; the rest stays as it is. */
export function reasonText(reason: string): string {
  if (language() === "en") return reason.charAt(0).toUpperCase() + reason.slice(1) + (/[.!?]$/.test(reason) ? "" : ".");
  return `${SENTENCES.reduce((text, [pattern, zh]) => text.replace(pattern, zh), reason)}。`;
}
