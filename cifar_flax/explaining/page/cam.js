/* Class activation maps: which places of a feature map speak for a class. The definitions are those of cam.py.

   Each method makes of a feature map, {size, channels, values}, and of the gradient of a score, [size, size, channels],
   a raw map: Float64Array [size, size]. */

/* The sum over the places of each channel. */
function sums(values, channels) {
  const result = new Float64Array(channels);
  values.forEach((value, i) => {
    result[i % channels] += value;
  });
  return result;
}

/* The sum over the channels at each place. */
function acrossChannels(values, channels) {
  const map = new Float64Array(values.length / channels);
  values.forEach((value, i) => {
    map[Math.floor(i / channels)] += value;
  });
  return map;
}

const combined = ({ channels, values }, weights) =>
  acrossChannels(
    values.map((value, i) => value * weights[i % channels]),
    channels,
  );

const product = (a, b) => a.map((value, i) => value * b[i]);
const positive = (values) => values.map((value) => Math.max(value, 0));

function gradCam(x, gradient) {
  const places = x.values.length / x.channels;
  return combined(
    x,
    sums(gradient, x.channels).map((sum) => sum / places),
  );
}

function gradCamPlusPlus(x, gradient) {
  const all = sums(x.values, x.channels);
  const alpha = gradient.map((g, i) => (g ? g ** 2 / (2 * g ** 2 + all[i % x.channels] * g ** 3 + 1e-6) : 0));
  return combined(x, sums(product(positive(gradient), alpha), x.channels));
}

const hiresCam = (x, gradient) => acrossChannels(product(gradient, x.values), x.channels);

const layerCam = (x, gradient) => acrossChannels(product(positive(gradient), x.values), x.channels);

function xgradCam(x, gradient) {
  const all = sums(x.values, x.channels);
  const active = sums(product(gradient, x.values), x.channels);
  return combined(
    x,
    active.map((sum, k) => sum / (all[k] + 1e-7)),
  );
}

/* The first principal direction is found by iteration. */
function eigenCam(x) {
  const { channels, values } = x;
  const all = sums(values, channels);
  const places = values.length / channels;
  const centred = { channels, values: values.map((value, i) => value - all[i % channels] / places) };
  let direction = new Float64Array(channels).map((_, k) => 1 + k / channels);
  for (let change = 1, i = 0; change > 1e-12 && i < 2000; i++) {
    const map = combined(centred, direction);
    const next = sums(
      centred.values.map((value, j) => value * map[Math.floor(j / channels)]),
      channels,
    );
    const length = Math.hypot(...next) || 1;
    change = next.reduce((most, value, k) => Math.max(most, Math.abs(value / length - direction[k])), 0);
    direction = next.map((value) => value / length);
  }
  const sign = direction.reduce((sum, value, k) => sum + value * all[k], 0) < 0 ? -1 : 1;
  return combined(
    centred,
    direction.map((value) => sign * value),
  );
}

export const METHODS = {
  "grad-cam": gradCam,
  "grad-cam++": gradCamPlusPlus,
  "hires-cam": hiresCam,
  "layer-cam": layerCam,
  "xgrad-cam": xgradCam,
  "eigen-cam": eigenCam,
};
/* Linear in the gradient: the map of a difference of two logits is the difference of their maps, and at the last stage
   a map sums up to the logit, less the class's bias. */
export const LINEAR = ["grad-cam", "hires-cam", "xgrad-cam"];
