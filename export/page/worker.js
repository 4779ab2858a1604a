// Runs the network beside the page: loads it, proves it on the backend that will answer, answers.
// The page starts it from a blob, so that the page's Content-Security-Policy is its own too.

const BAND = 1 << 22; // pixels of a picture that are copied at once
const FRACTION = 22; // bits of a weight
let base, about, ort, session;

self.onmessage = async ({ data: { kind, picture, ...given } }) => {
  try {
    self.postMessage(kind === "start" ? await start(given) : await answer(picture));
  } catch (error) {
    self.postMessage({ kind: "failed", message: error.message ?? String(error) });
  }
};

async function start(given) {
  ({ base, about } = given);
  const runtime = about.runtime[given.backend === "wasm" ? "wasm" : "gpu"];
  const needed = [runtime.script, runtime.wasm, about.model, about.golden];
  const bytes = needed.reduce((total, file) => total + file.bytes, 0);
  progress(`Loading ${(bytes / 1e6).toFixed(1)} MB …`);
  const [script, wasm, model, golden] = await Promise.all(needed.map(fetched));
  await forgetOthers();
  const code = new Blob([script], { type: "text/javascript" });
  ort = await import(URL.createObjectURL(code));
  ort.env.logLevel = "error";
  ort.env.wasm.wasmBinary = wasm;
  if (!self.crossOriginIsolated) ort.env.wasm.numThreads = 1; // threads share memory
  session = await ort.InferenceSession.create(new Uint8Array(model), {
    executionProviders: [given.backend],
    freeDimensionOverrides: { batch: 1 }, // WebNN takes no other
    logSeverityLevel: 3,
  });
  return { kind: "proven", ...(await proof(golden)) };
}

// Returns a file's content. The browser compares it with the digest that the page names.
async function fetched({ url, integrity }) {
  const address = new URL(url, base);
  let response;
  try {
    response = await fetch(address, { integrity });
  } catch {
    const there = await fetch(address, { method: "HEAD" }).catch(() => null);
    if (!there?.ok) throw new Error(`${address} cannot be fetched. ${about.advice}`);
    throw new Error(`${url} is not the file that this page was made for: its digest differs.`);
  }
  if (!response.ok) throw new Error(`${address} cannot be fetched: ${response.status}.`);
  const cache = await kept();
  if (cache && !(await cache.match(address))) {
    await cache.put(address, response.clone()).catch(() => {}); // a full disk
  }
  return response.arrayBuffer();
}

// Returns what the browser keeps for when there is no network; null where it keeps nothing.
async function kept() {
  return self.caches ? caches.open(`vggkeras ${base}`).catch(() => null) : null;
}

// Removes files of an earlier version of this page from what is kept for when there is no network.
async function forgetOthers() {
  const { wasm, gpu } = about.runtime;
  const files = [about.model, about.golden, wasm.script, wasm.wasm, gpu.script, gpu.wasm];
  const wanted = new Set(files.map(({ url }) => new URL(url, base).href));
  const cache = await kept();
  for (const { url } of (await cache?.keys()) ?? []) {
    if (new URL(url).search && !wanted.has(url)) await cache.delete(url);
  }
}

// Compares the golden images' answers with those that travel in the file, and the golden
// photograph, decoded and rescaled here, with the first golden image.
async function proof(golden) {
  const { images, tolerance, photograph, levels } = about.golden;
  const [height, width, channels] = about.input;
  const [each, classes] = [height * width * channels, about.labels.length];
  const end = images * (each + 4 * classes);
  const answers = new Float32Array(golden.slice(images * each, end));
  let error = 0;
  for (let i = 0; i < images; i++) {
    progress(`Proving: golden image ${i + 1} of ${images} …`);
    const received = await probabilities(new Uint8Array(golden, i * each, each));
    for (let j = 0; j < classes; j++) {
      const difference = Math.abs(received[j] - answers[i * classes + j]);
      error = difference <= error ? error : Number.isNaN(difference) ? Infinity : difference;
    }
  }
  const relative = error / answers.reduce((a, b) => Math.max(a, b));
  if (!(error <= tolerance && relative <= tolerance)) {
    throw new Error(
      `the answers to the golden images are off by up to ${error.toPrecision(2)} ` +
        `(${relative.toPrecision(2)} relative), and ${tolerance} is the most.`,
    );
  }
  if (!photograph) return { error };
  const picture = await decoded(new Blob([golden.slice(end)], { type: photograph }));
  const [received, expected] = [centralCrop(picture), new Uint8Array(golden, 0, each)];
  const off = received.reduce((total, p, i) => total + Math.abs(p - expected[i]), 0) / each;
  if (!(off <= levels)) {
    throw new Error(
      "this browser decodes or rescales the golden photograph differently: its pixels are off " +
        `by ${off.toFixed(2)} of 255 levels on average, and ${levels} is the most.`,
    );
  }
  return { error, off };
}

async function answer(picture) {
  const start = performance.now();
  const bitmap = await decoded(picture).catch(() => null);
  if (!bitmap) return { kind: "unreadable" };
  const pixels = centralCrop(bitmap);
  const middle = performance.now();
  const answered = await probabilities(pixels);
  const end = performance.now();
  return { kind: "answer", probabilities: answered, total: end - start, network: end - middle };
}

async function probabilities(pixels) {
  const images = new ort.Tensor("uint8", pixels, [1, ...about.input]);
  const { probabilities: output } = await session.run({ images });
  return new Float32Array(output.data);
}

// Decodes a picture, upright by its EXIF orientation; its numbers stay as they are stored.
function decoded(picture) {
  return createImageBitmap(picture, {
    imageOrientation: "from-image",
    colorSpaceConversion: "none",
    premultiplyAlpha: "none",
  });
}

// Rescales a picture to the network's smallest side as Pillow's BILINEAR does, and returns the
// centre: bytes, row by row. A large picture is copied in bands.
function centralCrop(bitmap) {
  const [height, width, channels] = about.input;
  const shortest = Math.min(bitmap.width, bitmap.height);
  const [w, h] = [bitmap.width, bitmap.height].map((side) =>
    Math.max(about.scale, halfToEven((side * about.scale) / shortest)),
  );
  const columns = triangles(bitmap.width, w, (w - width) >> 1, width);
  const rows = triangles(bitmap.height, h, (h - height) >> 1, height);
  const narrow = new Uint8Array(bitmap.height * width * 3); // rescaled in width
  const band = Math.min(bitmap.height, Math.ceil(BAND / bitmap.width));
  const canvas = new OffscreenCanvas(bitmap.width, band);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white"; // under what is transparent
  let to = 0;
  for (let top = 0; top < bitmap.height; top += band) {
    context.fillRect(0, 0, bitmap.width, band);
    context.drawImage(bitmap, 0, -top);
    const count = Math.min(band, bitmap.height - top);
    const { data } = context.getImageData(0, 0, bitmap.width, count);
    for (let start = 0; start < data.length; start += 4 * bitmap.width) {
      for (const { first, weights } of columns) {
        const at = start + 4 * first;
        for (let c = 0; c < 3; c++) narrow[to++] = weighted(data, at + c, 4, weights);
      }
    }
  }
  bitmap.close();
  const row = 3 * width;
  const pixels = new Uint8Array(height * row);
  for (const [i, { first, weights }] of rows.entries()) {
    for (let j = 0; j < row; j++) {
      pixels[i * row + j] = weighted(narrow, first * row + j, row, weights);
    }
  }
  return channels === 3 ? pixels : luma(pixels);
}

// Which of `length` pixels those from `from` on of `size` are made of, and by what weights: a
// triangle as wide as the reduction, in Pillow's fixed point.
function triangles(length, size, from, count) {
  const ratio = length / size, support = Math.max(1, ratio);
  return Array.from({ length: count }, (_, i) => {
    const middle = (from + i + 0.5) * ratio;
    const first = Math.max(0, Math.floor(middle - support + 0.5));
    const last = Math.min(length, Math.floor(middle + support + 0.5));
    const weights = Array.from({ length: last - first }, (_, k) =>
      Math.max(0, 1 - Math.abs((first + k - middle + 0.5) * (1 / support))),
    );
    const one = 1 / weights.reduce((a, b) => a + b);
    return { first, weights: Int32Array.from(weights, (w) => 0.5 + w * one * (1 << FRACTION)) };
  });
}

function weighted(values, start, step, weights) {
  let total = 1 << (FRACTION - 1);
  for (let k = 0; k < weights.length; k++) total += weights[k] * values[start + k * step];
  return Math.min(255, total >> FRACTION);
}

// ITU-R 601, as Pillow's "L".
function luma(pixels) {
  return Uint8Array.from({ length: pixels.length / 3 }, (_, i) => {
    const [r, g, b] = pixels.subarray(3 * i, 3 * i + 3);
    return (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16;
  });
}

// As Python rounds.
function halfToEven(value) {
  const nearest = Math.round(value);
  return value % 1 === 0.5 && nearest % 2 ? nearest - 1 : nearest;
}

function progress(text) {
  self.postMessage({ kind: "progress", text });
}
