// The page: takes a picture, asks the worker, shows its answer. Nothing is sent anywhere.

const MOST_PIXELS = 64e6; // of a picture: decoded, it takes four bytes a pixel
const HEIC = /^.{4}ftyp(hei|hev|mif1|msf1)/s; // how such files begin
const NAMES = { wasm: "WebAssembly", webgpu: "WebGPU", webnn: "WebNN" };
const READY = "Ready for a picture.";

const [status, proof, problem, backend, results, answers, preview] = [
  "status", "proof", "problem", "backend", "results", "answers", "preview",
].map((id) => document.getElementById(id));
for (const element of document.querySelectorAll(".camera, .desk")) {
  element.hidden = element.classList.contains("desk") === navigator.maxTouchPoints > 0;
}
const inputs = [...document.querySelectorAll("input[type=file]")];
let about, code, worker, shown, address;

backend.addEventListener("change", () => begin(backend.value));
for (const input of inputs) {
  input.addEventListener("change", () => {
    show(input.files[0]);
    input.value = ""; // the same picture may be chosen again
  });
}
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  show(event.dataTransfer.files[0]);
});
addEventListener("paste", (event) => show(event.clipboardData.files[0]));

try {
  about = await (await fetch("about.json")).json();
  code = URL.createObjectURL(await (await fetch("worker.js")).blob());
  for (const [name, there] of [["webgpu", navigator.gpu], ["webnn", navigator.ml]]) {
    if (there) backend.add(new Option(NAMES[name], name));
  }
  navigator.serviceWorker?.register("sw.js").catch(() => {}); // then a network is needed
  begin(await usual(), true);
} catch (error) {
  refuse(`the page cannot be loaded (${error.message}): serve the whole folder.`);
}

// Returns WebGPU where there is a graphics card; but int8 is fastest in WebAssembly's integers.
async function usual() {
  const adapter = about.precision === "int8" ? null : await navigator.gpu?.requestAdapter();
  return adapter && !adapter.info.isFallbackAdapter ? "webgpu" : "wasm";
}

// Starts a worker. Where the page chose WebGPU by itself and it fails, WebAssembly is tried.
function begin(name, chosen = false, note = "") {
  worker?.terminate();
  backend.value = name;
  proof.hidden = problem.hidden = results.hidden = true;
  enable(false);
  worker = new Worker(code, { type: "module" });
  worker.onerror = ({ message }) => refuse(message || "the worker cannot be started.");
  worker.onmessage = ({ data: { kind, message, text, ...rest } }) => {
    if (kind === "progress") status.textContent = text;
    else if (kind === "proven") proven(rest, note);
    else if (kind === "answer") answered(rest);
    else if (kind === "unreadable") say(unreadable());
    else if (chosen && name !== "wasm") begin("wasm", true, ` Not on ${NAMES[name]}: ${message}`);
    else refuse(message);
  };
  const base = new URL(".", location).href;
  worker.postMessage({ kind: "start", about, backend: name, base });
}

function proven({ error, off }, note) {
  const { images, tolerance } = about.golden;
  const whose = about.precision === "int8" ? "its own where it was made" : "those of Keras";
  const photograph =
    off === undefined ? "" : ` The golden photograph is off by ${off.toFixed(2)} of 255 levels.`;
  proof.textContent =
    `Proven, largest error ${error.toExponential(1)} (${tolerance} at most): the answers to ` +
    `${images} golden images, on ${NAMES[backend.value]} just now, against ${whose}.` +
    `${photograph}${note}`;
  proof.hidden = false;
  status.textContent = READY;
  enable(true);
}

function refuse(message) {
  enable(false);
  status.textContent = "Not proven: no answers are given.";
  say(`${NAMES[backend.value]}: ${message}`);
}

function enable(is) {
  document.body.classList.toggle("ready", is);
  for (const input of inputs) input.disabled = !is;
}

function say(message) {
  problem.textContent = message;
  problem.hidden = false;
  if (!inputs[0].disabled) status.textContent = READY;
}

async function show(file) {
  if (!file || inputs[0].disabled) return;
  problem.hidden = results.hidden = true;
  shown = { name: file.name, start: await file.slice(0, 12).text().catch(() => "") };
  URL.revokeObjectURL(address);
  address = URL.createObjectURL(file);
  const image = new Image(); // says how large a picture is before it is decoded
  const loads = new Promise((yes, no) => ([image.onload, image.onerror] = [yes, no]));
  image.src = address;
  if (!(await loads.then(() => true, () => false))) return say(unreadable());
  const [w, h] = [image.naturalWidth, image.naturalHeight];
  if (w * h > MOST_PIXELS) {
    return say(
      `${file.name} has ${((w * h) / 1e6).toFixed(0)} megapixels (${w} × ${h}), and ` +
        `${MOST_PIXELS / 1e6} are the most: make it smaller.`,
    );
  }
  preview.src = address;
  preview.alt = `Your picture, ${file.name}`;
  status.textContent = `Looking at ${file.name} …`;
  worker.postMessage({ kind: "answer", picture: file });
}

function unreadable() {
  return HEIC.test(shown.start)
    ? `${shown.name} is a HEIC picture, which this browser does not decode: save it as JPEG.`
    : `${shown.name} cannot be read as a picture: give a JPEG, PNG or WebP file.`;
}

function answered({ probabilities, total, network }) {
  const best = [...probabilities.keys()].sort((i, j) => probabilities[j] - probabilities[i]);
  const rows = best.slice(0, 5).map((i) => row(about.labels[i], probabilities[i]));
  answers.replaceChildren(...rows);
  results.hidden = false;
  const [whole, alone] = [total, network].map((ms) => `${ms.toFixed(0)}\u00a0ms`);
  status.textContent =
    `${about.labels[best[0]]}, ${percent(probabilities[best[0]])}, in ${whole} on ` +
    `${NAMES[backend.value]} (the network alone: ${alone}).`;
}

function row(label, probability) {
  const [item, name, number, track, bar] = ["li", "span", "span", "span", "span"].map((tag) =>
    document.createElement(tag),
  );
  [name.className, number.className, track.className] = ["label", "number", "track"];
  [name.textContent, number.textContent] = [label, percent(probability)];
  bar.style.width = percent(probability);
  track.append(bar);
  item.append(name, number, track);
  return item;
}

function percent(p) {
  return `${(100 * p).toFixed(2)}%`;
}
