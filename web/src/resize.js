// Any image to 32 x 32 as cifar_jax.read_image does it with OpenCV: by the mean over areas where both sides shrink, else
// bilinear; aspect ratios are not kept. Both are sums over rows, then over columns, so that few rows are held at a time.

export const SIZE = 32;

/** What each of 32 places takes from a side of `size` pixels: [{ first, weights }], weights of pixels from `first` on. */
export function weigh(size, areas) {
  return Array.from({ length: SIZE }, (_, i) => (areas ? weighArea(size, i) : weighLinear(size, i)));
}

/** size >= 32. In units of 1 / 32 pixel all bounds are whole numbers. */
function weighArea(size, i) {
  const begin = i * size;
  const end = begin + size;
  const first = Math.floor(begin / SIZE);
  const weights = [];
  for (let j = first; j * SIZE < end; j++) {
    weights.push((Math.min(end, (j + 1) * SIZE) - Math.max(begin, j * SIZE)) / size);
  }
  return { first, weights };
}

/** Between the two nearest centres of pixels; beyond the outermost their value goes on. */
function weighLinear(size, i) {
  const centre = ((i + 0.5) * size) / SIZE - 0.5;
  const at = Math.min(Math.max(centre, 0), size - 1);
  const first = Math.floor(at);
  const part = at - first;
  return { first, weights: part > 0 ? [1 - part, part] : [1] };
}

/** How many rows `resize` asks for at once, at most. */
export function mostRows(width, height) {
  return Math.max(...weigh(height, Math.min(width, height) >= SIZE).map(({ weights }) => weights.length));
}

/**
 * Returns RGB bytes (32, 32, 3), row by row.
 * readRows(first, count): RGBA bytes of that many rows of the image, which is opaque.
 */
export function resize(readRows, width, height) {
  const areas = Math.min(width, height) >= SIZE;
  const columns = weigh(width, areas);
  const pixels = new Uint8Array(SIZE * SIZE * 3);
  weigh(height, areas).forEach(({ first, weights }, y) => {
    const row = sumRows(readRows(first, weights.length), width, weights);
    columns.forEach((column, x) => pixels.set(sumColumns(row, column), (y * SIZE + x) * 3));
  });
  return pixels;
}

function sumRows(bytes, width, weights) {
  const row = new Float64Array(width * 4);
  weights.forEach((weight, j) => {
    const start = j * row.length;
    for (let k = 0; k < row.length; k++) {
      row[k] += weight * bytes[start + k];
    }
  });
  return row;
}

function sumColumns(row, { first, weights }) {
  const sums = [0, 0, 0];
  weights.forEach((weight, j) => {
    for (let channel = 0; channel < 3; channel++) {
      sums[channel] += weight * row[(first + j) * 4 + channel];
    }
  });
  return sums.map(Math.round);
}
