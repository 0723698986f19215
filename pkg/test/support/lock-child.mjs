// A process that opens an index when it is told to, and says how that went.
import { openStore } from "../../dist/storage.js";

const [, , folder, name] = process.argv;
let store;

process.on("message", async (order) => {
  if (order === "open") {
    try {
      store = await openStore({ name, storage: "folder", folder, readOnly: false });
      process.send("owner");
    } catch (error) {
      process.send(error.code ?? String(error));
    }
  } else {
    await store?.close();
    store = undefined;
    process.send("closed");
  }
});
process.send("ready");
