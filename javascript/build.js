// Bundles src/ into the one script of the page. With `--check` nothing is written, and a bundle that differs is an error.

import { readFile, writeFile } from "node:fs/promises";
import { relative } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const path = (name) => fileURLToPath(new URL(name, import.meta.url));
const BUNDLE = path("../capsbench/page/assets/page.js");

async function bundled() {
  const licence = await readFile(path("node_modules/fflate/LICENSE"), "utf-8");
  const { outputFiles } = await build({
    entryPoints: [path("src/main.js")],
    bundle: true,
    minify: true,
    lineLimit: 200,
    format: "iife",
    globalName: "capsbench",
    target: "es2022",
    charset: "utf8",
    write: false,
    banner: { js: `/* Made by "npm run build" in javascript/. It holds fflate:\n\n${licence.trim()} */` },
  });
  return outputFiles[0].text;
}

const text = await bundled();
if (!process.argv.includes("--check")) await writeFile(BUNDLE, text);
else if (text !== (await readFile(BUNDLE, "utf-8").catch(() => ""))) {
  console.error(`${relative(process.cwd(), BUNDLE)} is not what javascript/src gives\nrun: npm --prefix javascript run build`);
  process.exitCode = 1;
}
