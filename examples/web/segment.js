// The page: what is clicked and drawn. The model is in worker.js.

const COLOR = [42, 120, 214, 150]; // of a click's mask, RGBA

const [file, clear, engine, precision, find, points, minScore, minStability, progress, status, runtime,
  times, photograph, overlay] = ["file", "clear", "engine", "precision", "find", "points", "score",
  "stability", "progress", "status", "runtime", "times", "photograph", "mask"]
  .map((id) => document.getElementById(id));

const worker = new Worker("worker.js", { type: "module" });
let settle = null; // [resolve, reject] of the request that the worker is at
let busy = false;
let encoded = false; // whether the displayed photograph is
let clicks = []; // [x, y, label], in pixels of the photograph
let encodingTime = 0; // ms; 0 after the first mask

worker.onmessage = ({ data }) => {
  if (data.kind === "progress") {
    progress.max = data.total;
    progress.value = data.done;
    say(`Looking for masks: ${data.done} of ${data.total} points.`);
  } else if (data.kind === "done") {
    settle[0](data.result);
  } else {
    settle[1](new Error(data.message));
  }
};
worker.onerror = (event) => settle?.[1](new Error(event.message || "the worker did not start"));

/** Lets the worker do something; returns its result and the milliseconds that it took. */
async function ask(request, given = {}, transfer = []) {
  const started = performance.now();
  const result = await new Promise((resolve, reject) => {
    settle = [resolve, reject];
    worker.postMessage({ request, ...given }, transfer);
  });
  return [result, Math.round(performance.now() - started)];
}

async function load() {
  say("Loading the model ...");
  [encoded, clicks] = [false, []];
  const [used, time] = await ask("load", { folder: precision.value, wanted: engine.value });
  const threads = used.threads ? `, ${used.threads} thread${used.threads > 1 ? "s" : ""}` : "";
  const reason = used.reason ? ` because ${used.reason}` : "";
  runtime.textContent = `Runs on ${used.engine}${threads}${reason}; loaded in ${time} ms.`;
  if (file.files.length) await open(file.files[0]);
  else say("Choose a photograph.");
}

async function open(image) {
  const bitmap = await createImageBitmap(image, { colorSpaceConversion: "none" });
  // Clicks do nothing until the photograph is encoded.
  [encoded, clicks] = [false, []];
  for (const canvas of [photograph, overlay]) {
    [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
  }
  const context = photograph.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, bitmap.width, bitmap.height); // behind transparent pixels
  context.drawImage(bitmap, 0, 0);
  const { data } = context.getImageData(0, 0, bitmap.width, bitmap.height);
  const picture = new Uint8Array(bitmap.width * bitmap.height * 3);
  for (let i = 0, j = 0; i < data.length; i += 4) {
    for (let channel = 0; channel < 3; channel++) picture[j++] = data[i + channel];
  }
  say("Encoding the photograph ...");
  const size = [bitmap.height, bitmap.width];
  [, encodingTime] = await ask("encode", { picture, size }, [picture.buffer]);
  encoded = true;
  times.textContent = `Encoded in ${encodingTime} ms.`;
  say("Click on an object.");
}

async function segment() {
  const [{ mask, score }, time] = await ask("click", { clicks });
  const pixels = new ImageData(overlay.width, overlay.height);
  mask.forEach((inside, i) => {
    if (inside) pixels.data.set(COLOR, 4 * i);
  });
  overlay.getContext("2d", { willReadFrequently: true }).putImageData(pixels, 0, 0);
  times.textContent = encodingTime
    ? `First mask in ${encodingTime + time} ms: ${encodingTime} to encode, ${time} to decode.`
    : `Next mask in ${time} ms.`;
  encodingTime = 0;
  say(`Predicted IoU ${score.toFixed(3)}.`);
}

async function findEverything() {
  clicks = [];
  progress.hidden = false;
  try {
    const [{ masks, size }, time] = await ask("everything", {
      pointsPerSide: points.valueAsNumber,
      minScore: minScore.valueAsNumber,
      minStability: minStability.valueAsNumber,
    });
    paint(masks, ...size);
    times.textContent = `Everything in ${time} ms.`;
    say(masks.length ? `Found ${masks.length} masks.`
      : "No mask passed: lower the predicted IoU or the stability.");
  } finally {
    progress.hidden = true;
  }
}

/** Draws masks in colours, small ones over large ones. */
function paint(masks, height, width) {
  const pixels = new ImageData(width, height);
  for (const [i, { box: [left, top, right], bits }] of
    masks.toSorted((a, b) => b.area - a.area).entries()) {
    const columns = right - left + 1;
    const color = [0, 2, 4].map((shift) => 128 + 110 * Math.sin(2.4 * i + shift));
    bits.forEach((inside, at) => {
      const x = left + at % columns;
      const y = top + Math.floor(at / columns);
      if (inside) pixels.data.set([...color, 150], 4 * (y * width + x));
    });
  }
  const canvas = new OffscreenCanvas(width, height);
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  const context = overlay.getContext("2d", { willReadFrequently: true });
  context.clearRect(0, 0, overlay.width, overlay.height);
  context.drawImage(canvas, 0, 0, overlay.width, overlay.height);
}

function say(text) {
  status.textContent = text;
}

async function attempt(work) {
  if (busy) return;
  const controls = [file, clear, engine, precision, find];
  busy = true;
  for (const control of controls) control.disabled = true;
  try {
    await work();
  } catch (error) {
    say(`Failed: ${error.message}`);
  }
  busy = false;
  for (const control of controls) control.disabled = false;
  clear.disabled = find.disabled = !encoded;
}

file.addEventListener("change", () => {
  if (file.files.length) attempt(() => open(file.files[0]));
});
for (const choice of [engine, precision]) choice.addEventListener("change", () => attempt(load));
find.addEventListener("click", () => attempt(findEverything));
clear.addEventListener("click", () => {
  clicks = [];
  overlay.getContext("2d").clearRect(0, 0, overlay.width, overlay.height);
});
overlay.addEventListener("click", (event) => attempt(async () => {
  if (!encoded) return;
  const shown = overlay.getBoundingClientRect();
  clicks.push([
    (event.clientX - shown.left) * overlay.width / shown.width,
    (event.clientY - shown.top) * overlay.height / shown.height,
    event.shiftKey ? 0 : 1,
  ]);
  try {
    await segment();
  } catch (error) {
    clicks.pop(); // the displayed mask is without it
    throw error;
  }
}));
attempt(load);
