// An image in; class names and percentages, numbers, points or a mask out. The model and the program that runs it are in this file, so nothing is ever requested.
"use strict";
const $ = id => document.getElementById(id);
const spec = JSON.parse($("spec").textContent);

// ---- Unpack what this file carries.

async function unpacked(id) {  // gzip in base64 -> bytes
  const text = atob($(id).textContent), bytes = new Uint8Array(text.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i);
  $(id).remove();
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function checkCanvas() {  // some browsers show pages false pixels, so that nobody can be tracked by them
  const context = Object.assign(document.createElement("canvas"), { width: 16, height: 16 }).getContext("2d");
  context.fillStyle = "rgb(30, 120, 210)";
  context.fillRect(0, 0, 16, 16);
  const { data } = context.getImageData(0, 0, 16, 16);
  if ([30, 120, 210, 255].some((v, i) => Math.abs(v - data[100 + i]) > 2)) throw new Error("this browser hides pixels from pages; allow canvas data");
}

async function loadModel() {  // -> (image -> its predictions)
  checkCanvas();
  const program = new Blob([await unpacked("runtime")], { type: "text/javascript" });
  const ort = await import(URL.createObjectURL(program));
  ort.env.wasm.numThreads = 1;  // more would need headers that a file doesn't have
  ort.env.wasm.wasmBinary = await unpacked("wasm");
  const session = await ort.InferenceSession.create(await unpacked("model"));
  return async image => {
    const images = new ort.Tensor("uint8", planes(image), [1, 3, image.height, image.width]);
    const out = (await session.run({ images }))[session.outputNames[0]];
    return spec.kind === "mask" ? likeliest(out) : [...out.data];
  };
}

function likeliest({ dims, data }) {  // the class of each pixel, from a probability of each class for each pixel
  const n = dims[2] * dims[3], best = new Uint8Array(n);
  for (let c = 1; c < dims[1]; c++) for (let i = 0; i < n; i++) if (data[c * n + i] > data[best[i] * n + i]) best[i] = c;
  return best;
}

// ---- Read an image as coursekit does. An image here is {width, height, data, place}, and data holds red, green, blue of each pixel. `place` says
// where it is in the photo: its corner, the size of one of its pixels, and the size of the photo; all [down, across] in pixels of the photo.

const blank = (width, height) => ({ width, height, data: new Uint8ClampedArray(3 * width * height) });  // assigning to it rounds and clamps

function reduction(width, height) {  // Pillow reads a large JPEG at 1/2, 1/4 or 1/8 of its size, but not below `reads` pixels
  const fits = spec.reads ? Math.min(Math.floor(width / spec.reads), Math.floor(height / spec.reads)) : 1;
  return [8, 4, 2].find(n => n <= fits) ?? 1;
}

function average(strip, n, image, top) {  // each pixel of the image, from row `top` on, is the mean of n x n pixels of the strip
  for (let y = 0; y * n < strip.height; y++) {
    for (let x = 0; x < image.width; x++) {
      const right = Math.min(strip.width, (x + 1) * n), bottom = Math.min(strip.height, (y + 1) * n);
      let red = 0, green = 0, blue = 0;
      for (let v = y * n; v < bottom; v++) {
        for (let u = x * n, at = 4 * (v * strip.width + u); u < right; u++, at += 4) {
          red += strip.data[at];
          green += strip.data[at + 1];
          blue += strip.data[at + 2];
        }
      }
      const count = (right - x * n) * (bottom - y * n);
      image.data.set([red / count, green / count, blue / count], 3 * ((top + y) * image.width + x));
    }
  }
}

async function decoded(file) {  // upright; transparent pixels are white; colors as the file has them, whatever its profile says
  const start = new Uint8Array(await file.slice(0, 3).arrayBuffer());
  const bitmap = await createImageBitmap(file, { imageOrientation: "from-image", colorSpaceConversion: "none" });
  const n = start[0] === 0xff && start[1] === 0xd8 && start[2] === 0xff ? reduction(bitmap.width, bitmap.height) : 1;
  const image = blank(Math.ceil(bitmap.width / n), Math.ceil(bitmap.height / n));
  image.place = { corner: [0, 0], step: [n, n], photo: [bitmap.height, bitmap.width] };
  const rows = Math.max(1, Math.floor(2e6 / (bitmap.width * n)));  // in strips: phones refuse a canvas of a whole large photo
  const canvas = Object.assign(document.createElement("canvas"), { width: bitmap.width, height: Math.min(bitmap.height, rows * n) });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff";
  for (let top = 0; top < image.height; top += rows) {
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(bitmap, 0, -top * n);
    average(context.getImageData(0, 0, canvas.width, Math.min(canvas.height, bitmap.height - top * n)), n, image, top);
  }
  bitmap.close();
  return image;
}

// ---- Resize as Pillow and PyTorch do: a triangle as wide as the reduction, along the rows and then along the columns, in whole numbers.

function weights(from, to) {  // for each new pixel: the first old pixel that counts, and the share of each, times 2 ** bits
  const scale = from / to, reach = Math.max(scale, 1);
  const shares = Array.from({ length: to }, (_, i) => {
    const center = (i + 0.5) * scale;
    const first = Math.max(0, Math.floor(center - reach + 0.5)), end = Math.min(from, Math.floor(center + reach + 0.5));
    const parts = Array.from({ length: end - first }, (_, k) => Math.max(0, 1 - Math.abs(first + k + 0.5 - center) / reach));
    const sum = parts.reduce((a, b) => a + b);
    return { first, parts: parts.map(part => part / sum) };
  });
  const most = Math.max(...shares.map(({ parts }) => Math.max(...parts)));
  let bits = 0;
  while (bits < 22 && Math.floor(0.5 + most * 2 ** (bits + 1)) < 2 ** 15) bits++;
  for (const share of shares) share.parts = share.parts.map(part => Math.floor(0.5 + part * 2 ** bits));
  return { shares, bits };
}

function resampled(image, to, down) {  // to so many columns, or if `down` rows
  const { width, height, data } = image;
  if (to === (down ? height : width)) return image;
  const made = down ? blank(width, to) : blank(to, height);
  const [step, line, lines] = down ? [3 * width, 3, width] : [3, 3 * width, height];
  const [newStep, newLine] = down ? [3 * width, 3] : [3, 3 * to];
  const { shares, bits } = weights(down ? height : width, to), half = 2 ** bits / 2;
  shares.forEach(({ first, parts }, i) => {
    for (let k = 0; k < lines; k++) {
      for (let color = 0; color < 3; color++) {
        let sum = half, at = k * line + first * step + color;
        for (const part of parts) {
          sum += part * data[at];
          at += step;
        }
        made.data[k * newLine + i * newStep + color] = sum >> bits;
      }
    }
  });
  return made;
}

function cut(image, [top, left, bottom, right], [rows, columns]) {  // a box of the image, resized
  const part = blank(right - left, bottom - top);
  for (let y = 0; y < part.height; y++) {
    const at = 3 * ((top + y) * image.width + left);
    part.data.set(image.data.subarray(at, at + 3 * part.width), 3 * y * part.width);
  }
  const made = resampled(resampled(part, columns, false), rows, true), { corner, step, photo } = image.place;
  made.place = { corner: [corner[0] + step[0] * top, corner[1] + step[1] * left],
                 step: [step[0] * part.height / rows, step[1] * part.width / columns], photo };
  return made;
}

// ---- The transforms, step by step as in coursekit.vision. Sizes are [rows, columns].

const round = x => Math.abs(x % 1) === 0.5 ? 2 * Math.round(x / 2) : Math.round(x);  // halves to even, as Python
const both = make => [make(0), make(1)];
const clip = (x, low, high) => Math.max(low, Math.min(high, x));
const sizeOf = image => [image.height, image.width];
const middle = (size, part, how = Math.floor) => {  // the box of this size in the middle
  const [top, left] = both(i => how((size[i] - part[i]) / 2));
  return [top, left, top + part[0], left + part[1]];
};

const steps = {
  squish: (image, { size }) => cut(image, [0, 0, ...sizeOf(image)], size),

  crop(image, { size }) {  // the short side fits, the long one is cropped
    const whole = sizeOf(image), scale = Math.max(...both(i => size[i] / whole[i]));
    const inner = both(i => clip(round(whole[i] * scale), size[i], 8 * size[i]));
    const used = both(i => inner[i] === 8 * size[i] ? clip(round(inner[i] / scale), 1, whole[i]) : whole[i]);
    return cut(cut(image, middle(whole, used), inner), middle(inner, size), size);
  },

  pad(image, { size, pad_mode }) {  // the long side fits, and what is missing is made up
    const whole = sizeOf(image), scale = Math.min(...both(i => size[i] / whole[i]));
    const inner = both(i => clip(round(whole[i] * scale), 1, size[i]));
    const small = cut(image, [0, 0, ...whole], inner), made = blank(size[1], size[0]), [top, left] = middle(size, inner);
    const { corner, step, photo } = small.place;
    made.place = { corner: both(i => corner[i] - step[i] * [top, left][i]), step, photo };
    const old = (at, n) => {  // where a pixel outside comes from
      if (pad_mode === "border") return clip(at, 0, n - 1);
      const back = ((at % (2 * n)) + 2 * n) % (2 * n);
      return back < n ? back : 2 * n - 1 - back;
    };
    for (let y = 0; y < size[0]; y++) {
      for (let x = 0; x < size[1]; x++) {
        const [v, u] = [y - top, x - left], outside = v < 0 || u < 0 || v >= inner[0] || u >= inner[1];
        if (pad_mode === "zeros" && outside) continue;
        const at = 3 * (old(v, inner[0]) * inner[1] + old(u, inner[1]));
        made.data.set(small.data.subarray(at, at + 3), 3 * (y * size[1] + x));
      }
    }
    return made;
  },

  middle(image, { size, share, how }) {  // the largest part of the new shape, or this share of its sides
    const whole = sizeOf(image), scale = Math.min(...both(i => whole[i] / size[i])) * share;
    const part = both(i => clip(round(size[i] * scale), 1, whole[i]));
    return cut(image, middle(whole, part, how === "round" ? round : Math.floor), size);
  },
};

const prepared = async file => spec.steps.reduce((image, step) => steps[step.name](image, step), await decoded(file));

function planes({ width, height, data }) {  // all reds, then all greens, then all blues
  const made = new Uint8Array(data.length), n = width * height;
  for (let i = 0; i < n; i++) for (let color = 0; color < 3; color++) made[color * n + i] = data[3 * i + color];
  return made;
}

// ---- The page. Names are only ever set as text, so nothing in them can be markup.

const make = (tag, kind, text = "") => Object.assign(document.createElement(tag), { className: kind, textContent: text });
const percent = p => `${(100 * p).toFixed(1)}%`;
function say(text, { wrong = false, heard = false } = {}) {  // `heard`: by screen readers only, because it is to be seen elsewhere
  $("status").textContent = wrong ? "" : text;
  $("problem").textContent = wrong ? text : "";
  $("status").classList.toggle("heard", heard);
  if (wrong) $("result").hidden = true;  // it belongs to another image
}
const painted = () => new Promise(done => setTimeout(done, 30));  // so that what was said is seen before the work begins
const MOST = 10;  // bars

function points(values, { width, height, place: { corner, step } }) {  // from -1 to 1 across the image -> [x, y] in pixels of the photo
  const at = (v, axis, n) => corner[axis] + step[axis] * (v + 1) / 2 * n;
  return Array.from({ length: values.length / 2 }, (_, i) => [at(values[2 * i], 1, width), at(values[2 * i + 1], 0, height)]);
}

function shares(classes, { width, place: { corner, step, photo } }) {  // [share of the photo that is seen, class], the largest first
  const counts = spec.classes.map(() => 0);
  const inside = (n, axis) => { const at = corner[axis] + step[axis] * (n + 0.5); return at >= 0 && at <= photo[axis]; };
  classes.forEach((c, i) => { if (inside(Math.floor(i / width), 0) && inside(i % width, 1)) counts[c]++; });
  const all = counts.reduce((a, b) => a + b, 0);
  return counts.map((k, c) => [k / all, c]).filter(([share]) => share).sort((a, b) => b[0] - a[0]);
}

function drawnOver(values, image) {  // elements that lie over the photo; what they show is also said in words
  const { width, height, place: { corner, step, photo } } = image, share = (at, axis) => `${100 * at / photo[axis]}%`;
  if (spec.kind === "points") {
    return points(values, image).map(([x, y], i, all) => {
      const dot = make("span", "dot");
      Object.assign(dot.style, { left: share(x, 1), top: share(y, 0) });
      if (all.length > 1) dot.append(make("b", "", i + 1));
      dot.setAttribute("aria-hidden", "true");
      return dot;
    });
  }
  if (spec.kind !== "mask") return [];
  const canvas = Object.assign(make("canvas", "mask"), { width, height }), pixels = new ImageData(width, height);
  values.forEach((c, i) => pixels.data.set([...spec.colors[c], 255], 4 * i));
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  Object.assign(canvas.style, { left: share(corner[1], 1), top: share(corner[0], 0), width: share(step[1] * width, 1), height: share(step[0] * height, 0) });
  canvas.setAttribute("aria-hidden", "true");
  return [canvas];
}

function answer(values, image) {  // in words
  if (spec.kind === "points") return points(values, image).map(([x, y]) => `x ${Math.round(x)}, y ${Math.round(y)}`).join("; ");
  if (spec.kind === "mask") return shares(values, image).slice(0, 3).map(([share, c]) => `${spec.classes[c]} ${percent(share)}`).join(", ");
  const sure = values.map((p, i) => [p, spec.classes[i]]).sort((a, b) => b[0] - a[0]);
  if (spec.kind === "number") return values.map(v => Number(v.toPrecision(4))).join(", ");
  if (spec.kind === "one") return `${sure[0][1]}, ${percent(sure[0][0])}`;
  return sure.filter(([p]) => p > spec.above).map(([, name]) => name).join(", ") || "None of these";
}

function legend(values, image) {  // a row for each class of a mask
  return shares(values, image).map(([share, c]) => {
    const row = make("li", "row"), swatch = make("span", "swatch"), name = make("span", "name");
    swatch.style.background = `rgb(${spec.colors[c]})`;
    name.append(swatch, spec.classes[c]);
    row.append(name, make("span", "percent", percent(share)));
    return row;
  });
}

function bars(values, image) {
  if (spec.kind === "mask") return legend(values, image);
  if (!spec.classes.length) return [];
  const order = values.map((_, i) => i).sort((a, b) => values[b] - values[a]).slice(0, MOST);
  return order.map(i => {
    const row = make("li", "row"), track = make("span", "track"), bar = make("span", "bar");
    bar.style.width = percent(values[i]);
    track.append(bar);
    row.append(make("span", "name", spec.classes[i]), make("span", "percent", percent(values[i])), track);
    return row;
  });
}

function note(values, { place: { photo } }) {
  if (spec.kind === "points") return `Pixels of your image, which is ${photo[1]} wide and ${photo[0]} high, from its upper left corner.`;
  if (spec.kind === "mask") return "Shares of the pixels that the model saw.";
  return spec.classes.length > MOST ? `The ${MOST} most likely of ${values.length} classes.` : "";
}

function show(file, values, image) {
  URL.revokeObjectURL($("image").src);
  $("image").src = URL.createObjectURL(file);
  $("image").alt = `Your image${file.name ? `, ${file.name}` : ""}`;
  $("frame").replaceChildren($("image"), ...drawnOver(values, image));
  $("answer").textContent = answer(values, image);
  $("bars").replaceChildren(...bars(values, image));
  $("more").textContent = note(values, image);
  $("result").hidden = false;
  say(`Prediction: ${answer(values, image)}`, { heard: true });
}

let model = null;  // once it is loaded: image -> its predictions
let queue = loadModel().then(
  loaded => { model = loaded; say("Ready."); },
  error => say(`The model cannot be started here (${error.message}). Use a current version of Chrome, Edge, Firefox or Safari.`, { wrong: true }));

async function predict(file) {
  const name = file.name || "the image";
  if (!model) return;  // and why has been said
  say(`Looking at ${name} …`);
  await painted();
  try {
    let image;
    try {
      image = await prepared(file);
    } catch {
      return say(`This browser cannot read ${name} as an image. Save it as a JPEG or PNG and try that.`, { wrong: true });
    }
    show(file, await model(image), image);
  } catch (error) {
    say(`${name} cannot be predicted (${error.message}).`, { wrong: true });
  }
}

function take(files) {
  const [file, ...others] = files;
  if (!file) return say("That is not a file. Save the image first, then choose it.", { wrong: true });
  queue = queue.then(() => predict(file));
  if (others.length) queue = queue.then(() => { $("more").textContent += ` This is the first of ${others.length + 1} images.`; });
}

for (const [button, input] of [["choose", "file"], ["photograph", "camera"]]) {
  $(button).addEventListener("click", () => { $(input).value = ""; $(input).click(); });
  $(input).addEventListener("change", () => take($(input).files));
}
$("photograph").hidden = !navigator.maxTouchPoints;  // elsewhere the button would only choose a file, too
for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(name, event => {
    event.preventDefault();
    document.body.classList.toggle("over", name === "dragenter" || name === "dragover");
    if (name === "drop") take(event.dataTransfer.files);
  });
}
document.addEventListener("paste", event => take(event.clipboardData.files));
if (spec.classes.length) {
  $("classes").textContent = spec.classes.join(", ");
  $("count").textContent = `It knows ${spec.classes.length} classes`;
  $("known").open = spec.classes.length <= MOST;
  $("known").hidden = false;
}
