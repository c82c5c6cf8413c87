/* Another network beside this one: tables, and the images that one of the two gets wrong. */

import { $, data, make, names, option, percent } from "./dom.js";
import { draw, forget, keepDrawing, newCanvas, otherMap, others, PLAIN } from "./draw.js";
import { numbersOf } from "./figures.js";
import { open, PAGE } from "./gallery.js";

let changed = [];
const [ours, theirs] = data.compared?.names ?? [];

function fill() {
  changed = others.filter((other) => other.mended === ($("changed").value === "mended"));
  if ($("changed-sort").value === "confidence") changed.sort((a, b) => a.rank - b.rank);
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
  const title = theirs === "other" ? "the other" : theirs;
  for (const kind of ["mended", "broken"]) option($("changed"), kind, `${kind} by ${title}`);
  option($("changed-sort"), "index", "by test index");
  option($("changed-sort"), "confidence", `where ${title} is surest first`);
  for (const id of ["changed", "changed-sort"]) $(id).onchange = fill;
  $("changed-more").onclick = more;
  fill();
}
