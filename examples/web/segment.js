// Needs in this folder: "dist" of the npm package onnxruntime-web, renamed to onnxruntime-web, and the
// files of `mobile-sam export --with-preprocessing`; see docs/how-to/browser.md.
import * as ort from "./onnxruntime-web/ort.wasm.min.mjs";

const LONG_SIDE = 1024; // side of the model's input in pixels
const LOW_RES = 256;
const COLOR = [42, 120, 214, 150]; // of the mask, RGBA

const [file, clear, status, photograph, overlay] = ["file", "clear", "status", "photograph", "mask"]
  .map((id) => document.getElementById(id));

let encoder, decoder;
let embeddings = null; // of the displayed photograph
let clicks = []; // [x, y, label], in pixels of the photograph
let busy = false;

async function start() {
  [encoder, decoder] = await Promise.all(
    ["mobile_sam_encoder.onnx", "mobile_sam_decoder.onnx"].map((name) =>
      ort.InferenceSession.create(name)));
  file.disabled = false;
  say("Choose a photograph.");
}

async function open(image) {
  const bitmap = await createImageBitmap(image, { colorSpaceConversion: "none" });
  // Clicks do nothing until the photograph is encoded.
  embeddings = null;
  clicks = [];
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
  const tensor = new ort.Tensor("uint8", picture, [bitmap.height, bitmap.width, 3]);
  ({ image_embeddings: embeddings } = await encoder.run({ [encoder.inputNames[0]]: tensor }));
  say("Click on an object.");
}

async function segment() {
  const { width, height } = photograph;
  const scale = LONG_SIDE / Math.max(width, height);
  const resized = [Math.floor(width * scale + 0.5), Math.floor(height * scale + 0.5)];
  const points = clicks.flatMap(([x, y]) => [x * resized[0] / width, y * resized[1] / height]);
  const started = performance.now();
  const { masks, iou_predictions: scores } = await decoder.run({
    image_embeddings: embeddings,
    // A prompt without a box is padded with a point of label -1.
    point_coords: new ort.Tensor("float32", [...points, 0, 0], [1, clicks.length + 1, 2]),
    point_labels: new ort.Tensor(
      "float32", [...clicks.map(([, , label]) => label), -1], [1, clicks.length + 1]),
    mask_input: new ort.Tensor(
      "float32", new Float32Array(LOW_RES * LOW_RES), [1, 1, LOW_RES, LOW_RES]),
    has_mask_input: new ort.Tensor("float32", [0], [1]),
    orig_im_size: new ort.Tensor("float32", [height, width], [2]),
  });
  // The first mask is for unambiguous prompts; a single click takes the best of the other three.
  const candidates = clicks.length === 1 ? [1, 2, 3] : [0];
  const best = candidates.reduce((a, b) => (scores.data[b] > scores.data[a] ? b : a));
  draw(masks.data.subarray(best * width * height, (best + 1) * width * height));
  const time = Math.round(performance.now() - started);
  say(`Predicted IoU ${scores.data[best].toFixed(3)}, in ${time} ms.`);
}

function draw(logits) {
  const context = overlay.getContext("2d", { willReadFrequently: true });
  const pixels = context.createImageData(overlay.width, overlay.height);
  logits.forEach((logit, i) => {
    if (logit > 0) pixels.data.set(COLOR, 4 * i);
  });
  context.putImageData(pixels, 0, 0);
}

function say(text) {
  status.textContent = text;
}

// A session of onnxruntime-web handles one request at a time.
async function attempt(work) {
  if (busy) return;
  busy = file.disabled = clear.disabled = true;
  try {
    await work();
  } catch (error) {
    say(`Failed: ${error.message}`);
  }
  busy = false;
  file.disabled = !decoder;
  clear.disabled = !embeddings;
}

file.addEventListener("change", () => {
  if (file.files.length) attempt(() => open(file.files[0]));
});
clear.addEventListener("click", () => {
  clicks = [];
  overlay.getContext("2d").clearRect(0, 0, overlay.width, overlay.height);
});
overlay.addEventListener("click", (event) => attempt(async () => {
  if (!embeddings) return;
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
attempt(start);
