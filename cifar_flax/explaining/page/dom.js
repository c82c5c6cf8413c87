/* What every page needs: its data, and a few words to make elements of it. Strings become text, never HTML. */

export const data = JSON.parse(document.getElementById("data").textContent);
export const names = data.class_names;
/* The pixels along an image. */
export const SIDE = data.image_size;
/* Where there are more classes than these, they are not listed one by one. */
export const MANY = 20;

export const $ = (id) => document.getElementById(id);
export const percent = (x) => `${(100 * x).toFixed(1)}%`;

export const titleOf = (image) =>
  names[image.true] + (image.true === image.predicted ? "" : `, taken for ${names[image.predicted]}`);

export const numbered = (image) => `#${image.index}: ${titleOf(image)}`;

export function make(tag, text, className) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (className) node.className = className;
  return node;
}

export function option(select, value, text) {
  const node = make("option", text);
  node.value = value;
  select.append(node);
}

/* A name, a bar as long as its share, and a text. */
export function bar(tag, name, share, text) {
  const row = make(tag, undefined, "bar");
  const outer = make("span");
  const inner = make("span");
  inner.style.width = `${100 * share}%`;
  outer.append(inner);
  row.append(make("span", name), outer, make("span", text));
  row.title = name; // which is cut where it is long
  return row;
}
