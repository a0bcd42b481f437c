// The result as a list of classes, the most probable first, each with a bar, a number, and a button that shows its map.

const TOP = 5;

export function percent(value) {
  return `${(100 * value).toFixed(1)}\u00a0%`; // on one line
}

/** Indices of the most probable classes, the most probable first. */
export function topClasses(probabilities) {
  const order = probabilities.map((_, i) => i).sort((a, b) => probabilities[b] - probabilities[a]);
  return order.slice(0, TOP);
}

/** Fills `list`; the first class is chosen. choose(index) is called when another is. */
export function showClasses(list, classes, probabilities, choose) {
  const rows = topClasses(probabilities).map((index, place) => {
    const row = document.createElement("li");
    const label = document.createElement("label");
    const radio = document.createElement("input");
    Object.assign(radio, { type: "radio", name: "class", value: classes[index], checked: place === 0 });
    radio.addEventListener("change", () => choose(index));
    label.append(radio, makeText("span", "name", classes[index]), makeBar(probabilities[index]), makeNumber(probabilities[index]));
    row.append(label);
    return row;
  });
  list.replaceChildren(...rows);
}

function makeText(tag, className, text) {
  return Object.assign(document.createElement(tag), { className, textContent: text });
}

function makeBar(probability) {
  const bar = makeText("span", "bar", "");
  const filled = makeText("span", "filled", "");
  filled.style.width = `${100 * probability}%`;
  bar.append(filled);
  return bar;
}

function makeNumber(probability) {
  const number = makeText("data", "number", percent(probability));
  number.value = String(probability);
  return number;
}
