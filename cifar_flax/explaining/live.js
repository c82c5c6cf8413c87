/* ---- the network in the page: pictures that are covered with the mouse, a finger or the keyboard, or brought along ---- */
const network = data.network?.parameters ? buildNetwork(data.network, bytes(data.network.parameters)) : null;
const SIDE = 32, small = make("canvas"), clamp = (x, low, high) => Math.min(Math.max(x, low), high);
small.width = small.height = SIDE;
/* The picture that is asked about. Pixels are RGBA, Uint8ClampedArray [32, 32, 4]; the brush is its upper left corner. */
const live = {title: "", label: null, original: null, pixels: null, before: null, undo: [], brush: {x: 12, y: 12}};

/* ---- prediction and map ---- */
function ask(pixels) {
  const activation = network.features(pixels), logits = network.head(activation), probabilities = softmax(logits);
  const order = names.map((_, i) => i).sort((a, b) => logits[b] - logits[a]);
  return {activation, logits, probabilities, order, predicted: order[0]};
}
/* The map chosen: its row as in `drawMap`, and its weights on the logits. */
function target(predicted) {
  const choice = $("live-which").value, which = choice === "predicted" ? predicted : choice === "difference" ? DIFFERENCE : Number(choice);
  const weights = names.map((_, i) => which === DIFFERENCE ? Number(i === predicted) - Number(i === live.label) : Number(i === which));
  return [which, weights];
}
function drawSmall(canvas) {
  const context = canvas.getContext("2d", {willReadFrequently: true});
  small.getContext("2d").putImageData(new ImageData(live.pixels, SIDE), 0, 0);
  context.imageSmoothingEnabled = false;
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
}
function answer() {
  const now = ask(live.pixels), {activation, logits, probabilities, order, predicted} = now, [which, weights] = target(predicted);
  live.before ??= now;
  const raw = network.gradCam(activation, weights), before = live.before;
  drawings.set($("live-map"), () => { drawSmall($("live-map")); drawMap($("live-map"), raw, activation.size, activation.size, which); });
  drawings.get($("live-map"))();
  $("live-status").textContent = `${names[predicted]}, ${percent(probabilities[predicted])}` + (live.label === null ? "" : predicted === live.label ? ": right" : `: wrong, it is ${names[live.label]}`);
  $("live-before").textContent = live.undo.length ? `Uncovered: ${names[before.predicted]}, ${percent(before.probabilities[before.predicted])}, whose logit went from ${before.logits[before.predicted].toFixed(2)} to ${logits[before.predicted].toFixed(2)}.` : "Nothing is covered.";
  $("top-number").textContent = $("top-count").value;
  [...$("top").children].forEach((button, i) => {
    const c = order[i], [name, outer, share, logit] = button.children;
    button.hidden = i >= $("top-count").value;
    button.setAttribute("aria-pressed", c === which);
    button.setAttribute("aria-label", `${names[c]}: ${percent(probabilities[c])}, logit ${logits[c].toFixed(2)}`);
    button.onclick = () => { $("live-which").value = c; answer(); };
    name.textContent = names[c]; share.textContent = percent(probabilities[c]); logit.textContent = logits[c].toFixed(2);
    outer.firstChild.style.width = `${100 * probabilities[c]}%`;
  });
  $("map-caption").textContent = which === DIFFERENCE ? `blue: for ${names[predicted]}, orange: for ${names[live.label]}` : `what speaks for ${names[which]}`;
  $("live-map").setAttribute("aria-label", `map, ${$("map-caption").textContent}`);
  $("live-note").textContent = `Grad-CAM at the last stage, raw values ${Math.min(...raw).toPrecision(3)} to ${Math.max(...raw).toPrecision(3)}. `
    + (which === DIFFERENCE ? "" : `Their sum and the class's bias are its logit, ${logits[which].toFixed(2)}. `) + "To the right of each class: its probability and its logit.";
  $("undo").disabled = $("reset").disabled = !live.undo.length;
}
const answerSoon = beforeNextFrame(answer);
function show() { drawSmall($("covered")); answerSoon(); }

/* Starts with a picture: RGBA pixels, and its class or null. */
function start(pixels, title, label) {
  Object.assign(live, {original: pixels, pixels: pixels.slice(), title, label, before: null, undo: []});
  $("covered-caption").textContent = title;
  $("live-which").querySelector('[value="difference"]').disabled = label === null;
  if (label === null && $("live-which").value === "difference") $("live-which").value = "predicted";
  $("original").hidden = label !== null;
  $("live-error").hidden = true;
  [...$("examples").children].forEach(button => button.setAttribute("aria-pressed", button.title === title));
  show();
}
const titleOf = image => `#${image.index}: ${names[image.true]}` + (image.true === image.predicted ? "" : `, taken for ${names[image.predicted]}`);
function startWith(image) {
  const context = small.getContext("2d", {willReadFrequently: true});
  context.drawImage(sprite, ...cell(image), 0, 0, SIDE, SIDE);
  start(context.getImageData(0, 0, SIDE, SIDE).data, titleOf(image), image.true);
}
function askAbout(image) { startWith(image); $("live").scrollIntoView(); $("covered").focus({preventScroll: true}); }

/* ---- the brush ---- */
function moveBrush(x, y) {
  const size = Number($("brush-size").value);
  live.brush = {x: clamp(Math.round(x), 1 - size, SIDE - 1), y: clamp(Math.round(y), 1 - size, SIDE - 1)};
  document.querySelectorAll(".brush").forEach(({style}) => {
    style.left = `${100 * live.brush.x / SIDE}%`; style.top = `${100 * live.brush.y / SIDE}%`; style.width = style.height = `${100 * size / SIDE}%`;
  });
}
function fillColour() {
  const kind = $("fill").value;
  if (kind === "grey") return [128, 128, 128];
  if (kind === "training") return data.network.mean.map(x => Math.round(255 * x));
  return [0, 1, 2].map(c => Math.round(live.original.reduce((sum, value, i) => i % 4 === c ? sum + value : sum, 0) / SIDE ** 2));
}
function keep() { live.undo.push(live.pixels.slice()); }
function cover() {
  const size = Number($("brush-size").value), {x, y} = live.brush, colour = fillColour();
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
  const corner = event => { const box = canvas.getBoundingClientRect(), half = $("brush-size").value / 2; return [SIDE * (event.clientX - box.left) / box.width - half, SIDE * (event.clientY - box.top) / box.height - half]; };
  let last = null;
  canvas.onpointerdown = event => { if (event.button || !live.pixels) return; canvas.setPointerCapture(event.pointerId); keep(); moveBrush(...(last = corner(event))); cover(); };
  canvas.onpointermove = event => {
    const next = corner(event), from = last ?? next, steps = last ? Math.ceil(Math.max(Math.abs(next[0] - from[0]), Math.abs(next[1] - from[1]))) : 0;
    for (let i = 1; i < steps; i++) { moveBrush(...[0, 1].map(d => from[d] + (next[d] - from[d]) * i / steps)); cover(); }
    moveBrush(...next);
    if (last) { cover(); last = next; }
  };
  canvas.onpointerup = canvas.onpointercancel = () => { last = null; };
}
function onKey(event) {
  const step = event.shiftKey ? 4 : 1, {x, y} = live.brush;
  const moves = {ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step]};
  if (event.key in moves) moveBrush(x + moves[event.key][0], y + moves[event.key][1]);
  else if (event.key === " " && live.pixels) { keep(); cover(); }
  else if (event.key === "z" && (event.ctrlKey || event.metaKey)) takeBack(false);
  else return;
  event.preventDefault();
}

/* ---- a picture of one's own ---- */
/* Pixels RGBA [from, from, 4] at [32, 32, 4] by a triangle as wide as what a pixel covers: Pillow's BILINEAR, rows then columns. */
function shrink(pixels, from) {
  const scale = from / SIDE, reach = Math.max(scale, 1);
  const along = (source, lines, at) => {  // `at(line, i)`: where the i-th value of a line is, in pixels
    const result = new Uint8ClampedArray(4 * SIDE * lines);
    for (let i = 0; i < SIDE; i++) {
      const centre = (i + .5) * scale, first = Math.max(0, Math.floor(centre - reach + .5)), last = Math.min(from, Math.floor(centre + reach + .5));
      const weights = Array.from({length: last - first}, (_, k) => Math.max(0, 1 - Math.abs(first + k + .5 - centre) / reach)), total = weights.reduce((a, b) => a + b);
      for (let line = 0; line < lines; line++) for (let c = 0; c < 4; c++)
        result[4 * (line * SIDE + i) + c] = weights.reduce((sum, weight, k) => sum + weight * source[4 * at(line, first + k) + c], 0) / total + 1e-9;
    }
    return result;
  };
  const narrow = along(pixels, from, (row, i) => row * from + i), turned = along(narrow, SIDE, (column, i) => i * SIDE + column);
  return Uint8ClampedArray.from(turned, (_, k) => { const i = k >> 2; return turned[4 * ((i % SIDE) * SIDE + Math.floor(i / SIDE)) + k % 4]; });
}
async function take(file) {
  try {
    const picture = await createImageBitmap(file), side = Math.min(picture.width, picture.height), size = Math.min(side, 2048);
    const square = make("canvas"), context = square.getContext("2d", {willReadFrequently: true}), shown = $("original").firstChild;
    square.width = square.height = size;
    context.fillStyle = "white"; context.fillRect(0, 0, size, size);  // behind what is transparent
    context.imageSmoothingQuality = "high";
    context.drawImage(picture, Math.floor((picture.width - side) / 2), Math.floor((picture.height - side) / 2), side, side, 0, 0, size, size);
    shown.getContext("2d").drawImage(square, 0, 0, shown.width, shown.height);
    start(shrink(context.getImageData(0, 0, size, size).data, size), file.name, null);
  } catch {
    $("live-error").hidden = false;
    $("live-error").textContent = `${file.name} is no picture that this browser can read.`;
  }
}

/* ---- the section ---- */
function startLive() {
  if (!data.network) return;
  $("live").hidden = false;
  if (!network) {
    $("live-tools").hidden = true;
    $("live-what").textContent = `This network's ${data.network.num_parameters.toLocaleString("en")} parameters take ${(data.network.bytes / 1e6).toFixed(1)} MB: too many to run in this page, which holds up to ${data.network.largest / 1e6} MB of them.`;
    return;
  }
  $("try").hidden = false;
  $("live-what").textContent = "The network runs in this page: cover a part of a picture and see what it says then, or give it a picture of your own, which stays on this device. "
    + `It knows ten classes (${names.join(", ")}) and names one of them for anything that it is shown.`;
  [["predicted", "of predicted class"], ["difference", "predicted minus true"]].forEach(([value, text]) => option($("live-which"), value, text));
  names.forEach((name, i) => { option($("live-which"), i, `of ${name}`); const button = bar("button", "", 0, ""); button.append(make("span")); $("top").append(button); });
  $("live-which").onchange = $("top-count").oninput = answerSoon;
  $("brush-size").oninput = () => moveBrush(live.brush.x, live.brush.y);
  $("undo").onclick = () => takeBack(false);
  $("reset").onclick = () => takeBack(true);
  for (const id of ["covered", "live-map"]) coverBy($(id));
  $("covered").onkeydown = onKey;
  $("file").onchange = () => { if ($("file").files.length) take($("file").files[0]); $("file").value = ""; };
  document.ondragover = event => { event.preventDefault(); $("live").classList.add("drop"); };
  document.ondragleave = event => { if (!event.relatedTarget) $("live").classList.remove("drop"); };
  document.ondrop = event => {
    event.preventDefault();
    $("live").classList.remove("drop");
    if (event.dataTransfer.files.length) { $("detail").close(); $("live").scrollIntoView(); take(event.dataTransfer.files[0]); }
  };
  // The most confident wrong prediction of each class, or what there is.
  const wrong = images.filter(image => image.true !== image.predicted).sort((a, b) => b.confidence - a.confidence);
  const examples = (wrong.length ? wrong : images).filter((image, i, all) => all.findIndex(other => other.true === image.true) === i);
  examples.forEach(image => {
    const button = make("button"), canvas = make("canvas"); canvas.width = canvas.height = 64;
    draw(canvas, image, PLAIN);
    button.title = titleOf(image); button.setAttribute("aria-label", button.title);
    button.append(canvas); button.onclick = () => startWith(image);
    $("examples").append(button);
  });
  moveBrush(live.brush.x, live.brush.y);
  if (examples.length) startWith(examples[0]);
}
