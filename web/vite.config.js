import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { defineConfig } from "vite";

if (!existsSync(fileURLToPath(new URL("public/model.onnx", import.meta.url)))) {
  throw new Error("web/public/model.onnx does not exist; `python -m web.build` writes it and builds the page");
}

export default defineConfig({
  base: "./", // the folder works wherever it is served from
  build: {
    target: "es2022",
    assetsInlineLimit: 0, // the page's policy allows no data: addresses
    modulePreload: false,
    chunkSizeWarningLimit: 1000,
  },
});
