// The page's sentences, in Chinese and in English.

export type Language = "zh" | "en";

/** `{name}` is filled in; of `one|many` the first is taken where `{n}` is 1. */
const TEXTS = {
  title: ["灯箱 · ERNIE-ViL", "Light Table · ERNIE-ViL"],
  brand: ["灯箱", "Light Table"],
  "skip.search": ["跳到搜索", "Skip to search"],
  "skip.pictures": ["跳到图片", "Skip to the pictures"],
  cancel: ["取消", "Cancel"],
  retry: ["再试一次", "Try again"],
  close: ["知道了", "Close"],

  "badge.none": ["尚未装入模型", "No model yet"],
  "badge.loading": ["正在装入模型", "Loading the model"],
  "badge.threads": ["{n} 线程", "{n} thread|{n} threads"],
  "badge.software": ["软件模拟", "software"],
  "device.title": ["在哪里计算，为什么", "Where it runs, and why"],
  "device.worker": ["后台线程", "Worker"],
  "device.worker.yes": ["是：页面不会卡住", "yes: the page stays free"],
  "device.worker.no": ["否", "no"],
  "device.isolated": ["跨源隔离", "Cross-origin isolated"],
  "device.isolated.yes": ["是：可以用多线程", "yes: threads may be used"],
  "device.isolated.no": ["否：服务器没有发送 COOP 与 COEP", "no: the server sends no COOP and COEP"],
  "device.adapter": ["显卡", "GPU"],
  "device.f16": ["16 位浮点", "16-bit floats"],
  "device.buffer": ["最大缓冲区", "Largest buffer"],
  "device.dtype": ["计算精度", "Computes in"],
  "device.version": ["模块版本", "Module"],
  "device.auto": ["自动选择", "Choose for me"],
  "device.cpu": ["处理器（WebAssembly）", "Processor (WebAssembly)"],
  "device.webgpu": ["显卡（WebGPU）", "GPU (WebGPU)"],
  "device.server": ["服务器", "Server"],
  yes: ["有", "yes"],
  no: ["没有", "no"],

  "query.label": ["说说你想看见的画面", "Describe a picture, in Chinese"],
  "query.placeholder": ["草坪上的一只蓝猫", "草坪上的一只蓝猫"],
  "query.go": ["找", "Find"],
  "query.clear": ["回到全部", "Show all"],
  "query.picture": ["用一张图来找（也可以拖到这里，或粘贴）", "Search by a picture (or drop or paste one here)"],
  "query.waiting": ["模型装好后马上去找。", "The search starts as soon as the model is there."],
  "query.unknown.some": ["这句话里有 {n} 个字模型不认识。", "The model does not know {n} character of this.|The model does not know {n} characters of this."],
  "query.unknown.all": ["模型不认识这句话里的字。它读的是中文；试试下面的例子。", "The model knows none of these characters. It reads Chinese: try one of the examples below."],
  "query.failed": ["没能找成。", "The search failed."],
  "probe.clear": ["不再按这张图找", "Stop searching by this picture"],
  "probe.like": ["像这一张", "Like this one"],
  "chips.label": ["例子", "Examples"],

  "loading.title": ["正在装入模型", "Loading the model"],
  "loading.start": ["准备中……", "Getting ready…"],
  "loading.bytes": ["{loaded} / {total}，{from}", "{loaded} of {total}, {from}"],
  "loading.network": ["来自网络", "from the network"],
  "loading.cache": ["来自缓存", "from the cache"],
  "loading.disk": ["来自硬盘", "from the disk"],
  "loading.index": ["正在打开索引……", "Opening the index…"],
  "loading.aborted": ["已取消装入。", "Loading was cancelled."],

  "grid.label": ["图片", "Pictures"],
  "grid.keys": ["用方向键在图片之间移动", "Arrow keys move between pictures"],
  "grid.all": ["灯箱上有 {n} 张", "{n} picture on the table|{n} pictures on the table"],
  "grid.text": ["与「{query}」最相近", "Nearest to “{query}”"],
  "grid.image": ["与这张图最相近", "Nearest to this picture"],
  "grid.more": ["再看 {n} 张", "Show {n} more"],
  "grid.found": ["最相近的是：{name}，相似度 {score}。", "Nearest: {name}, similarity {score}."],
  "grid.empty": ["灯箱是空的。把图片拖上来吧。", "The table is empty. Drop pictures onto it."],
  "grid.none": ["这里没有已显影的图片。", "No developed pictures here."],
  "filter.label": ["显示哪些", "Which ones"],
  "filter.all": ["全部", "All"],
  "filter.own": ["我的", "Mine"],
  "filter.scenes": ["示例", "Samples"],
  "card.labels": ["给「{name}」贴标签", "Label “{name}”"],
  "card.similar": ["找与「{name}」相似的图片", "Find pictures like “{name}”"],
  "card.similar.short": ["找相似的", "Find similar"],
  "card.remove": ["移除「{name}」", "Remove “{name}”"],
  "card.remove.short": ["移除", "Remove"],
  "card.score": ["相似度 {score}", "similarity {score}"],

  "slot.title": ["放上你的图片", "Add your own"],
  "slot.about": ["拖到灯箱上，或者", "Drop them here, or"],
  "add.files": ["添加图片…", "Add pictures…"],
  "add.folder": ["添加文件夹…", "Add a folder…"],
  "add.files.short": ["选图片", "Pictures"],
  "add.folder.short": ["选文件夹", "Folder"],
  "remove.all": ["移除我的全部图片", "Remove all of mine"],
  "remove.sure": ["再按一次，移除 {n} 张", "Press again to remove {n}"],
  "remove.done": ["已移除 {n} 张。", "{n} picture removed.|{n} pictures removed."],
  "drop.here": ["放在灯箱上", "Put them on the table"],
  "drop.query": ["按这张图找", "Search by this picture"],

  "developing.title": ["正在显影", "Developing"],
  "developing.text": ["{done} / {total} 张", "{done} of {total}"],
  "developing.rate": ["每张 {ms}", "{ms} each"],
  "developing.left": ["还要约 {time}", "about {time} left"],
  "report.added": ["加入了 {n} 张。", "{n} picture added.|{n} pictures added."],
  "report.duplicates": ["{n} 张已经在灯箱上。", "{n} was on the table already.|{n} were on the table already."],
  "report.ignored": ["略过 {n} 个不是图片的文件。", "{n} file that is no picture was passed over.|{n} files that are no pictures were passed over."],
  "report.failed": ["{n} 张读不了：", "{n} could not be read:"],
  "report.cancelled": ["已取消。", "Cancelled."],
  "report.empty": ["里面没有图片。", "There were no pictures in it."],
  "report.unsaved": ["图片已显影，但没能存下来，重新载入后会消失。", "The pictures are developed, but could not be stored: they will be gone after a reload."],
  "report.memory": ["索引只在内存里，重新载入后会消失。", "The index is in memory only: it will be gone after a reload."],
  "report.locked": ["灯箱在另一个标签页里开着。这里可以照常使用，但新加的图片不会留下来。", "The table is open in another tab. Everything works here, but pictures that you add will not be kept."],

  "panel.open": ["面板", "Panel"],
  "panel.close": ["收起", "Close"],
  "panel.label": ["标签、用时和模型", "Labels, timings and model"],
  "labels.title": ["这是什么？", "What is it?"],
  "labels.about": ["没有为这些词专门训练过：把图片与每个词比一比，看谁最近。", "No training for these words: the picture is compared with each, and the nearest wins."],
  "labels.pick": ["点一张图片，看看它最像什么。", "Pick a picture to see what it is most like."],
  "labels.waiting": ["正在比较……", "Comparing…"],
  "labels.result": ["最像「{label}」：{share}。", "Most like “{label}”: {share}."],
  "labels.list": ["标签", "Labels"],
  "labels.new": ["添加标签", "Add a label"],
  "labels.add": ["添加", "Add"],
  "labels.remove": ["去掉标签「{label}」", "Remove the label “{label}”"],
  "labels.sets": ["现成的标签", "Ready labels"],
  "labels.places": ["地方", "Places"],
  "labels.colours": ["颜色", "Colours"],
  "labels.things": ["东西", "Things"],
  "labels.more": ["句式", "Sentence"],
  "labels.template": ["标签放进这句话的 {} 处", "The label goes where {} is"],
  "labels.template.wrong": ["句子里要有 {}，标签才有地方放。", "The sentence needs a {} for the label."],
  "labels.none": ["先添加至少一个标签。", "Add at least one label first."],

  "figures.title": ["用时", "Timings"],
  "figures.load": ["装入模型", "Loading the model"],
  "figures.load.cache": ["{time}（来自缓存）", "{time} (from the cache)"],
  "figures.load.disk": ["{time}（来自硬盘）", "{time} (from the disk)"],
  "figures.load.network": ["{time}（来自网络）", "{time} (from the network)"],
  "figures.image": ["每张图片", "Each picture"],
  "figures.image.of": ["{time}（{n} 张）", "{time} ({n} picture)|{time} ({n} pictures)"],
  "figures.query": ["每次提问", "Each query"],
  "figures.search": ["在 {n} 张里找", "Search in {n}"],
  "figures.memory": ["内存", "Memory"],
  "figures.memory.page": ["{size}（页面与后台线程的脚本，不含 WebAssembly）", "{size} (scripts of the page and workers, without WebAssembly)"],
  "figures.memory.heap": ["{size}（页面的脚本，不含 WebAssembly）", "{size} (scripts of the page, without WebAssembly)"],
  "figures.memory.none": ["浏览器不告诉", "the browser does not tell"],
  "figures.storage": ["索引存放处", "Index kept in"],
  "storage.opfs": ["私有文件系统（OPFS）", "private files (OPFS)"],
  "storage.indexeddb": ["IndexedDB", "IndexedDB"],
  "storage.memory": ["仅内存", "memory only"],
  "storage.folder": ["文件夹", "a folder"],

  "model.title": ["模型", "Model"],
  "model.scenes.note": [
    "scenes 是在手绘图片上训练的小模型，不是 ERNIE-ViL 的权重。它只见过画出来的 48 种东西、11 种颜色和 12 种背景，也会认错；照片它看不懂。",
    "scenes is a small model trained on drawn pictures. It is not ERNIE-ViL’s weights. It has seen 48 kinds of things, 11 colours and 12 backgrounds, all drawn, and it errs; photographs mean nothing to it.",
  ],
  "model.other.note": ["模型来自：{source}", "Model from: {source}"],
  "model.structure": ["结构", "Structure"],
  "model.parameters": ["参数", "Parameters"],
  "model.dimensions": ["向量维数", "Dimensions"],
  "model.image": ["图片边长", "Picture size"],
  "model.vocab": ["词表", "Vocabulary"],
  "model.fingerprint": ["指纹", "Fingerprint"],
  "model.device": ["设备", "Device"],
  "model.other": ["换一个模型", "Use another model"],
  "model.other.about": [
    "模型文件夹里有 manifest.json、config.json、vocab.txt 和权重文件，由 ernie-vil convert 生成。",
    "A model folder has manifest.json, config.json, vocab.txt and the weights; ernie-vil convert makes it.",
  ],
  "model.url": ["模型文件夹的地址（在本页的服务器上）", "Address of the model folder, on this page’s server"],
  "model.url.about": [
    "地址须在本页的服务器上，因为页面不许连接别处；别处的模型请先存到硬盘，再打开文件夹。",
    "It must lie on this page’s server, since the page may connect to no other. Save a model from elsewhere to the disk and open the folder.",
  ],
  "model.url.other": ["{host} 不是本页的服务器，页面的安全策略不许连接它。请把模型文件夹存到硬盘，再用“打开硬盘上的文件夹”。", "{host} is not this page’s server, and the page’s policy forbids the connection. Save the model folder to the disk and open it from there."],
  "model.load": ["装入", "Load"],
  "model.folder": ["打开硬盘上的文件夹…", "Open a folder on the disk…"],
  "model.scenes": ["回到 scenes", "Back to scenes"],
  "model.disk": ["硬盘上的文件夹「{name}」", "the folder “{name}” on the disk"],

  "cache.keep": ["把模型文件留在浏览器里", "Keep the model’s files in the browser"],
  "cache.clear": ["清除", "Clear"],
  "cache.kept": ["已留存：下次不必下载，也可以离线使用。", "Kept: no download next time, and it works offline."],
  "cache.empty": ["没有留存。", "Not kept."],
  "cache.cleared": ["已清除。", "Cleared."],
  "cache.disk": ["模型来自硬盘，不必留存。", "The model is on the disk; there is nothing to keep."],
  "cache.failed": ["没能留存：{reason}", "Could not be kept: {reason}"],

  promise: [
    "图片和文字都不离开这个页面：一切在本机计算。页面的内容安全策略（CSP）只许它连接自己所在的服务器，浏览器会拦下其余的一切。",
    "Pictures and words never leave this page: everything is computed on your device. Its content security policy (CSP) allows connections to its own server alone, and the browser blocks all others.",
  ],
  "offline.ready": ["可以离线使用了。", "Ready to work offline."],
  "offline.now": ["现在没有网络，照常可用。", "You are offline; everything still works."],
  "update.ready": ["页面有了新版本。", "There is a new version of this page."],
  "update.load": ["重新载入", "Reload"],

  "error.details": ["原话：", "In its own words: "],
  "error.network": ["连不上服务器。请检查网络后再试；模型如已留存，离线也能用。", "The server could not be reached. Check the network and try again; a model that was kept works offline."],
  "error.http": ["服务器说没有这个文件，或不肯给。请检查地址：文件夹里应有 manifest.json。", "The server has no such file, or does not hand it out. Check the address: the folder should have a manifest.json."],
  "error.manifest": ["这不是模型文件夹，或者缺了文件。请选 ernie-vil convert 生成的文件夹。", "This is no model folder, or files are missing. Choose a folder that ernie-vil convert has made."],
  "error.integrity": ["文件与清单对不上，可能在路上或硬盘上损坏了。请清除缓存再试。", "A file differs from what the manifest says; it may be damaged. Clear the cache and try again."],
  "error.config": ["模型的 config.json 或 vocab.txt 有问题。请重新生成模型文件夹。", "The model’s config.json or vocab.txt is not as it should be. Make the model folder anew."],
  "error.weights": ["模型的权重有问题。请重新生成模型文件夹。", "The model’s weights are not as they should be. Make the model folder anew."],
  "error.device": ["所选的设备用不了。请在“模型”里改成“自动选择”或“处理器”。", "The chosen device cannot be used. Choose “Choose for me” or “Processor” under “Model”."],
  "error.device-lost": ["显卡断开了，重试也没成功。请再试一次，或改用处理器。", "The GPU was lost, and lost again. Try once more, or choose the processor."],
  "error.crashed": ["计算模块停了，多半是内存不够。请关掉别的标签页再试。", "The module stopped, most likely for want of memory. Close other tabs and try again."],
  "error.worker": ["后台线程没能启动。请重新载入页面。", "The worker could not be started. Reload the page."],
  "error.quota": ["浏览器的存储空间满了。请清除缓存或移除一些图片。", "The browser’s storage is full. Clear the cache or remove some pictures."],
  "error.storage": ["浏览器的存储用不了（可能是无痕窗口）。页面仍可使用，但不会留下内容。", "The browser’s storage cannot be used (a private window, perhaps). The page works, but keeps nothing."],
  "error.image": ["这个文件不是能解码的图片，或者太大。", "This file is no picture that can be decoded, or it is too large."],
  "error.text": ["这句话没法计算。", "This sentence cannot be embedded."],
  "error.index": ["索引与模型不符或已损坏。请移除我的全部图片后再添加。", "The index is damaged or of another model. Remove all of your pictures and add them again."],
  "error.locked": ["索引在另一个标签页里开着。", "The index is open in another tab."],
  "error.other": ["出了意料之外的错。请重新载入页面再试。", "Something unexpected went wrong. Reload the page and try again."],
} as const satisfies Record<string, readonly [zh: string, en: string]>;

export type Key = keyof typeof TEXTS;
export type Values = Readonly<Record<string, string | number>>;

const KEEP = "light-table.language";
const listeners = new Set<() => void>();

let current: Language = initial();

function initial(): Language {
  const kept = read(KEEP);
  if (kept === "zh" || kept === "en") return kept;
  return navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en";
}

/** What was kept under a name; nothing where the browser keeps nothing. */
export function read(name: string): string | undefined {
  try {
    return localStorage.getItem(name) ?? undefined;
  } catch {
    return undefined;
  }
}

/** Keeps a value, where the browser lets the page. */
export function keep(name: string, value: string | undefined): void {
  try {
    if (value === undefined) localStorage.removeItem(name);
    else localStorage.setItem(name, value);
  } catch {
    // A private window: the setting holds until the page is closed.
  }
}

export function language(): Language {
  return current;
}

export function setLanguage(next: Language): void {
  current = next;
  keep(KEEP, next);
  translate(document);
  for (const listener of listeners) listener();
}

/** Calls `listener` whenever the language has changed. */
export function onLanguage(listener: () => void): void {
  listeners.add(listener);
}

export function isKey(key: string): key is Key {
  return key in TEXTS;
}

/** A sentence in the page's language. */
export function t(key: Key, values: Values = {}): string {
  const [zh, en] = TEXTS[key];
  let text: string = current === "zh" ? zh : en;
  const [one, many] = text.split("|");
  if (many !== undefined) text = values["n"] === 1 ? (one ?? "") : many;
  return text.replace(/\{(\w+)\}/g, (_, name: string) => {
    const value = values[name];
    return typeof value === "number" ? number(value) : (value ?? "");
  });
}

/** Fills in the sentences of the elements that name one. */
export function translate(root: ParentNode): void {
  document.documentElement.lang = current === "zh" ? "zh-CN" : "en";
  document.title = t("title");
  for (const [attribute, target] of [["t", ""], ["tLabel", "aria-label"], ["tTitle", "title"], ["tPlaceholder", "placeholder"]] as const) {
    const name = attribute.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
    for (const element of root.querySelectorAll<HTMLElement>(`[data-${name}]`)) {
      const key = element.dataset[attribute] ?? "";
      if (!isKey(key)) continue;
      if (target) element.setAttribute(target, t(key));
      else element.textContent = t(key);
    }
  }
}

/** Both languages group digits alike. The browser's own formats take tens of milliseconds to make. */
export function number(value: number, digits = 0): string {
  const [whole = "", fraction] = value.toFixed(digits).split(".");
  const grouped = whole.replace(/\B(?=(\d{3})+$)/g, ",");
  return fraction === undefined ? grouped : `${grouped}.${fraction}`;
}

export function percent(value: number): string {
  return `${number(value * 100, value < 0.1 ? 1 : 0)}%`;
}

export function bytes(value: number): string {
  const [size, unit] = value >= 1e9 ? [value / 1e9, "GB"] : value >= 1e6 ? [value / 1e6, "MB"] : [value / 1e3, "KB"];
  return `${number(size, size < 100 ? 1 : 0)} ${unit}`;
}

/** A duration, given in milliseconds. */
export function duration(ms: number): string {
  const [zh, en, value] = ms < 1000 ? (["毫秒", "ms", ms] as const) : ms < 90_000 ? (["秒", "s", ms / 1000] as const) : (["分钟", "min", ms / 60_000] as const);
  return `${number(value, value < 10 ? 1 : 0)} ${current === "zh" ? zh : en}`;
}
