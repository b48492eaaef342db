// The service worker: a small server inside the browser. It stands between the page and the network, so that the page
// works without one once it has been visited.
//
// fish.js registers it as sw.js?VERSION, with the version of the build, so that each build gets a worker of its own and
// a cache of its own. This worker fills the cache with the page itself; the model and the runtime are put there by
// fish.js, which shows the progress and deletes the caches of older builds once everything is there.

const OWN = ["./", "style.css", "app.js", "fish.js", "site.json"].map((file) => new URL(file, registration.scope).href);
const CACHE = `guppy ${registration.scope} ${location.search.slice(1)}`;

addEventListener("install", (event) => {
  const keep = async () => (await caches.open(CACHE)).addAll(OWN.map((url) => new Request(url, { cache: "no-cache" })));
  event.waitUntil(keep());
  skipWaiting();
});

// Serve the page that is open already, too: what it imports next has to come from the cache.
addEventListener("activate", (event) => event.waitUntil(clients.claim()));

addEventListener("fetch", (event) => {
  const { request } = event;
  if (request.method !== "GET") return;
  const own = request.mode === "navigate" || OWN.includes(request.url);
  event.respondWith(own ? newest(request) : kept(request));
});

/** The page's own files are small: ask for the newest, so that a new build is seen, and keep the old for no network. */
async function newest(request) {
  try {
    return await fetch(request, { cache: "no-cache" });
  } catch {
    // caches.match asks the oldest cache first. Where there are two, that one is complete: the newer is being filled.
    return (await caches.match(request.mode === "navigate" ? OWN[0] : request)) ?? Response.error();
  }
}

/** The big files have their hash in their address, so a kept one is never out of date, and isn't asked for again. */
async function kept(request) {
  return (await caches.match(request)) ?? fetch(request);
}
