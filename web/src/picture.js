// What the network sees, as a canvas: 32 x 32 pixels, and over them the activation map of a class.

import { SIZE } from "./resize.js";

// What speaks for the class and what against it: orange and blue, which all kinds of colour blindness tell apart. As in CSS.
const FOR = [240, 120, 0];
const AGAINST = [0, 110, 255];
const MOST_OPAQUE = 0.75; // the image stays visible

/** A canvas of h x w pixels with RGBA bytes. */
function toCanvas(bytes, width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  canvas.getContext("2d").putImageData(new ImageData(bytes, width, height), 0, 0);
  return canvas;
}

/** RGB bytes (32, 32, 3) as a canvas of 32 x 32. */
export function drawPixels(pixels) {
  const bytes = new Uint8ClampedArray(SIZE * SIZE * 4).fill(255);
  for (let i = 0; i < SIZE * SIZE; i++) {
    bytes.set(pixels.subarray(i * 3, i * 3 + 3), i * 4);
  }
  return toCanvas(bytes, SIZE, SIZE);
}

/** RGBA bytes of a map, its values as fractions of `most`: the further from 0, the more opaque. */
export function colour(map, most) {
  const bytes = new Uint8ClampedArray(map.length * 4);
  map.forEach((value, i) => {
    bytes.set(value > 0 ? FOR : AGAINST, i * 4);
    bytes[i * 4 + 3] = 255 * MOST_OPAQUE * Math.min(Math.abs(value) / most, 1);
  });
  return bytes;
}

/** Draws pixels over all of `canvas`, and a map { map, width, height, most } over them, or null. */
export function drawPicture(canvas, pixels, layer) {
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(drawPixels(pixels), 0, 0, canvas.width, canvas.height);
  if (layer) {
    const { map, width, height, most } = layer;
    context.imageSmoothingEnabled = true;
    context.drawImage(toCanvas(colour(map, most), width, height), 0, 0, canvas.width, canvas.height);
  }
}
