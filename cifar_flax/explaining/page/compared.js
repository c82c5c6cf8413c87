/* Another network beside this one: tables, and the images that one of the two gets wrong. */

import { $, data, make, names, percent } from "./dom.js";
import { draw, forget, keepDrawing, newCanvas, otherMap, others, PLAIN } from "./draw.js";
import { numbersOf } from "./figures.js";
import { open, PAGE } from "./gallery.js";

let changed = [];
/* What the two networks are called: by their names, where these are short and tell them apart. */
const called = [data.model, data.compared?.model ?? ""];
const areNames = called[0] !== called[1] && called.every((name) => name.length <= 12);
const [ours, theirs] = areNames ? called : ["this", "other"];

function fill() {
  changed = others.filter((other) => other.mended === ($("changed").value === "mended"));
  if ($("changed-sort").value === "confidence")
    changed.sort((a, b) => Math.max(...b.probabilities) - Math.max(...a.probabilities));
  document.querySelectorAll("#changed-gallery canvas").forEach(forget);
  $("changed-gallery").replaceChildren();
  more();
}

function column(image, which, raw, text) {
  const box = make("div");
  const canvas = newCanvas(128);
  keepDrawing(canvas, () => draw(canvas, image, which, raw));
  box.append(canvas, make("div", text));
  return box;
}

function more() {
  const start = $("changed-gallery").childElementCount;
  changed.slice(start, start + PAGE / 2).forEach((other, i) => {
    const { image } = other;
    const card = make("button", undefined, "card");
    const row = make("div", undefined, "trio");
    const says = (who, said) => `${who}: ${names[said.predicted]} ${percent(said.probabilities[said.predicted])}`;
    row.append(
      column(image, PLAIN, null, `#${image.index}, ${names[image.true]}`),
      column(image, image.predicted, undefined, says(ours, image)),
      column(image, other.predicted, otherMap(other), says(theirs, other)),
    );
    card.append(row);
    card.onclick = () =>
      open(
        changed.map((each) => ({ image: each.image, other: each })),
        start + i,
      );
    $("changed-gallery").append(card);
  });
  $("changed-more").hidden = $("changed-gallery").childElementCount >= changed.length;
}

export function startCompared() {
  if (!data.compared) return;
  $("compared").hidden = false;
  $("compared-title").textContent = `Compared with ${data.compared.checkpoint} (${data.compared.model})`;
  for (const table of data.compared.tables)
    $("compared-tables").append(make("p", table.text, "soft"), numbersOf(table));
  for (const id of ["changed", "changed-sort"]) $(id).onchange = fill;
  $("changed-more").onclick = more;
  fill();
}
