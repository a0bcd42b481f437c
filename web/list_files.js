// The last step of the build: writes dist/service_worker.js, which knows every other file of dist and a digest of them all.

import { createHash } from "node:crypto";
import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const here = fileURLToPath(new URL(".", import.meta.url));
const dist = join(here, "dist");
const worker = readFileSync(join(here, "service_worker.js"), "utf8");

const files = readdirSync(dist, { recursive: true, withFileTypes: true })
  .filter((entry) => entry.isFile() && entry.name !== "service_worker.js")
  .map((entry) => join(entry.parentPath, entry.name).slice(dist.length + 1).replaceAll("\\", "/"))
  .sort();
const digest = createHash("sha256").update(worker);
for (const file of files) {
  digest.update(`${file}\0`).update(readFileSync(join(dist, file)));
}
const version = digest.digest("hex").slice(0, 16);
const constants = `const VERSION = "${version}";\nconst FILES = ${JSON.stringify(["./", ...files])};\n`;
writeFileSync(join(dist, "service_worker.js"), constants + worker);
console.log(`dist/service_worker.js: version ${version}, ${files.length} files`);
