// The exported network, run by ONNX Runtime as WebAssembly. Normalization is in the file, softmax is not.

import * as ort from "onnxruntime-web/wasm";
import { SIZE } from "./resize.js";

ort.env.wasm.numThreads = 1; // more need headers that a plain server does not send; an image takes milliseconds

/** Returns { about, classify }: what model.json says of the network, and a function of RGB bytes (32, 32, 3). */
export async function loadNetwork() {
  const [about, content] = await Promise.all([
    fetchWhole("model.json").then((response) => response.json()),
    fetchWhole("model.onnx").then((response) => response.arrayBuffer()),
  ]);
  const session = await ort.InferenceSession.create(content, { executionProviders: ["wasm"] });
  return { about, classify: (pixels) => classify(session, pixels) };
}

/** A response with a body; throws an Error where the server has none. */
export async function fetchWhole(path) {
  const response = await fetch(path);
  if (!response.ok) {
    throw new Error(`${path}: the server answered ${response.status}`);
  }
  return response;
}

/** { probabilities, maps: the activation map of each class, row by row, height, width }. */
async function classify(session, pixels) {
  const images = new ort.Tensor("uint8", pixels, [1, SIZE, SIZE, 3]);
  const { logits, activation_maps } = await session.run({ images });
  const [, classes, height, width] = activation_maps.dims;
  const maps = Array.from({ length: classes }, (_, i) =>
    activation_maps.data.slice(i * height * width, (i + 1) * height * width),
  );
  return { probabilities: softmax(logits.data), maps, height, width };
}

function softmax(logits) {
  const most = Math.max(...logits);
  const values = Array.from(logits, (logit) => Math.exp(logit - most));
  const sum = values.reduce((a, b) => a + b, 0);
  return values.map((value) => value / sum);
}
