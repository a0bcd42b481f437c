// An image file to the pixels that the network takes: upright as its EXIF says, what is transparent over white, 32 x 32.

import { mostRows, resize } from "./resize.js";

const MOST_SIDE = 16384; // of a canvas, in the browsers that allow least

/** Returns RGB bytes (32, 32, 3) of a Blob; throws an Error that says why it is no image for this page. */
export async function readImage(blob) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" }); // as Python: colour profiles are ignored
  } catch {
    throw new Error("this browser cannot read it as an image; choose a PNG, JPEG, WebP or BMP file");
  }
  try {
    if (Math.max(bitmap.width, bitmap.height) > MOST_SIDE) {
      throw new Error(`it has ${bitmap.width} × ${bitmap.height} pixels; choose one of at most ${MOST_SIDE} a side`);
    }
    return resize(rowsOf(bitmap), bitmap.width, bitmap.height);
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
