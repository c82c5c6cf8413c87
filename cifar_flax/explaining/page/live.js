/* The network in the page: pictures that are covered with the mouse, a finger or the keyboard, or brought along. */

import { LINEAR, METHODS } from "./cam.js";
import { $, bar, data, MANY, make, names, numbered, option, percent, SIDE } from "./dom.js";
import {
  beforeNextFrame,
  bytes,
  contextOf,
  DIFFERENCE,
  drawImage,
  drawMap,
  images,
  keepDrawing,
  newCanvas,
  thumbnail,
} from "./draw.js";
import { buildNetwork, softmax } from "./network.js";

const EXAMPLES = 20;
const LARGEST = 2048; // pixels along a picture of one's own that are kept

export const network = data.network?.parameters ? buildNetwork(data.network, bytes(data.network.parameters)) : null;
/* The picture that is asked about. Pixels are RGBA, Uint8ClampedArray [SIDE, SIDE, 4]; the brush is its upper left
   corner. */
export const live = {
  title: "",
  label: null,
  original: null,
  pixels: null,
  before: null,
  undo: [],
  brush: { x: 0, y: 0 },
};

const clamp = (x, low, high) => Math.min(Math.max(x, low), high);
const small = newCanvas(SIDE);
const brushSize = () => Number($("brush-size").value);

/* ---- prediction and map ---- */

function ask(pixels) {
  const found = network(pixels);
  const { logits } = found;
  const order = names.map((_, i) => i).sort((a, b) => logits[b] - logits[a]);
  return { ...found, probabilities: softmax(logits), order, predicted: order[0] };
}

/* The raw map of a sum of logits weighted by `weights`, [classes]: at a stage, by a method. By one that is not linear it
   is the sum of the classes' own maps. */
export function rawMapOf({ activations, gradient }, stage, method, weights) {
  const x = activations[stage];
  if (method === "eigen-cam") return METHODS[method](x).map((value) => value * weights.reduce((a, b) => a + b));
  if (LINEAR.includes(method)) return METHODS[method](x, gradient(stage, weights));
  const parts = weights.flatMap((weight, c) => (weight ? [{ weight, map: mapOfClass(c) }] : []));
  const none = new Float32Array(x.size ** 2); // of a class less itself
  return parts.reduce((sum, { weight, map }) => sum.map((value, i) => value + weight * map[i]), none);

  function mapOfClass(c) {
    return METHODS[method](
      x,
      gradient(
        stage,
        weights.map((_, i) => Number(i === c)),
      ),
    );
  }
}

/* The map chosen, as `drawMap` has it, and its weights on the logits. */
function target(predicted) {
  const choice = $("live-which").value;
  if (choice === DIFFERENCE) return [choice, names.map((_, i) => Number(i === predicted) - Number(i === live.label))];
  const which = choice === "predicted" ? predicted : Number(choice);
  return [which, names.map((_, i) => Number(i === which))];
}

function drawSmall(canvas) {
  contextOf(small).putImageData(new ImageData(live.pixels, SIDE), 0, 0);
  contextOf(canvas).drawImage(small, 0, 0, canvas.width, canvas.height);
}

function answer() {
  const now = ask(live.pixels);
  const [which, weights] = target(now.predicted);
  live.before ??= { logits: now.logits, probabilities: now.probabilities, predicted: now.predicted };
  const raw = rawMapOf(now, $("live-stage").value, $("live-method").value, weights);
  keepDrawing($("live-map"), () => {
    drawSmall($("live-map"));
    drawMap($("live-map"), raw, which);
  });
  sayWhatItIs(now);
  showTop(now, which);
  sayWhatTheMapIs(now, which, raw);
  $("undo").disabled = $("reset").disabled = !live.undo.length;
}

function sayWhatItIs({ logits, probabilities, predicted }) {
  const verdict = predicted === live.label ? ": right" : `: wrong, it is ${names[live.label]}`;
  $("live-status").textContent =
    `${names[predicted]}, ${percent(probabilities[predicted])}${live.label === null ? "" : verdict}`;
  const { predicted: first, probabilities: p, logits: were } = live.before;
  const change = `whose logit went from ${were[first].toFixed(2)} to ${logits[first].toFixed(2)}`;
  $("live-before").textContent = live.undo.length
    ? `Uncovered: ${names[first]}, ${percent(p[first])}, ${change}.`
    : "Nothing is covered.";
}

function showTop({ order, logits, probabilities }, which) {
  const count = Number($("top-count").value);
  $("top-number").textContent = count;
  [...$("top").children].forEach((button, i) => {
    const c = order[i];
    const [name, outer, share, logit] = button.children;
    button.hidden = i >= count;
    button.title = names[c];
    button.setAttribute("aria-pressed", c === which);
    button.onclick = () => {
      $("live-which").value = c;
      answer();
    };
    name.textContent = names[c];
    share.textContent = percent(probabilities[c]);
    logit.textContent = logits[c].toFixed(2);
    outer.firstChild.style.width = `${100 * probabilities[c]}%`;
  });
}

function sayWhatTheMapIs({ predicted, logits }, which, raw) {
  const isDifference = which === DIFFERENCE;
  const stages = $("live-stage");
  const method = $("live-method").value;
  const isLast = stages.selectedIndex === stages.length - 1;
  if (method === "eigen-cam" && isDifference) $("map-caption").textContent = "the same for both classes: no difference";
  else if (method === "eigen-cam") $("map-caption").textContent = "what is most active, whatever the class";
  else if (isDifference && predicted === live.label) $("map-caption").textContent = "no difference: it is right";
  else if (isDifference)
    $("map-caption").textContent = `blue: for ${names[predicted]}, orange: for ${names[live.label]}`;
  else $("map-caption").textContent = `what speaks for ${names[which]}`;
  $("live-map").setAttribute("aria-label", `map, ${$("map-caption").textContent}`);
  const range = `${Math.min(...raw).toPrecision(3)} to ${Math.max(...raw).toPrecision(3)}`;
  const addsUp = isLast && LINEAR.includes(method) && !isDifference;
  const total = addsUp ? `Their sum and the class's bias are its logit, ${logits[which].toFixed(2)}. ` : "";
  $("live-note").textContent =
    `${method} at ${stages.value}, raw values ${range}. ${total}` +
    "To the right of each class: its probability and its logit, the score that probabilities are made of.";
}

const answerSoon = beforeNextFrame(answer);

function show() {
  drawSmall($("covered"));
  answerSoon();
}

/* Starts with a picture: RGBA pixels, and its class or null. */
function start(pixels, title, label) {
  Object.assign(live, { original: pixels, pixels: pixels.slice(), title, label, before: null, undo: [] });
  $("covered-caption").textContent = title;
  $("live-which").querySelector(`[value="${DIFFERENCE}"]`).disabled = label === null;
  if (label === null && $("live-which").value === DIFFERENCE) $("live-which").value = "predicted";
  $("original").hidden = label !== null;
  $("live-error").hidden = true;
  for (const button of $("examples").children) button.setAttribute("aria-pressed", button.title === title);
  show();
}

function startWith(image) {
  drawImage(small, image);
  start(contextOf(small).getImageData(0, 0, SIDE, SIDE).data, numbered(image), image.true);
}

export function askAbout(image) {
  startWith(image);
  $("live").scrollIntoView();
  $("covered").focus({ preventScroll: true });
}

/* ---- the brush ---- */

function moveBrush(x, y) {
  const size = brushSize();
  live.brush = { x: clamp(Math.round(x), 1 - size, SIDE - 1), y: clamp(Math.round(y), 1 - size, SIDE - 1) };
  for (const { style } of document.querySelectorAll(".brush")) {
    style.left = `${(100 * live.brush.x) / SIDE}%`;
    style.top = `${(100 * live.brush.y) / SIDE}%`;
    style.width = style.height = `${(100 * size) / SIDE}%`;
  }
}

function fillColour() {
  const kind = $("fill").value;
  if (kind === "grey") return [128, 128, 128];
  if (kind === "training") return data.network.mean.map((x) => Math.round(255 * x));
  const total = (c) => live.original.reduce((sum, value, i) => (i % 4 === c ? sum + value : sum), 0);
  return [0, 1, 2].map((c) => Math.round(total(c) / SIDE ** 2));
}

const keep = () => live.undo.push(live.pixels.slice());

function cover() {
  const size = brushSize();
  const { x, y } = live.brush;
  const colour = fillColour();
  for (let i = Math.max(y, 0); i < Math.min(y + size, SIDE); i++)
    for (let j = Math.max(x, 0); j < Math.min(x + size, SIDE); j++) live.pixels.set(colour, 4 * (i * SIDE + j));
  show();
}

function takeBack(all) {
  if (!live.undo.length) return;
  live.pixels = all ? live.original.slice() : live.undo.pop();
  if (all) live.undo = [];
  show();
}

function coverBy(canvas) {
  const corner = (event) => {
    const box = canvas.getBoundingClientRect();
    const half = brushSize() / 2;
    return [
      (SIDE * (event.clientX - box.left)) / box.width - half,
      (SIDE * (event.clientY - box.top)) / box.height - half,
    ];
  };
  let last = null;
  canvas.onpointerdown = (event) => {
    if (event.button || !live.pixels) return;
    canvas.setPointerCapture(event.pointerId);
    keep();
    last = corner(event);
    moveBrush(...last);
    cover();
  };
  canvas.onpointermove = (event) => {
    const next = corner(event);
    const from = last ?? next;
    // A quick move skips pixels: what lies between is covered too.
    const steps = Math.ceil(Math.max(Math.abs(next[0] - from[0]), Math.abs(next[1] - from[1])));
    for (let i = 1; i < steps; i++) {
      moveBrush(...[0, 1].map((d) => from[d] + ((next[d] - from[d]) * i) / steps));
      cover();
    }
    moveBrush(...next);
    if (last) {
      cover();
      last = next;
    }
  };
  canvas.onpointerup = canvas.onpointercancel = () => {
    last = null;
  };
}

function onKey(event) {
  const step = event.shiftKey ? 4 : 1;
  const { x, y } = live.brush;
  const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
  if (event.key in moves) moveBrush(x + moves[event.key][0], y + moves[event.key][1]);
  else if (event.key === " " && live.pixels) {
    keep();
    cover();
  } else if (event.key === "z" && (event.ctrlKey || event.metaKey)) takeBack(false);
  else return;
  event.preventDefault();
}

/* ---- a picture of one's own ---- */

/* Pixels RGBA [from, from, 4] at [SIDE, SIDE, 4] by a triangle as wide as what a pixel covers: Pillow's BILINEAR, rows
   then columns. */
function shrink(pixels, from) {
  const scale = from / SIDE;
  const reach = Math.max(scale, 1);
  // `at(line, i)`: where the i-th value of a line is, in pixels
  const along = (source, lines, at) => {
    const result = new Uint8ClampedArray(4 * SIDE * lines);
    for (let i = 0; i < SIDE; i++) {
      const centre = (i + 0.5) * scale;
      const first = Math.max(0, Math.floor(centre - reach + 0.5));
      const last = Math.min(from, Math.floor(centre + reach + 0.5));
      const weigh = (_, k) => Math.max(0, 1 - Math.abs(first + k + 0.5 - centre) / reach);
      const weights = Array.from({ length: last - first }, weigh);
      const total = weights.reduce((a, b) => a + b);
      for (let line = 0; line < lines; line++)
        for (let c = 0; c < 4; c++) {
          const sum = weights.reduce((so, weight, k) => so + weight * source[4 * at(line, first + k) + c], 0);
          result[4 * (line * SIDE + i) + c] = sum / total + 1e-9;
        }
    }
    return result;
  };
  const narrow = along(pixels, from, (row, i) => row * from + i);
  const turned = along(narrow, SIDE, (column, i) => i * SIDE + column);
  return Uint8ClampedArray.from(turned, (_, k) => {
    const i = k >> 2;
    return turned[4 * ((i % SIDE) * SIDE + Math.floor(i / SIDE)) + (k % 4)];
  });
}

async function take(file) {
  try {
    const picture = await createImageBitmap(file);
    const { width, height } = picture;
    const side = Math.min(width, height);
    const size = Math.min(side, LARGEST);
    const left = Math.floor((width - side) / 2);
    const square = make("canvas");
    const shown = $("original").firstElementChild;
    square.width = square.height = size;
    const context = square.getContext("2d", { willReadFrequently: true });
    context.fillStyle = "white"; // behind what is transparent
    context.fillRect(0, 0, size, size);
    context.imageSmoothingQuality = "high";
    context.drawImage(picture, left, Math.floor((height - side) / 2), side, side, 0, 0, size, size);
    shown.getContext("2d").drawImage(square, 0, 0, shown.width, shown.height);
    start(shrink(context.getImageData(0, 0, size, size).data, size), file.name, null);
  } catch {
    $("live-error").hidden = false;
    $("live-error").textContent = `${file.name} is no picture that this browser can read.`;
  }
}

function takeDropped() {
  document.ondragover = (event) => {
    event.preventDefault();
    $("live").classList.add("drop");
  };
  document.ondragleave = (event) => {
    if (!event.relatedTarget) $("live").classList.remove("drop");
  };
  document.ondrop = (event) => {
    event.preventDefault();
    $("live").classList.remove("drop");
    const [file] = event.dataTransfer.files;
    if (!file) return;
    $("detail").close();
    $("live").scrollIntoView();
    take(file);
  };
}

/* ---- the section ---- */

/* The most confident wrong prediction of each class, or what there is. */
function examples() {
  const sorted = images.filter((image) => image.true !== image.predicted).sort((a, b) => a.rank - b.rank);
  const isFirst = (image, i, all) => all.findIndex((other) => other.true === image.true) === i;
  return (sorted.length ? sorted : images).filter(isFirst).slice(0, EXAMPLES);
}

function offerClasses() {
  option($("live-which"), "predicted", "of predicted class");
  option($("live-which"), DIFFERENCE, "predicted minus true");
  names.forEach((name, i) => {
    option($("live-which"), i, `of ${name}`);
    const button = bar("button", "", 0, "");
    button.append(make("span"));
    $("top").append(button);
  });
  $("top-count").max = names.length;
  $("top-count").value = Math.min(5, names.length);
}

export function startLive() {
  if (!data.network) return;
  const { num_parameters: count, bytes: size, largest } = data.network;
  $("live").hidden = false;
  if (!network) {
    $("live-tools").hidden = true;
    $("live-what").textContent =
      `This network's ${count.toLocaleString("en")} parameters take ${(size / 1e6).toFixed(1)} MB: ` +
      `too many to run in this page, which holds up to ${largest / 1e6} MB of them.`;
    return;
  }
  $("try").hidden = false;
  $("live-what").textContent =
    "The network runs in this page: cover a part of a picture and see what it says then, or give it a picture of " +
    `your own, which stays on this device. It knows ${names.length} classes` +
    `${names.length > MANY ? "" : ` (${names.join(", ")})`} and names one of them for anything that it is shown. ` +
    "A map shows what speaks for a class at a stage of the network; later stages know more of the whole picture, and " +
    "see it coarser.";
  $("original-caption").textContent =
    `your picture, cropped to its middle; the network sees ${SIDE}x${SIDE} pixels of it`;
  offerClasses();
  for (const stage of data.network.stages) option($("live-stage"), stage, stage);
  for (const method of Object.keys(METHODS)) option($("live-method"), method, method);
  $("live-stage").value = data.stage;
  $("live-method").value = data.method;
  for (const id of ["live-which", "live-stage", "live-method"]) $(id).onchange = answerSoon;
  $("top-count").oninput = answerSoon;
  $("brush-size").max = SIDE / 2;
  $("brush-size").value = SIDE / 4;
  $("brush-size").oninput = () => moveBrush(live.brush.x, live.brush.y);
  $("undo").onclick = () => takeBack(false);
  $("reset").onclick = () => takeBack(true);
  for (const canvas of [$("covered"), $("live-map")]) coverBy(canvas);
  $("covered").onkeydown = onKey;
  $("file").onchange = () => {
    const [file] = $("file").files;
    $("file").value = "";
    if (file) take(file);
  };
  takeDropped();
  const shown = examples();
  $("examples").append(...shown.map((image) => thumbnail(image, () => startWith(image))));
  moveBrush((SIDE - brushSize()) / 2, (SIDE - brushSize()) / 2);
  if (shown.length) startWith(shown[0]);
}
