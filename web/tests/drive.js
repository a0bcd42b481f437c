// Drives the built page in Chromium, for tests/test_web.py, which compares what this prints, as JSON, with JAX.
// node drive.js CHROMIUM URL PROFILE [FILE...]: a folder for the browser's profile; files to be given to the page in turn
// by drop, choice and paste.

import { readFileSync } from "node:fs";
import { basename } from "node:path";
import { chromium } from "playwright-core";

const [executablePath, url, profile, ...files] = process.argv.slice(2);
// Without these flags Chromium calls hosts of its maker; --no-sandbox: as root it does not start with one.
const quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic"];
const args = ["--no-sandbox", "--disable-gpu", "--no-first-run", ...quiet];

/** The events of a file that is dropped or pasted, as a browser makes them. */
function giveFile({ name, bytes, kind }) {
  const data = new DataTransfer();
  data.items.add(new File([new Uint8Array(bytes)], name));
  const init = { bubbles: true, cancelable: true };
  const event =
    kind === "drop"
      ? new DragEvent("drop", { ...init, dataTransfer: data })
      : new ClipboardEvent("paste", { ...init, clipboardData: data });
  document.body.dispatchEvent(event);
}

async function give(page, file, kind) {
  if (kind === "choose") {
    await page.setInputFiles("#file", file);
  } else {
    await page.evaluate(giveFile, { name: basename(file), bytes: [...readFileSync(file)], kind });
  }
}

/** Waits for the result of an image; returns { probabilities: {class: p}, means: {class: mean of its map} } of the classes shown. */
async function readResult(page, name) {
  await page.waitForFunction((name) => document.getElementById("result").dataset.image === name, name);
  const said = await page.locator("#status").textContent();
  const read = { probabilities: {}, means: {}, said };
  for (const row of await page.locator("#classes li").all()) {
    const label = await row.locator(".name").textContent();
    read.probabilities[label] = Number(await row.locator("data").getAttribute("value"));
    await row.locator("input").check();
    read.means[label] = Number(await page.locator("#map-mean").getAttribute("value"));
  }
  return read;
}

const context = await chromium.launchPersistentContext(profile, { executablePath, args, headless: true });
try {
  const page = context.pages()[0] ?? (await context.newPage());
  page.setDefaultTimeout(60_000);
  const complaints = [];
  const asked = [];
  page.on("console", (message) => ["error", "warning"].includes(message.type()) && complaints.push(message.text()));
  page.on("pageerror", (error) => complaints.push(String(error)));
  context.on("request", (request) => asked.push(request.url()));
  await page.goto(url);
  await page.locator("#offline:not(:empty)").waitFor(); // everything is stored
  const samples = [];
  for (const button of await page.locator("#samples button").all()) {
    await button.click();
    const name = await button.getAttribute("aria-label");
    samples.push({ name, ...(await readResult(page, name)) });
  }
  const given = [];
  for (const [i, file] of files.entries()) {
    const kind = ["drop", "choose", "paste"][i % 3];
    await give(page, file, kind);
    given.push({ name: basename(file), kind, ...(await readResult(page, basename(file))) });
  }
  await give(page, import.meta.filename, "drop");
  const problem = await page.locator("#problem:not(:empty)").textContent();
  const about = await page.locator("dl").innerText();
  const elsewhere = asked.filter((address) => !address.startsWith(url));
  console.log(JSON.stringify({ samples, given, problem, about, complaints, elsewhere }));
} finally {
  await context.close();
}
