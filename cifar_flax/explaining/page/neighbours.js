/* The training images behind a prediction: those nearest to an image, and those whose label is doubted. */

import { $, data, make, names, SIDE } from "./dom.js";
import { contextOf, newCanvas } from "./draw.js";
import { numbersOf } from "./figures.js";

const found = data.neighbours;
const sheet = new Image();
/* Once the training images of the page can be drawn. */
const loaded = new Promise((done) => {
  sheet.onload = done;
});

/* An image by its place on the sheet, and what is said of it. */
function card(place, ...lines) {
  const box = make("figure", undefined, "neighbour");
  const canvas = newCanvas(96);
  const column = place % data.sprite_columns;
  const row = Math.floor(place / data.sprite_columns);
  loaded.then(() =>
    contextOf(canvas).drawImage(sheet, SIDE * column, SIDE * row, SIDE, SIDE, 0, 0, canvas.width, canvas.height),
  );
  const { index, label } = found.images[place];
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `image ${index}: ${names[label]}`);
  const caption = make("figcaption");
  caption.append(make("div", names[label]), ...lines.map((line) => make("div", line, "soft")));
  box.append(canvas, caption);
  return box;
}

/* The training images nearest to one that is shown. */
export function showNeighbours(image) {
  $("detail-neighbours").hidden = !found;
  if (!found) return;
  const cards = image.neighbours.map(([place, similarity]) =>
    card(place, `cosine ${similarity.toFixed(2)}`, `#${found.images[place].index}`),
  );
  $("detail-neighbours").lastElementChild.replaceChildren(...cards);
}

export function showBehind() {
  if (!found) return;
  sheet.src = `data:image/jpeg;base64,${found.sheet}`;
  $("behind").hidden = false;
  for (const table of found.tables) $("behind").append(make("p", table.text, "soft"), numbersOf(table));
  for (const [split, doubted] of Object.entries(found.doubted)) {
    if (!doubted.length) continue;
    const row = make("div", undefined, "neighbours");
    row.append(...doubted.map(([place, label]) => card(place, `or ${names[label]}?`, `#${found.images[place].index}`)));
    $("behind").append(make("h3", `Labels of ${split} images that their neighbours contradict`), row);
  }
  $("behind").append(make("p", `Those shown are ${found.doubt}.`, "soft"));
}
