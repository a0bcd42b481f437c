// Wiring: images come in by choice, drop, paste or as samples; each becomes a thumbnail; the one selected is shown.

import { fetchWhole, loadNetwork } from "./network.js";
import { drawPicture, drawPixels } from "./picture.js";
import { readImage } from "./read_image.js";
import { percent, showClasses, topClasses } from "./results.js";

const find = (id) => document.getElementById(id);
const format = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
let shown = null; // { name, pixels, result, index } of the image and class that are shown

function say(text) {
  find("status").textContent = text;
}

/** Shows an image { name, pixels, button }, once it is classified. */
async function select(image, network) {
  for (const button of document.querySelectorAll(".thumbnails button")) {
    button.setAttribute("aria-pressed", String(button === image.button));
  }
  image.result ??= await network.classify(image.pixels);
  if (image.button.getAttribute("aria-pressed") !== "true") {
    return; // another was selected meanwhile
  }
  const { classes } = network.about;
  const { probabilities } = image.result;
  const best = topClasses(probabilities);
  shown = { ...image, index: best[0], classes };
  showClasses(find("classes"), classes, probabilities, (index) => {
    shown.index = index;
    showMap();
  });
  showMap();
  find("result").hidden = false;
  const [first, second] = best.map((index) => `${classes[index]} ${percent(probabilities[index])}`);
  say(`${image.name}: ${first}, then ${second}.`);
}

/** Draws the image and, where wanted, the map of the chosen class, and says what the map shows. */
function showMap() {
  const { name, pixels, result, index, classes } = shown;
  const { height, width } = result;
  const map = result.maps[index];
  const most = Math.max(...map.map(Math.abs), 1e-6);
  const wanted = find("show-map").checked;
  drawPicture(find("picture"), pixels, wanted ? { map, width, height, most } : null);
  const over = wanted ? `, with the activation map of ${classes[index]} over it` : "";
  find("picture").setAttribute("aria-label", `${name} as the network sees it, 32 by 32 pixels${over}`);
  const mean = map.reduce((a, b) => a + b, 0) / map.length;
  find("map-class").textContent = classes[index];
  find("map-size").textContent = `${height} × ${width}`;
  find("map-mean").value = String(mean);
  find("map-mean").textContent = mean.toFixed(2).replace("-", "−");
  find("least").textContent = `−${most.toFixed(1)}`;
  find("most").textContent = `+${most.toFixed(1)}`;
  find("scale").hidden = !wanted;
}

/** Adds a thumbnail to a list; returns { name, pixels, button }. */
function addImage(list, name, pixels, network) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  const image = { name, pixels, button };
  Object.assign(button, { type: "button", title: name });
  button.setAttribute("aria-label", name);
  button.setAttribute("aria-pressed", "false");
  button.append(drawPixels(pixels));
  button.addEventListener("click", async () => {
    await select(image, network);
    find("classes").scrollIntoView({ block: "nearest" }); // on a phone it lies below
  });
  item.append(button);
  list.append(item);
  return image;
}

/** Reads files that a visitor gave; shows the first that is an image, and says which are none, a line each. */
async function addFiles(files, network) {
  const added = [];
  const refused = files.length ? [] : ["There is no file in it; save the image and choose or drop the file."];
  for (const file of files) {
    try {
      added.push(addImage(find("own"), file.name, await readImage(file), network));
    } catch (error) {
      refused.push(`${file.name}: ${error.message}.`);
    }
  }
  find("problem").textContent = refused.join("\n");
  find("own-images").hidden = find("own").childElementCount === 0;
  if (added.length) {
    await select(added[0], network);
    find("classes").scrollIntoView({ block: "nearest" });
  }
}

function listen(network) {
  const input = find("file");
  input.addEventListener("change", async () => {
    await addFiles([...input.files], network);
    input.value = ""; // so that the same file can be chosen again
  });
  document.addEventListener("dragover", () => find("drop").classList.add("over"));
  document.addEventListener("dragleave", () => find("drop").classList.remove("over"));
  document.addEventListener("drop", (event) => {
    find("drop").classList.remove("over");
    addFiles([...event.dataTransfer.files], network);
  });
  document.addEventListener("paste", (event) => addFiles([...event.clipboardData.files], network));
  find("show-map").addEventListener("change", showMap);
  input.disabled = false;
}

async function addSamples(network) {
  const { classes, samples } = network.about;
  const read = classes.map(async (name) => readImage(await (await fetchWhole(`samples/${name}.png`)).blob()));
  const images = (await Promise.all(read)).map((pixels, i) =>
    addImage(find("samples"), `Test image ${samples[i]} (${classes[i]})`, pixels, network),
  );
  await select(images[0], network);
}

function describe({ name, parameters, receptive_field, test }) {
  find("name").textContent = name;
  find("parameters").textContent = format.format(parameters);
  find("receptive-field").textContent = `${receptive_field} × ${receptive_field} pixels`;
  const share = ((100 * test.correct) / test.examples).toFixed(2);
  find("accuracy").textContent =
    `${share}\u00a0% (${format.format(test.correct)} of CIFAR-10's ${format.format(test.examples)} test images)`;
}

async function keepOffline() {
  if (!("serviceWorker" in navigator)) {
    return; // the server is neither https nor localhost
  }
  await navigator.serviceWorker.register("service_worker.js");
  await navigator.serviceWorker.ready;
  find("offline").textContent = "This page is stored in your browser: it opens without a connection from now on.";
}

async function start() {
  try {
    const network = await loadNetwork();
    describe(network.about);
    listen(network);
    await addSamples(network);
  } catch (error) {
    say("");
    find("problem").textContent = `The network could not be loaded (${error.message}); reload the page.`;
    return;
  }
  await keepOffline().catch(() => {}); // a browser may forbid storage: the page works all the same
}

for (const kind of ["dragover", "drop"]) {
  document.addEventListener(kind, (event) => event.preventDefault()); // else a file dropped early replaces the page
}
start();
