/* The groups of images that fail more often than the others of their class, each with the first that do. */

import { $, data, make } from "./dom.js";
import { images, thumbnail } from "./draw.js";
import { numbersOf } from "./figures.js";
import { open, show } from "./gallery.js";

const FEW = 8;
/* How many groups are shown before the rest is folded. */
const FIRST = 12;

function card(slice, number) {
  const box = make("article");
  const failing = images
    .filter((image) => image.slices?.includes(number) && image.true !== image.predicted)
    .filter((image) => slice.predicted === null || slice.predicted === image.predicted)
    .map((image) => ({ image }));
  const row = make("div", undefined, "thumbnails");
  row.append(...failing.slice(0, FEW).map(({ image }, place) => thumbnail(image, () => open(failing, place))));
  const button = make("button", `show all ${failing.length}`, "plain");
  button.onclick = () => show("wrong", slice.true, slice.predicted ?? "any", number);
  box.append(make("h3", slice.name), make("p", slice.sentence), row, button);
  return box;
}

function grid(cards) {
  const box = make("div", undefined, "slices");
  box.append(...cards);
  return box;
}

function folded(title, ...nodes) {
  const details = make("details");
  details.append(make("summary", title), ...nodes);
  return details;
}

export function startSlices() {
  const { slices } = data;
  if (!slices) return;
  const { confirmed, table, definitions } = slices;
  const cards = confirmed.map(card);
  const words = Object.entries(definitions).map(([name, text]) =>
    make("p", `${name.replaceAll("_", " ")}: ${text}.`, "soft"),
  );
  $("slices").hidden = false;
  $("slices").append(make("p", table.text, "soft"), grid(cards.slice(0, FIRST)));
  if (cards.length > FIRST)
    $("slices").append(folded(`The other ${cards.length - FIRST} groups`, grid(cards.slice(FIRST))));
  $("slices").append(folded("How groups are made, and tested", ...words));
  if (table.rows.length) $("slices").append(folded(table.title, numbersOf(table)));
}
