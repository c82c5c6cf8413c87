/* The gallery with its filters, the dialog of one image, and the link that leads to both. */

import { $, bar, data, make, names, numbered, option, percent, titleOf } from "./dom.js";
import {
  DIFFERENCE,
  draw,
  drawImage,
  forget,
  images,
  keepDrawing,
  mapped,
  newCanvas,
  otherMap,
  others,
  PLAIN,
  rangeOf,
  rawMap,
} from "./draw.js";
import { askAbout } from "./live.js";
import { showNeighbours } from "./neighbours.js";

export const PAGE = 60;
const FILTERS = ["kind", "true", "predicted", "slice", "sort", "badge", "map"];
const OF_CLASSES = ["true", "predicted", "map"];

/* What is to be drawn over an image. */
function chosenMap(image) {
  const choice = $("map").value;
  if (choice === "predicted" || choice === "true") return image[choice];
  return choice === DIFFERENCE || choice === PLAIN ? choice : Number(choice);
}

/* ---- gallery ---- */

let chosen = [];

function isChosen(image) {
  const kind = $("kind").value;
  const is = (id) => $(id).value === "any" || String(image[id]) === $(id).value;
  const ofKind = kind === "all" || (image.true === image.predicted) === (kind === "correct");
  const ofSlice = $("slice").value === "any" || image.slices?.includes(Number($("slice").value));
  return ofKind && is("true") && is("predicted") && ofSlice && is("badge");
}

/* How many test images there are of the kind and the classes chosen; the page may hold fewer. */
function countOfAll() {
  const kind = $("kind").value;
  const is = (id, c) => $(id).value === "any" || Number($(id).value) === c;
  const isCounted = (i, j) =>
    is("true", i) && is("predicted", j) && (kind === "all" || (i === j) === (kind === "correct"));
  return data.confusion.flatMap((row, i) => row.filter((_, j) => isCounted(i, j))).reduce((a, b) => a + b, 0);
}

function fill() {
  const sort = $("sort").value;
  chosen = images.filter(isChosen);
  if (sort !== "index") chosen.sort((a, b) => (a.rank - b.rank) * (sort === "doubt" ? -1 : 1));
  document.querySelectorAll("#gallery canvas").forEach(forget);
  $("gallery").replaceChildren();
  more();
  writeLink();
}

function more() {
  const start = $("gallery").childElementCount;
  for (const image of chosen.slice(start, start + PAGE)) {
    const card = make("button", undefined, "card");
    const pair = make("div", undefined, "pair");
    const [original, canvas] = [newCanvas(128), newCanvas(128)];
    card.dataset.index = image.index;
    drawImage(original, image);
    keepDrawing(canvas, () => draw(canvas, image, chosenMap(image)));
    canvas.hidden = !rawMap(image, chosenMap(image));
    pair.append(original, canvas);
    card.append(
      pair,
      make("div", titleOf(image)),
      make("div", `#${image.index}, ${percent(image.confidence)}`, "soft"),
    );
    if (image.badge) card.append(make("div", image.badge, "badge"));
    card.onclick = () => openAmongChosen(image);
    $("gallery").append(card);
  }
  const shown = $("gallery").childElementCount;
  const all = $("slice").value === "any" && $("badge").value === "any" ? countOfAll() : chosen.length;
  $("more").hidden = shown >= chosen.length;
  $("count").textContent =
    `${chosen.length}${all > chosen.length ? ` of ${all}` : ""} image${all === 1 ? "" : "s"}` +
    (shown < chosen.length ? `, the first ${shown} below` : "");
}

/* Shows the images of one cell of the confusion matrix. */
export function showCell(isTrue, isPredicted) {
  show(isTrue === isPredicted ? "correct" : "wrong", isTrue, isPredicted);
}

/* Shows the images of some classes, or "any", that are wrong or correct, of all groups or of one by its number. */
export function show(kind, isTrue, isPredicted, slice = "any") {
  const values = { kind, true: isTrue, predicted: isPredicted, slice, badge: "any" };
  for (const [id, value] of Object.entries(values)) $(id).value = value;
  fill();
  $("images").scrollIntoView();
  $("kind").focus({ preventScroll: true });
}

/* ---- one image ---- */

let list = [];
let place = 0; // what left and right lead through: {image}, or {image, other}
let wanted = null; // the map that was last chosen there, while it is open

/* Opens the image of an index of the test set. */
function goTo(event) {
  event.preventDefault();
  const value = $("go").value.trim();
  if (!value) return;
  const image = images.find(({ index }) => String(index) === value);
  if (image) openAmongChosen(image);
  else {
    $("go").setCustomValidity(`Image ${value} is not on this page, which holds ${images.length} images.`);
    $("go").reportValidity();
  }
}

function openAmongChosen(image) {
  const among = chosen.includes(image) ? chosen : [image];
  open(
    among.map((each) => ({ image: each, other: others.find((other) => other.image === each) })),
    among.indexOf(image),
  );
}

/* Opens the dialog at one entry of a list. */
export function open(entries, at) {
  list = entries;
  place = at;
  const { image, other } = list[place];
  if (!$("detail").open) wanted = null;
  $("detail-title").textContent = `${numbered(image)}${image.badge ? ` (${image.badge})` : ""}`;
  $("previous").setAttribute("aria-disabled", place === 0);
  $("next").setAttribute("aria-disabled", place === list.length - 1);
  drawImage($("pair").firstElementChild, image);
  showMaps(image);
  showNeighbours(image);
  showOther(image, other);
  $("try").onclick = () => {
    $("detail").close();
    askAbout(image);
  };
  if (!$("detail").open) $("detail").showModal();
  writeLink();
}

function showMaps(image) {
  const canvas = $("pair").lastElementChild;
  const buttons = new Map();
  const hadFocus = $("detail-maps").contains(document.activeElement);
  const show = (which) => {
    keepDrawing(canvas, () => draw(canvas, image, which));
    for (const [key, button] of buttons) button.setAttribute("aria-pressed", key === which);
    const [low, high] = rangeOf(image, which).map((value) => value.toPrecision(3));
    const range = `raw values ${low} to ${high}${data.averaged ? ", drawn as means over cells" : ""}`;
    const colours = `blue speaks for ${names[image.predicted]}, orange for ${names[image.true]}`;
    $("detail-note").textContent =
      which === DIFFERENCE
        ? `Predicted minus true, ${range}: ${colours}.`
        : `What speaks for ${names[which]}, ${range}; each map has a scale of its own.`;
  };
  for (const c of image.classes)
    buttons.set(c, bar("button", names[c], image.probabilities[c], percent(image.probabilities[c])));
  if (rawMap(image, DIFFERENCE)) {
    buttons.set(DIFFERENCE, bar("button", "pred. − true", 0, ""));
    buttons.get(DIFFERENCE).classList.add("difference");
  }
  for (const [which, button] of buttons)
    button.onclick = () => {
      wanted = which;
      show(which);
    };
  $("detail-maps").replaceChildren(...buttons.values());
  const first = [wanted, chosenMap(image), image.predicted, ...image.classes].find((which) => buttons.has(which));
  show(first);
  if (hadFocus) buttons.get(first).focus();
}

function showOther(image, other) {
  $("detail-other").hidden = !other;
  if (!other) return;
  const [canvas, note, bars] = $("detail-other").children;
  keepDrawing(canvas, () => draw(canvas, image, other.predicted, otherMap(other)));
  const called = data.compared.names[1] === "other" ? "The other network" : data.compared.names[1];
  note.textContent = `${called}: ${names[other.predicted]}, and what speaks for it.`;
  const classes = [...new Set([...image.classes, other.predicted])];
  const p = other.probabilities;
  bars.replaceChildren(...classes.map((c) => bar("div", names[c], p[c], percent(p[c]))));
}

function step(by) {
  if (list[place + by]) open(list, place + by);
}

function onKey(event) {
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  // A slider has a use of its own for arrows, and so has a browser for those with Alt.
  if (!by || !$("detail").open || event.altKey || event.ctrlKey || event.metaKey || event.target.matches?.("input"))
    return;
  event.preventDefault();
  step(by);
}

/* ---- the link: the image that is open, and the filters that are not as at first ---- */

function writeLink() {
  const link = new URLSearchParams();
  if ($("detail").open) link.set("image", list[place].image.index);
  for (const id of FILTERS) {
    const { value, options } = $(id);
    if (value !== options[0].value) link.set(id, OF_CLASSES.includes(id) ? (names[value] ?? value) : value);
  }
  const fragment = String(link) && `#${link}`;
  try {
    if (fragment !== location.hash) history.replaceState(null, "", location.href.split("#")[0] + fragment);
  } catch {
    // A frame without an address of its own, or a browser that was asked too often: the page works without a link.
  }
}

function readLink() {
  const link = new URLSearchParams(location.hash.slice(1));
  for (const id of FILTERS) {
    const select = $(id);
    const word = link.get(id);
    select.value = OF_CLASSES.includes(id) && names.includes(word) ? names.indexOf(word) : word;
    if (select.selectedIndex < 0) select.selectedIndex = 0;
  }
  const image = images.find(({ index }) => String(index) === link.get("image"));
  $("detail").close();
  fill();
  if (image) openAmongChosen(image);
}

/* ---- the section ---- */

export function startGallery() {
  for (const id of ["true", "predicted"]) {
    option($(id), "any", "any");
    for (const [i, name] of names.entries()) option($(id), i, name);
  }
  option($("map"), "predicted", "of predicted class");
  option($("map"), "true", "of true class");
  option($("map"), DIFFERENCE, "predicted minus true");
  option($("map"), PLAIN, "none");
  for (const c of mapped) option($("map"), c, `of ${names[c]}`);
  option($("slice"), "any", "any");
  $("slice-filter").hidden = !data.slices?.confirmed.length;
  for (const [i, slice] of (data.slices?.confirmed ?? []).entries())
    option($("slice"), i, `${slice.name}: ${slice.error}`);
  option($("badge"), "any", "any");
  if (data.people) {
    $("people-filter").hidden = false;
    for (const kind of Object.keys(data.people.definitions)) option($("badge"), kind, kind);
  }
  for (const id of FILTERS) $(id).onchange = fill;
  $("find").onsubmit = goTo;
  $("go").oninput = () => $("go").setCustomValidity("");
  $("more").onclick = more;
  $("close").onclick = () => $("detail").close();
  $("detail").onclick = (event) => {
    if (event.target === $("detail")) $("detail").close();
  };
  $("detail").onclose = writeLink;
  $("previous").onclick = () => step(-1);
  $("next").onclick = () => step(1);
  document.addEventListener("keydown", onKey);
  window.addEventListener("hashchange", readLink);
  readLink();
}
