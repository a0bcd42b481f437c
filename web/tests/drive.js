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

/** The events of a file that is dropped or pasted, as a browser makes them; without a name, of what is no file. */
function giveFile({ name, bytes, kind }) {
  const data = new DataTransfer();
  data.items.add(...(name ? [new File([new Uint8Array(bytes)], name)] : ["words", "text/plain"]));
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

/** Colours of the picture, RGB row by row, in the middle of each of the values of a map of that size. */
function readColours([rows, columns]) {
  const picture = document.getElementById("picture");
  const context = new OffscreenCanvas(picture.width, picture.height).getContext("2d", { willReadFrequently: true });
  context.drawImage(picture, 0, 0);
  return Array.from({ length: rows * columns }, (_, i) => {
    const x = ((i % columns) + 0.5) * (picture.width / columns);
    const y = (Math.floor(i / columns) + 0.5) * (picture.height / rows);
    return [...context.getImageData(x, y, 1, 1).data.slice(0, 3)];
  });
}

/** What is shown of the image `name`: { said, probabilities: {class: p}, means: {class: mean of its map}, with, without }. */
async function readResult(page, name) {
  await page.waitForFunction((start) => document.getElementById("status").textContent.startsWith(start), `${name}: `);
  const read = { said: await page.locator("#status").textContent(), probabilities: {}, means: {} };
  for (const row of (await page.locator("#classes li").all()).reverse()) {
    const label = await row.locator(".name").textContent();
    read.probabilities[label] = Number(await row.locator("data").getAttribute("value"));
    await row.locator("input").check();
    read.means[label] = Number(await page.locator("#map-mean").getAttribute("value"));
  }
  const size = (await page.locator("#map-size").textContent()).split(" × ").map(Number);
  read.with = await page.evaluate(readColours, size); // with the map of the last in the loop, the most probable
  await page.locator("#show-map").uncheck();
  read.without = await page.evaluate(readColours, size);
  await page.locator("#show-map").check();
  return read;
}

/** Gives a file and returns what becomes of it: readResult's, or { problem }. */
async function readGiven(page, file, kind) {
  const name = basename(file);
  await give(page, file, kind);
  const answered = (name) => ["status", "problem"].some((id) => document.getElementById(id).textContent.startsWith(`${name}: `));
  await page.waitForFunction(answered, name);
  const problem = await page.locator("#problem").textContent();
  return { name, kind, problem, ...(problem ? {} : await readResult(page, name)) };
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
    given.push(await readGiven(page, file, ["drop", "choose", "paste"][i % 3]));
  }
  await page.evaluate(giveFile, { kind: "drop" });
  const problem = await page.locator("#problem:not(:empty)").textContent();
  const about = await page.locator("dl").innerText();
  const widths = [];
  for (const width of [1280, 390, 320]) {
    await page.setViewportSize({ width, height: 800 });
    widths.push(await page.evaluate(() => document.documentElement.scrollWidth));
  }
  const elsewhere = asked.filter((address) => !address.startsWith(url));
  console.log(JSON.stringify({ samples, given, problem, about, widths, complaints, elsewhere }));
} finally {
  await context.close();
}
