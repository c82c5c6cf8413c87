/* The network in plain script, from an image to its logits, and back to the gradient at any stage; it reads as
   network/model.py does.

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

/* ---- the steps: each makes a feature map y of x, and of y's gradient that of x, or those of both ---- */

function padded({ size, channels, values }, border) {
  if (!border) return values;
  const row = size * channels;
  const wide = (size + 2 * border) * channels;
  const result = new Float64Array((size + 2 * border) * wide);
  for (let i = 0; i < size; i++)
    result.set(values.subarray(i * row, (i + 1) * row), (i + border) * wide + border * channels);
  return result;
}

function withoutBorder({ size, channels }, values, border) {
  if (!border) return values;
  const row = size * channels;
  const wide = (size + 2 * border) * channels;
  const result = new Float64Array(size * row);
  for (let i = 0; i < size; i++) {
    const start = (i + border) * wide + border * channels;
    result.set(values.subarray(start, start + row), i * row);
  }
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
  /* For each output and row of the kernel, whose columns and channels are neighbours in the input too: where they
     begin in the output, the input and the kernel. */
  const walk = (visit) => {
    for (let i = 0; i < size; i++)
      for (let j = 0; j < size; j++)
        for (let tap = 0; tap < taps; tap++)
          visit((i * size + j) * features, (i * stride + tap) * row + j * stride * x.channels, tap * span * features);
  };
  walk((to, from, weights) => {
    for (let k = 0; k < span; k++) {
      const value = input[from + k];
      const weight = weights + k * features;
      if (value === 0) continue; // ReLU leaves many zeros
      for (let f = 0; f < features; f++) values[to + f] += value * kernel[weight + f];
    }
  });
  const back = (gradient) => {
    const result = new Float64Array(input.length);
    walk((to, from, weights) => {
      for (let k = 0; k < span; k++) {
        const weight = weights + k * features;
        let sum = 0;
        for (let f = 0; f < features; f++) sum += gradient[to + f] * kernel[weight + f];
        result[from + k] += sum;
      }
    });
    return [withoutBorder(x, result, border)];
  };
  return [{ size, channels: features, values }, back];
}

/* Layer normalisation over height, width and channels together, with a scale and a bias a channel. */
function layerNorm({ size, channels, values: x }, scale, bias) {
  const mean = x.reduce((sum, value) => sum + value, 0) / x.length;
  const variance = x.reduce((sum, value) => sum + (value - mean) ** 2, 0) / x.length;
  const inverse = 1 / Math.sqrt(variance + EPSILON);
  const normal = x.map((value) => (value - mean) * inverse);
  const values = normal.map((value, i) => value * scale[i % channels] + bias[i % channels]);
  const back = (gradient) => {
    const scaled = gradient.map((value, i) => value * scale[i % channels]);
    const average = scaled.reduce((sum, value) => sum + value, 0) / x.length;
    const along = scaled.reduce((sum, value, i) => sum + value * normal[i], 0) / x.length;
    return [scaled.map((value, i) => inverse * (value - average - normal[i] * along))];
  };
  return [{ size, channels, values }, back];
}

/* A scale and a bias a channel alone: what BatchNorm is once it is trained. */
function affine({ size, channels, values: x }, scale, bias) {
  const values = x.map((value, i) => value * scale[i % channels] + bias[i % channels]);
  return [{ size, channels, values }, (gradient) => [gradient.map((value, i) => value * scale[i % channels])]];
}

function relu(x) {
  const values = x.values.map((value) => Math.max(value, 0));
  return [{ ...x, values }, (gradient) => [gradient.map((value, i) => (values[i] > 0 ? value : 0))]];
}

function add(x, y) {
  const values = x.values.map((value, i) => value + y.values[i]);
  return [{ ...x, values }, (gradient) => [gradient, gradient]];
}

/* ---- the network ---- */

/* `given` is what report.py embeds. Pixels are RGBA, as a canvas has them: Uint8ClampedArray [side, side, 4].

   Returns a function of pixels to {logits, activations, gradient}: activations are by the names of the stages, and
   gradient(stage, target) is that of the sum of logits weighted by `target`, [classes]. */
export function buildNetwork(given, bytes) {
  const { shapes, blocks, mean, std } = given;
  const parameters = readParameters(shapes, given.dtype, bytes);
  const normalise = given.norm === "affine" ? affine : layerNorm;
  const kernel = parameters["linear.kernel"];
  const bias = parameters["linear.bias"];
  const classes = bias.length;

  function normalize(pixels) {
    const count = pixels.length / 4;
    const values = new Float64Array(3 * count);
    for (let i = 0; i < count; i++)
      for (let c = 0; c < 3; c++) values[3 * i + c] = (pixels[4 * i + c] / 255 - mean[c]) / std[c];
    return { size: Math.sqrt(count), channels: 3, values };
  }

  /* The logits of an activation: its mean over the places, and the last layer. */
  function head({ channels, values }) {
    const logits = Array.from(bias);
    const places = values.length / channels;
    values.forEach((value, i) => {
      for (let c = 0; c < classes; c++) logits[c] += (value / places) * kernel[(i % channels) * classes + c];
    });
    return logits;
  }

  /* A column of the last layer over the number of places, at every place. */
  function headGradient({ channels, values }, target) {
    const weights = new Float64Array(channels);
    for (let k = 0; k < channels; k++)
      for (let c = 0; c < classes; c++) weights[k] += (target[c] * kernel[k * classes + c] * channels) / values.length;
    return values.map((_, i) => weights[i % channels]);
  }

  return (pixels) => {
    const steps = []; // in order, each with how a gradient goes back through it
    const stages = {}; // by name: its activation, and how many steps led there
    const taken = (inputs, [output, back]) => {
      steps.push({ inputs, output, back });
      return output;
    };
    const conv = (x, name, stride) => {
      const [taps, , , features] = shapes[`${name}.kernel`];
      return taken([x], convolution(x, parameters[`${name}.kernel`], taps, features, stride));
    };
    const norm = (x, name) => taken([x], normalise(x, parameters[`${name}.scale`], parameters[`${name}.bias`]));
    const rectify = (x) => taken([x], relu(x));

    function block(x, name, stride) {
      let y = rectify(norm(conv(x, `${name}.conv1`, stride), `${name}.norm1`));
      y = norm(conv(y, `${name}.conv2`, 1), `${name}.norm2`);
      const projects = `${name}.shortcut_conv.kernel` in shapes;
      const shortcut = projects ? norm(conv(x, `${name}.shortcut_conv`, stride), `${name}.shortcut_norm`) : x;
      return rectify(taken([y, shortcut], add(y, shortcut)));
    }

    let x = rectify(norm(conv(normalize(pixels), "conv", 1), "norm"));
    stages.stem = { activation: x, end: steps.length };
    for (const [name, stride] of blocks) {
      x = block(x, name, stride);
      stages[name.split("_")[0]] = { activation: x, end: steps.length };
    }

    function gradient(stage, target) {
      const gradients = new Map([[x, headGradient(x, target)]]);
      for (const { inputs, output, back } of steps.slice(stages[stage].end).reverse())
        back(gradients.get(output)).forEach((part, i) => {
          const other = gradients.get(inputs[i]);
          gradients.set(inputs[i], other ? part.map((value, k) => value + other[k]) : part);
        });
      return gradients.get(stages[stage].activation);
    }

    const activations = Object.fromEntries(Object.entries(stages).map(([name, { activation }]) => [name, activation]));
    return { logits: head(x), activations, gradient };
  };
}

export function softmax(logits) {
  const highest = Math.max(...logits);
  const powers = logits.map((x) => Math.exp(x - highest));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((x) => x / sum);
}
