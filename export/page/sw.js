// Keeps the page for when there is no network. Small files come from the network where there is
// one; those with a digest in their address (?...), and those of a CDN, never change.

const SHELL = ["./", "page.css", "page.js", "worker.js", "about.json"];
const CACHE = `vggkeras ${self.registration.scope}`;

self.addEventListener("install", (event) => event.waitUntil(keepShell()));
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));
self.addEventListener("fetch", (event) => {
  if (event.request.method === "GET") event.respondWith(found(event.request));
});

async function keepShell() {
  const cache = await caches.open(CACHE);
  await cache.addAll(SHELL.map((url) => new Request(url, { cache: "reload" })));
  await self.skipWaiting();
}

async function found(request) {
  const cache = await caches.open(CACHE);
  const { origin, pathname, search } = new URL(request.url);
  const isPage = request.mode === "navigate" && /\/(index\.html)?$/.test(pathname);
  const key = isPage ? "./" : request;
  const kept = await cache.match(key);
  if (kept && !isPage && (search || origin !== location.origin)) return kept;
  try {
    const response = await fetch(request);
    if (response.ok && kept) await cache.put(key, response.clone());
    return response;
  } catch (error) {
    if (kept) return kept;
    throw error;
  }
}
