/* The network in plain script, from an image to its logits and its class activation maps; it reads as network/model.py
   does.

   A feature map is {size, channels, values}: values is a Float64Array [size, size, channels]. Script computes fastest
   in float64, and is then at least as exact as the program's float32. */

const EPSILON = 1e-5;

export function float16(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  return sign * (exponent ? 2 ** (exponent - 25) * (1024 + fraction) : 2 ** -24 * fraction);
}

/* The parameters by name, as in a file of weights; one after the other in `bytes`. */
function readParameters(shapes, dtype, bytes) {
  const all =
    dtype === "float16"
      ? Float64Array.from(new Uint16Array(bytes.buffer), float16)
      : Float64Array.from(new Float32Array(bytes.buffer));
  const parameters = {};
  let start = 0;
  for (const [name, shape] of Object.entries(shapes)) {
    const end = start + shape.reduce((a, b) => a * b, 1);
    parameters[name] = all.subarray(start, end);
    start = end;
  }
  return parameters;
}

function padded({ size, channels, values }, border) {
  if (!border) return values;
  const row = size * channels;
  const wide = (size + 2 * border) * channels;
  const result = new Float64Array((size + 2 * border) * wide);
  for (let i = 0; i < size; i++)
    result.set(values.subarray(i * row, (i + 1) * row), (i + border) * wide + border * channels);
  return result;
}

/* The convolution with kernel [taps, taps, channels, features] and a border of zeros, none around a 1x1 kernel. */
function convolution(x, kernel, taps, features, stride) {
  const border = (taps - 1) / 2;
  const input = padded(x, border);
  const row = (x.size + 2 * border) * x.channels;
  const span = taps * x.channels;
  const size = Math.ceil(x.size / stride);
  const values = new Float64Array(size * size * features);
  for (let i = 0; i < size; i++)
    for (let j = 0; j < size; j++) {
      const to = (i * size + j) * features;
      for (let tap = 0; tap < taps; tap++) {
        const from = (i * stride + tap) * row + j * stride * x.channels;
        // The kernel's columns and channels are neighbours in the input too.
        for (let k = 0; k < span; k++) {
          const value = input[from + k];
          const weight = (tap * span + k) * features;
          if (value === 0) continue; // ReLU leaves many zeros
          for (let f = 0; f < features; f++) values[to + f] += value * kernel[weight + f];
        }
      }
    }
  return { size, channels: features, values };
}

/* Layer normalisation over height, width and channels together, with a scale and a bias a channel; in place. */
function layerNorm(x, scale, bias) {
  const { channels, values } = x;
  const count = values.length;
  let sum = 0;
  let squares = 0;
  for (let i = 0; i < count; i++) sum += values[i];
  const mean = sum / count;
  for (let i = 0; i < count; i++) squares += (values[i] - mean) ** 2;
  const inverse = 1 / Math.sqrt(squares / count + EPSILON);
  for (let i = 0; i < count; i += channels)
    for (let c = 0; c < channels; c++) values[i + c] = (values[i + c] - mean) * inverse * scale[c] + bias[c];
  return x;
}

/* A scale and a bias a channel alone: what BatchNorm is once it is trained; in place. */
function affine(x, scale, bias) {
  for (let i = 0; i < x.values.length; i += x.channels)
    for (let c = 0; c < x.channels; c++) x.values[i + c] = x.values[i + c] * scale[c] + bias[c];
  return x;
}

function relu(x) {
  for (let i = 0; i < x.values.length; i++) x.values[i] = Math.max(x.values[i], 0);
  return x;
}

function add(x, y) {
  for (let i = 0; i < x.values.length; i++) x.values[i] += y.values[i];
  return x;
}

/* `given` is what report.py embeds. Pixels are RGBA, as a canvas has them: Uint8ClampedArray [side, side, 4]. */
export function buildNetwork(given, bytes) {
  const { shapes, blocks, mean, std } = given;
  const parameters = readParameters(shapes, given.dtype, bytes);
  const conv = (x, name, stride) => {
    const [taps, , , features] = shapes[`${name}.kernel`];
    return convolution(x, parameters[`${name}.kernel`], taps, features, stride);
  };
  const normalise = given.norm === "affine" ? affine : layerNorm;
  const norm = (x, name) => normalise(x, parameters[`${name}.scale`], parameters[`${name}.bias`]);

  function block(x, name, stride) {
    let y = relu(norm(conv(x, `${name}.conv1`, stride), `${name}.norm1`));
    y = norm(conv(y, `${name}.conv2`, 1), `${name}.norm2`);
    const projects = `${name}.shortcut_conv.kernel` in shapes;
    return relu(add(y, projects ? norm(conv(x, `${name}.shortcut_conv`, stride), `${name}.shortcut_norm`) : x));
  }

  function normalize(pixels) {
    const count = pixels.length / 4;
    const values = new Float64Array(3 * count);
    for (let i = 0; i < count; i++)
      for (let c = 0; c < 3; c++) values[3 * i + c] = (pixels[4 * i + c] / 255 - mean[c]) / std[c];
    return { size: Math.sqrt(count), channels: 3, values };
  }

  /* The activation that leaves the last stage. */
  function features(pixels) {
    let x = relu(norm(conv(normalize(pixels), "conv", 1), "norm"));
    for (const [name, stride] of blocks) x = block(x, name, stride);
    return x;
  }

  const kernel = parameters["linear.kernel"];
  const bias = parameters["linear.bias"];
  const classes = bias.length;

  /* The logits of an activation: its mean over the places, and the last layer. */
  function head({ channels, values }) {
    const logits = Array.from(bias);
    const places = values.length / channels;
    values.forEach((value, i) => {
      for (let c = 0; c < classes; c++) logits[c] += (value / places) * kernel[(i % channels) * classes + c];
    });
    return logits;
  }

  /* Grad-CAM at the last stage, float64 [size * size], of the sum of logits weighted by `target`, [classes]. A logit's
     gradient is its column of the last layer over the number of places, at every place: nothing has to go backwards. */
  function gradCam({ channels, values }, target) {
    const map = new Float64Array(values.length / channels);
    const weights = new Float64Array(channels);
    for (let k = 0; k < channels; k++)
      for (let c = 0; c < classes; c++) weights[k] += (target[c] * kernel[k * classes + c]) / map.length;
    values.forEach((value, i) => {
      map[Math.floor(i / channels)] += weights[i % channels] * value;
    });
    return map;
  }

  return { features, head, gradCam };
}

export function softmax(logits) {
  const highest = Math.max(...logits);
  const powers = logits.map((x) => Math.exp(x - highest));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((x) => x / sum);
}
