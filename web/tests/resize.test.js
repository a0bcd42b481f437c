// Resizing by hand-made cases, and by those that tests/test_web.py had OpenCV compute: RESIZE_CASES names its JSON file.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { mostRows, resize, SIZE, weigh } from "../src/resize.js";

/** readRows of an image whose RGB bytes are pixel(x, y, channel). */
function rowsOf(width, pixel) {
  return (first, count) => {
    const bytes = new Uint8ClampedArray(width * count * 4).fill(255);
    for (let i = 0; i < width * count; i++) {
      for (let channel = 0; channel < 3; channel++) {
        bytes[i * 4 + channel] = pixel(i % width, first + Math.floor(i / width), channel);
      }
    }
    return bytes;
  };
}

test("an image of 32 x 32 stays as it is", () => {
  const pixel = (x, y, channel) => (x * 7 + y * 3 + channel * 50) % 256;
  const pixels = resize(rowsOf(SIZE, pixel), SIZE, SIZE);
  assert.equal(pixels.length, SIZE * SIZE * 3);
  pixels.forEach((value, i) => assert.equal(value, pixel(Math.floor(i / 3) % SIZE, Math.floor(i / 3 / SIZE), i % 3)));
});

test("shrinking takes the mean of an area", () => {
  const pixels = resize(rowsOf(64, (x, y) => (x % 2) * 100 + (y % 2) * 20), 64, 96);
  assert.deepEqual([...new Set(pixels)].sort(), [57, 63].sort()); // rows 0 20 0 and 20 0 20 of the three that make one
});

test("weights add up to 1 and stay within the image, for any side", () => {
  for (let size = 1; size <= 300; size++) {
    for (const areas of size >= SIZE ? [true, false] : [false]) {
      for (const { first, weights } of weigh(size, areas)) {
        assert.ok(first >= 0 && first + weights.length <= size);
        assert.ok(weights.every((weight) => weight > 0));
        assert.ok(Math.abs(weights.reduce((a, b) => a + b) - 1) < 1e-12);
      }
    }
  }
});

test("no more rows are asked for than mostRows says", () => {
  for (const [width, height] of [[500, 333], [20, 4000], [1, 1], [33, 32]]) {
    const counts = [];
    const read = rowsOf(width, () => 9);
    const pixels = resize((first, count) => (counts.push(count), read(first, count)), width, height);
    assert.equal(Math.max(...counts), mostRows(width, height));
    assert.ok(pixels.every((value) => value === 9));
  }
});

const path = process.env.RESIZE_CASES;
test("the same as OpenCV within a grey level", { skip: !path && "RESIZE_CASES names no file" }, () => {
  const cases = JSON.parse(readFileSync(path, "utf8"));
  assert.ok(cases.length > 0);
  for (const { width, height, pixels, expected } of cases) {
    const got = resize(rowsOf(width, (x, y, channel) => pixels[(y * width + x) * 3 + channel]), width, height);
    assert.equal(got.length, expected.length);
    const differences = expected.map((value, i) => Math.abs(value - got[i]));
    const some = differences.filter((difference) => difference > 0).length;
    console.log(`${width} x ${height}: ${some} of ${got.length} values differ, by ${Math.max(...differences)} at most`);
    assert.ok(Math.max(...differences) <= 1, `${width} x ${height}`);
  }
});
