// What is shown of numbers: the order of the classes, and the colours of a map.

import assert from "node:assert/strict";
import { test } from "node:test";
import { colour } from "../src/picture.js";
import { percent, topClasses } from "../src/results.js";

test("the five most probable classes, the most probable first", () => {
  assert.deepEqual(topClasses([0.1, 0.02, 0.5, 0.03, 0.3, 0.05]), [2, 4, 0, 5, 3]);
  assert.deepEqual(topClasses([0.4, 0.6]), [1, 0]);
  assert.equal(percent(0.98765), "98.8\u00a0%");
});

test("a map is orange where it speaks for the class, blue where against, and clear at 0", () => {
  const [forIt, against, none] = [0, 4, 8].map((i) => [...colour(new Float32Array([2, -1, 0]), 2).slice(i, i + 4)]);
  assert.ok(forIt[0] > forIt[2] && against[2] > against[0]);
  assert.equal(none[3], 0);
  assert.ok(Math.abs(forIt[3] - 2 * against[3]) <= 1);
});
