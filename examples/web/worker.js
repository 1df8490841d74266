// The model, in a worker, so that the page never waits for it. It does one request at a time.
// Needs in this folder: "dist" of the npm package onnxruntime-web, renamed to onnxruntime-web, and the
// files of `mobile-sam export --with-preprocessing`; see docs/how-to/browser.md.

const LONG_SIDE = 1024; // of the model's input, and of the masks of everything, in pixels
const LOW_RES = 256;
const PROMPTS_AT_ONCE = 4;
const NMS_THRESH = 0.7; // box IoU above which two masks are duplicates
const STABILITY_OFFSET = 1; // in logits

let ort, encoder, decoder;
let embeddings = null; // of the photograph
let width, height; // of the photograph in pixels

/** Loads the two files of a folder; returns what they run on, and why not on what was wanted. */
async function load({ folder, wanted }) {
  encoder = decoder = embeddings = null;
  const files = await read(["encoder", "decoder"].map((half) => `${folder}mobile_sam_${half}.onnx`));
  let reason = wanted === "webgpu" ? await lacksWebGpu(folder) : "";
  if (wanted === "webgpu" && !reason) {
    try {
      await start("webgpu", files);
      return { engine: "WebGPU", reason };
    } catch (error) {
      reason = error.message;
    }
  }
  await start("wasm", files);
  return { engine: "WebAssembly", threads: ort.env.wasm.numThreads, reason };
}

async function read(paths) {
  const answers = await Promise.all(paths.map((path) => fetch(path)));
  const missing = paths.filter((_, i) => !answers[i].ok);
  if (missing.length) throw new Error(`there is no ${missing.join(", no ")}: see mobile-sam export`);
  return Promise.all(answers.map(async (answer) => new Uint8Array(await answer.arrayBuffer())));
}

async function lacksWebGpu(folder) {
  if (!navigator.gpu) return "this browser has no WebGPU";
  const adapter = await navigator.gpu.requestAdapter();
  if (!adapter) return "WebGPU finds no graphics card";
  if (folder === "fp16/" && !adapter.features.has("shader-f16")) {
    return "the graphics card has no half precision";
  }
  return "";
}

async function start(provider, files) {
  ort = await import(`./onnxruntime-web/ort.${provider}.min.mjs`);
  const options = { executionProviders: [provider] };
  encoder = await ort.InferenceSession.create(files[0], options);
  decoder = await ort.InferenceSession.create(files[1], options);
}

/** Encodes a photograph, RGB bytes. */
async function encode({ picture, size }) {
  embeddings = null;
  [height, width] = size;
  const tensor = new ort.Tensor("uint8", picture, [height, width, 3]);
  ({ image_embeddings: embeddings } = await encoder.run({ [encoder.inputNames[0]]: tensor }));
}

/** Decodes clicks, [x, y, label] in pixels of the photograph, on one object. */
async function click({ clicks }) {
  // A prompt without a box is padded with a point of label -1.
  const { masks, iou_predictions: scores } = await decode(
    clicks.flatMap(toInput).concat(0, 0), clicks.map(([, , label]) => label).concat(-1), 1,
    [height, width]);
  // The first mask is for unambiguous prompts; a single click takes the best of the other three.
  const candidates = clicks.length === 1 ? [1, 2, 3] : [0];
  const best = candidates.reduce((a, b) => (scores.data[b] > scores.data[a] ? b : a));
  const logits = masks.data.subarray(best * width * height, (best + 1) * width * height);
  return { mask: Uint8Array.from(logits, (logit) => logit > 0), score: scores.data[best] };
}

/** Returns a point in the frame of the model's input. SAM rounds the size of the resized image. */
function toInput([x, y]) {
  const scale = LONG_SIDE / Math.max(width, height);
  return [
    x * Math.floor(width * scale + 0.5) / width,
    y * Math.floor(height * scale + 0.5) / height,
  ];
}

function decode(points, labels, prompts, maskSize) {
  const perPrompt = labels.length / prompts;
  const floats = (values, shape) => new ort.Tensor("float32", Float32Array.from(values), shape);
  return decoder.run({
    image_embeddings: embeddings,
    point_coords: floats(points, [prompts, perPrompt, 2]),
    point_labels: floats(labels, [prompts, perPrompt]),
    mask_input: floats(new Float32Array(LOW_RES * LOW_RES), [1, 1, LOW_RES, LOW_RES]),
    has_mask_input: floats([0], [1]),
    orig_im_size: floats(maskSize, [2]),
  });
}

/**
 * Finds everything, as SamAutomaticMaskGenerator does on the whole image: a grid of clicks, three
 * masks each, thresholds, and no duplicates. Masks of large photographs are smaller than these.
 */
async function everything({ pointsPerSide, minScore, minStability }) {
  const scale = Math.min(1, LONG_SIDE / Math.max(width, height));
  const size = [height, width].map((side) => Math.max(1, Math.round(side * scale)));
  const steps = Array.from({ length: pointsPerSide }, (_, i) => (i + 0.5) / pointsPerSide);
  const grid = steps.flatMap((y) => steps.map((x) => [x * width, y * height]));
  const found = [];
  for (let done = 0; done < grid.length;) {
    const points = grid.slice(done, done + PROMPTS_AT_ONCE);
    const { masks, iou_predictions: scores } = await decode(
      points.flatMap((point) => [...toInput(point), 0, 0]), points.flatMap(() => [1, -1]),
      points.length, size);
    const area = size[0] * size[1];
    scores.data.forEach((score, i) => {
      if (i % 4 === 0 || score <= minScore) return; // the first of four is for unambiguous prompts
      const logits = masks.data.subarray(i * area, (i + 1) * area);
      const mask = extract(logits, size[1], minStability);
      if (mask) found.push({ score, ...mask });
    });
    done += points.length;
    self.postMessage({ kind: "progress", done, total: grid.length });
  }
  return { masks: withoutDuplicates(found), size };
}

/** Returns the area and bits of a mask in its box, or null if it is empty or unstable. */
function extract(logits, columns, minStability) {
  let [left, top, right, bottom] = [Infinity, Infinity, -1, -1];
  let [area, inner, outer] = [0, 0, 0];
  for (let i = 0; i < logits.length; i++) {
    const logit = logits[i];
    if (logit <= -STABILITY_OFFSET) continue;
    outer++;
    if (logit > STABILITY_OFFSET) inner++;
    if (logit <= 0) continue;
    area++;
    const [x, y] = [i % columns, Math.floor(i / columns)];
    left = Math.min(left, x);
    right = Math.max(right, x);
    top = Math.min(top, y);
    bottom = Math.max(bottom, y);
  }
  if (area === 0 || inner / outer < minStability) return null;
  const [boxWidth, boxHeight] = [right - left + 1, bottom - top + 1];
  const bits = new Uint8Array(boxWidth * boxHeight);
  for (let i = 0; i < bits.length; i++) {
    bits[i] = logits[(top + Math.floor(i / boxWidth)) * columns + left + i % boxWidth] > 0;
  }
  return { box: [left, top, right, bottom], area, bits };
}

/** Keeps, of masks with similar boxes, the one with the highest score. */
function withoutDuplicates(found) {
  const kept = [];
  for (const mask of found.sort((a, b) => b.score - a.score)) {
    if (kept.every((other) => overlap(mask.box, other.box) <= NMS_THRESH)) kept.push(mask);
  }
  return kept;
}

function overlap(a, b) {
  const side = (from, to) => Math.max(0, to - from);
  const areaOf = ([x0, y0, x1, y1]) => (x1 - x0) * (y1 - y0);
  const common = side(Math.max(a[0], b[0]), Math.min(a[2], b[2])) *
    side(Math.max(a[1], b[1]), Math.min(a[3], b[3]));
  return common / (areaOf(a) + areaOf(b) - common);
}

const requests = { load, encode, click, everything };
self.onmessage = async ({ data: { request, ...given } }) => {
  try {
    self.postMessage({ kind: "done", result: await requests[request](given) });
  } catch (error) {
    self.postMessage({ kind: "failed", message: error.message });
  }
};
