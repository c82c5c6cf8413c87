/* Images and maps: how they are decoded, coloured and drawn. The definition is that of cam.to_image and cam.overlay. */

import { $, data, make, names, numbered, option, SIDE } from "./dom.js";

/* What can be drawn over an image: the map of a class, which is a number, or one of these. */
export const DIFFERENCE = "difference";
export const PLAIN = "none";

export const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const decode = (text) => new Int8Array(bytes(text).buffer);
/* Tables of 256 RGB colours, by their names. */
const tables = Object.fromEntries(Object.entries(data.colors).map(([name, table]) => [name, bytes(table)]));
/* Blue and orange, of a difference. */
const FOR = [45, 109, 181];
const AGAINST = [179, 88, 6];

/* ---- what the page holds ---- */

const maps = decode(data.maps);
const area = data.map_shape[0] * data.map_shape[1];
let end = 0;
/* Each image with its place among the others and with the place of its first map. */
export const images = data.images.map((image, place) => {
  const first = end;
  end += area * image.ranges.length;
  return { ...image, place, first, confidence: image.probabilities[image.predicted] };
});
/* The classes of which an image has a map. */
export const mapped = names.map((_, c) => c).filter((c) => images.some((image) => image.classes.includes(c)));

const otherMaps = data.compared && decode(data.compared.maps);
const otherArea = data.compared && data.compared.map_shape[0] * data.compared.map_shape[1];
/* What the other network says of the images on which the two differ. */
export const others = (data.compared?.images ?? []).map((other, i) => ({
  ...other,
  image: images[other.place],
  first: otherArea * i,
}));

/* 127 stands for the larger magnitude of a map's least and greatest value. */
const scaled = (values, [low, high]) =>
  Float32Array.from(values, (value) => (value * Math.max(Math.abs(low), Math.abs(high))) / 127);

/* Where an image's map is among its own: of a class, or the difference, which comes last; -1 where it has none. */
function numberOf(image, which) {
  if (which !== DIFFERENCE) return image.classes.indexOf(which);
  return image.true === image.predicted ? -1 : image.classes.length;
}

/* The map of a class or the difference; null where the image has none. */
export function rawMap(image, which) {
  const number = numberOf(image, which);
  if (number < 0) return null;
  const start = image.first + number * area;
  return scaled(maps.subarray(start, start + area), image.ranges[number]);
}

/* Its least and greatest value, before it was averaged. */
export const rangeOf = (image, which) => image.ranges[numberOf(image, which)];

export const otherMap = (other) => scaled(otherMaps.subarray(other.first, other.first + otherArea), other.ranges[0]);

/* All images in one picture; drawn from once it is loaded. */
const sprite = new Image();
export function load(then) {
  sprite.onload = then;
  sprite.src = `data:image/png;base64,${data.sprite}`;
}

/* ---- canvases ---- */

/* Makes a canvas about so large: each of an image's pixels becomes a square of the same size. */
export function fit(canvas, about) {
  canvas.width = canvas.height = SIDE * Math.max(1, Math.round(about / SIDE));
  return canvas;
}

export const newCanvas = (about) => fit(make("canvas"), about);

export function contextOf(canvas) {
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingEnabled = false;
  return context;
}

export function drawImage(canvas, image) {
  const column = image.place % data.sprite_columns;
  const row = Math.floor(image.place / data.sprite_columns);
  contextOf(canvas).drawImage(sprite, SIDE * column, SIDE * row, SIDE, SIDE, 0, 0, canvas.width, canvas.height);
}

/* A small button of an image. */
export function thumbnail(image, onclick) {
  const button = make("button", undefined, "thumbnail");
  const canvas = newCanvas(64);
  drawImage(canvas, image);
  button.title = numbered(image);
  button.setAttribute("aria-label", button.title);
  button.append(canvas);
  button.onclick = onclick;
  return button;
}

/* Draws an image and a map over it: its own, or `raw`. */
export function draw(canvas, image, which, raw = rawMap(image, which)) {
  drawImage(canvas, image);
  if (raw) drawMap(canvas, raw, which);
}

/* ---- maps ---- */

/* A square map at another size, bilinearly. */
function enlarge(map, size) {
  const side = Math.sqrt(map.length);
  const result = new Float32Array(size * size);
  const along = Array.from({ length: size }, (_, i) => {
    const x = Math.min(Math.max(((i + 0.5) * side) / size - 0.5, 0), side - 1);
    const low = Math.floor(x);
    return [low, Math.min(low + 1, side - 1), x - low];
  });
  for (let i = 0; i < size; i++) {
    const [top, bottom, v] = along[i];
    for (let j = 0; j < size; j++) {
      const [left, right, h] = along[j];
      result[i * size + j] =
        (1 - v) * ((1 - h) * map[top * side + left] + h * map[top * side + right]) +
        v * ((1 - h) * map[bottom * side + left] + h * map[bottom * side + right]);
    }
  }
  return result;
}

function toUnit(map) {
  let low = Infinity;
  let high = -Infinity;
  for (const x of map) {
    low = Math.min(low, x);
    high = Math.max(high, x);
  }
  return map.map((x) => (x - low) / (1e-7 + high - low));
}

/* Draws a raw map over the picture that is on the canvas. */
export function drawMap(canvas, raw, which) {
  const size = canvas.width;
  const context = contextOf(canvas);
  const picture = context.getImageData(0, 0, size, size);
  const pixels = picture.data;
  const isZero = which !== DIFFERENCE && raw.every((x) => x <= 0);
  if (isZero)
    for (let i = 0; i < pixels.length; i++) pixels[i] /= i % 4 === 3 ? 1 : 3; // all but the alpha
  else if (which === DIFFERENCE) mixDifference(pixels, raw, size);
  else mixHeat(pixels, raw, size);
  context.putImageData(picture, 0, 0);
  if (isZero) {
    context.fillStyle = "white";
    context.font = `${size / 11}px system-ui, sans-serif`;
    context.textAlign = "center";
    context.fillText("zero map:", size / 2, size * 0.47);
    context.fillText("no evidence", size / 2, size * 0.6);
  }
}

/* What is far from zero gets its colour, the rest becomes grey. */
function mixDifference(pixels, raw, size) {
  const limit = raw.reduce((a, b) => Math.max(a, Math.abs(b)), 0) || 1;
  enlarge(raw, size).forEach((x, i) => {
    const strength = Math.min(1, (1.6 * opacity * Math.abs(x)) / limit);
    const color = x > 0 ? FOR : AGAINST;
    const grey = 0.3 * pixels[4 * i] + 0.59 * pixels[4 * i + 1] + 0.11 * pixels[4 * i + 2];
    for (let c = 0; c < 3; c++) pixels[4 * i + c] = (1 - strength) * grey + strength * color[c];
  });
}

function mixHeat(pixels, raw, size) {
  const heat = toUnit(enlarge(toUnit(raw.map((x) => Math.max(x, 0))), size));
  const mixed = new Float32Array(3 * size * size);
  heat.forEach((x, i) => {
    const color = 3 * Math.floor(255 * x);
    for (let c = 0; c < 3; c++)
      mixed[3 * i + c] = (opacity * colors[color + c] + (1 - opacity) * pixels[4 * i + c]) / 255;
  });
  const highest = mixed.reduce((a, b) => Math.max(a, b), 0);
  heat.forEach((_, i) => {
    for (let c = 0; c < 3; c++) pixels[4 * i + c] = Math.floor((255 * mixed[3 * i + c]) / highest);
  });
}

/* ---- how opaque maps are, and of which colours ---- */

let opacity = 0.5;
let [colors] = Object.values(tables);
const drawings = new Map(); // of every canvas with a map, what draws it again

export function keepDrawing(canvas, drawing) {
  drawings.set(canvas, drawing);
  drawing();
}

export const forget = (canvas) => drawings.delete(canvas);

/* Calls `action` once before the next frame, however often it is asked for. */
export function beforeNextFrame(action) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      action();
    });
  };
}

const drawAgain = beforeNextFrame(() => {
  for (const drawing of drawings.values()) drawing();
});

/* The sliders are one: each shows what was set at any of them. */
export function startOpacity() {
  const sliders = [...document.querySelectorAll(".opacity")];
  for (const slider of sliders)
    slider.oninput = () => {
      opacity = slider.value / 100;
      for (const other of sliders) other.value = slider.value;
      drawAgain();
    };
}

/* What the colours mean: from the places that count least to those that count most. */
function drawLegend() {
  const context = contextOf($("legend"));
  for (let i = 0; i < 256; i++) {
    context.fillStyle = `rgb(${colors.subarray(3 * i, 3 * i + 3).join(" ")})`;
    context.fillRect(i, 0, 1, 1);
  }
}

export function startColors() {
  for (const name of Object.keys(tables)) option($("colors"), name, name);
  $("colors").onchange = () => {
    colors = tables[$("colors").value];
    drawLegend();
    drawAgain();
  };
  drawLegend();
}
