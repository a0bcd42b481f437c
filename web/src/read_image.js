// An image file to the pixels that the network takes: upright as its EXIF says, what is transparent over white,
// of an animation the first picture, 32 x 32.

import { mostRows, resize } from "./resize.js";

const MOST_PIXELS = 2 ** 26; // as Python
const MOST_SIDE = 16384; // of a canvas, in the browsers that allow least

/** Returns RGB bytes (32, 32, 3) of a Blob; throws an Error that says why it is no image for this page. */
export async function readImage(blob) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" }); // as Python: colour profiles are ignored
  } catch {
    throw new Error("no image that this browser can read, or one far too large; choose a PNG, JPEG, WebP or BMP file");
  }
  try {
    const { width, height } = bitmap;
    if (width * height > MOST_PIXELS || Math.max(width, height) > MOST_SIDE) {
      throw new Error(`${width} × ${height} pixels; choose one of at most 64 million, and ${MOST_SIDE} a side`);
    }
    return resize(rowsOf(bitmap), width, height);
  } finally {
    bitmap.close();
  }
}

/** A few rows at a time: phones limit the pixels of a canvas to fewer than their cameras take. */
function rowsOf(bitmap) {
  const canvas = document.createElement("canvas");
  canvas.width = bitmap.width;
  canvas.height = mostRows(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true, alpha: false });
  context.imageSmoothingEnabled = false;
  context.fillStyle = "white";
  return (first, count) => {
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(bitmap, 0, first, bitmap.width, count, 0, 0, bitmap.width, count);
    return context.getImageData(0, 0, bitmap.width, count).data;
  };
}
