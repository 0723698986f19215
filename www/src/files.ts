// Files that come in: from a drop, with folders and the folders in them, or from a dialog.

/** Files by these names are tried although the browser does not know them as images. */
const NAMES = /\.(jpe?g|png|webp|bmp|dib|tiff?|ppm|pgm|pbm|pnm|gif|avif|heic)$/i;

export interface Incoming {
  pictures: File[];
  /** How many files of folders are no pictures. */
  ignored: number;
}

function isPicture(file: File): boolean {
  return (file.type.startsWith("image/") && file.type !== "image/svg+xml") || NAMES.test(file.name);
}

/** Folders hand their files out in any order. */
const byName = (a: File, b: File): number => (a.webkitRelativePath || a.name).localeCompare(b.webkitRelativePath || b.name, undefined, { numeric: true });

/** Files that were chosen one by one are all tried; of a folder's only those that look like pictures. */
export function fromDialog(files: FileList | readonly File[], folder: boolean): Incoming {
  const all = Array.from(files);
  const pictures = folder ? all.filter(isPicture).sort(byName) : all;
  return { pictures, ignored: all.length - pictures.length };
}

/** Whether a drag carries files. */
export function hasFiles(transfer: DataTransfer | null): boolean {
  return transfer?.types.includes("Files") ?? false;
}

/** Everything that was dropped. To be called in the drop's own event, since the list is empty afterwards. */
export function fromDrop(transfer: DataTransfer): Promise<Incoming> {
  const entries = Array.from(transfer.items).flatMap((item) => {
    const entry = item.kind === "file" ? item.webkitGetAsEntry() : null;
    return entry ? [entry] : [];
  });
  const files = Array.from(transfer.files);
  return entries.length ? fromEntries(entries) : Promise.resolve(fromDialog(files, false));
}

async function fromEntries(entries: readonly FileSystemEntry[]): Promise<Incoming> {
  const incoming: Incoming = { pictures: [], ignored: 0 };
  const walk = async (entry: FileSystemEntry, inFolder: boolean): Promise<void> => {
    if (entry.isFile) {
      const file = await new Promise<File>((resolve, reject) => (entry as FileSystemFileEntry).file(resolve, reject)).catch(() => undefined);
      if (file && (!inFolder || isPicture(file))) incoming.pictures.push(file);
      else incoming.ignored += 1;
      return;
    }
    const reader = (entry as FileSystemDirectoryEntry).createReader();
    for (;;) {
      // A reader hands out a hundred entries at a time.
      const part = await new Promise<FileSystemEntry[]>((resolve, reject) => reader.readEntries(resolve, reject)).catch(() => []);
      if (part.length === 0) return;
      for (const inner of part) await walk(inner, true);
    }
  };
  for (const entry of entries) await walk(entry, false);
  incoming.pictures.sort(byName);
  return incoming;
}
