"""The browser page as a folder of plain files, for any host, and a server to look at it on this machine.

The page in `web/` is finished as it is. Building adds the model (8-bit ONNX), its tokenizer with the words, who the
persona is, and the two libraries that run them: onnxruntime-web (WebAssembly) and @huggingface/tokenizers, in the
versions of `package.json`.
"""

import base64
import functools
import hashlib
import http.server
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from guppylm.chat import REPLY_ROOM
from guppylm.checkpoint import write_text, write_tokenizer, write_whole
from guppylm.model import GuppyLM
from guppylm.onnx_export import save_onnx
from guppylm.tokenizer import Tokenizer

WEB = Path(__file__).parent / "web"
CDN = "https://cdn.jsdelivr.net"


def build(model: GuppyLM, tok: Tokenizer, record: dict, out: Path) -> str:
    """Write the site of a model, which must be on the CPU. Returns a line that says where its libraries come from."""
    out.mkdir(parents=True, exist_ok=True)
    code = sorted(file for file in WEB.iterdir() if file.suffix in (".css", ".js"))
    for file in code:
        shutil.copyfile(file, out / file.name)
    save_onnx(model, out / "model.onnx")
    write_tokenizer(out, tok)
    libraries, origin = find_libraries(out)
    own = {name: entry((out / name).read_bytes(), name) for name in ("model.onnx", "tokenizer.json", "words.txt")}
    load = [*own.values(), *libraries.values()]
    persona = {"name": "guppy", "summary": "", "greeting": "", "color": "#e0662f", "suggestions": []}
    site = {
        **persona,
        **record.get("persona", {}),
        "context_length": model.config.context_length,
        "reply_room": REPLY_ROOM,
        "model": own["model.onnx"]["url"],
        "tokenizer": own["tokenizer.json"]["url"],
        "words": own["words.txt"]["url"],
        "wasm": libraries["wasm"]["url"],
        "load": load,
        "bytes": sum(file["bytes"] for file in load),
    }
    page = page_with(libraries)
    contents = [file.read_bytes() for file in code]
    everything = b"".join([*contents, page.encode(), json.dumps(site).encode()])  # site has the hashes of all others
    site["version"] = hashlib.sha256(everything).hexdigest()[:16]  # tells the page that it has changed
    write_text(out / "index.html", page)
    write_text(out / "site.json", json.dumps(site, indent=2) + "\n")
    return origin


def entry(content: bytes, name: str) -> dict:
    """A file that the page loads. Its address holds its hash, so no cache answers with an older file of that name."""
    url = f"{name}?{hashlib.sha256(content).hexdigest()[:16]}"
    return {"url": url, "bytes": len(content), "integrity": integrity(content)}


def find_libraries(out: Path) -> tuple[dict[str, dict], str]:
    """The three files of the two libraries by the name the page gives them, and a line that says where they are.

    With npm they are put into `out`/vendor. Without, the page will take the same files from a CDN. Either way their
    bytes must be those whose hashes stand in package.json.
    """
    package = json.loads((WEB / "package.json").read_text(encoding="utf-8"))
    known = package["guppylm"]
    npm = shutil.which("npm")
    cdn = {name: from_cdn(package, file) for name, file in known.items()}
    if npm is None:
        return cdn, f"npm is not installed: the page will take its libraries from {CDN}"
    with tempfile.TemporaryDirectory() as folder:
        shutil.copyfile(WEB / "package.json", Path(folder) / "package.json")
        options = "--ignore-scripts --no-audit --no-fund --no-package-lock --prefer-offline".split()
        command = [npm, "install", *options]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, encoding="utf-8", errors="replace")
        if done.returncode:
            why = (done.stderr.strip().splitlines() or ["no reason given"])[0]  # the last names npm's own log
            return cdn, f"npm could not install them ({why}): the page will take its libraries from {CDN}"
        found = {}
        for name, file in known.items():
            content = (Path(folder) / "node_modules" / file["package"] / file["path"]).read_bytes()
            if integrity(content) != file["integrity"]:
                raise ValueError(f"{file['package']}: {file['path']} is not the file whose hash package.json holds")
            place = f"vendor/{Path(file['path']).name}"
            write_whole(out / place, content)
            found[name] = entry(content, place)
    return found, "the page carries its libraries itself and needs no other host"


def from_cdn(package: dict, file: dict) -> dict:
    url = f"{CDN}/npm/{file['package']}@{package['dependencies'][file['package']]}/{file['path']}"
    return {"url": url, "bytes": file["bytes"], "integrity": file["integrity"]}


def integrity(content: bytes) -> str:
    """A hash as browsers check it."""
    return "sha384-" + base64.b64encode(hashlib.sha384(content).digest()).decode()


def page_with(libraries: dict[str, dict]) -> str:
    """index.html with an import map that leads to the libraries, and a policy that allows no scripts but its own."""

    def url(file: dict) -> str:
        return file["url"] if "://" in file["url"] else f"./{file['url']}"

    modules = {name: file for name, file in libraries.items() if name != "wasm"}
    importmap = json.dumps(
        {
            "imports": {name: url(file) for name, file in modules.items()},
            "integrity": {url(file): file["integrity"] for file in modules.values()},
        }
    )
    digest = base64.b64encode(hashlib.sha256(importmap.encode()).digest()).decode()
    elsewhere = [file["url"] for file in libraries.values() if "://" in file["url"]]
    scripts = " ".join(["'self'", "'wasm-unsafe-eval'", f"'sha256-{digest}'", *elsewhere])
    fetched = " ".join(["'self'", *elsewhere])
    policy = (
        f"default-src 'none'; script-src {scripts}; style-src 'self'; img-src 'self' data:; "
        f"connect-src {fetched}; worker-src 'self'; base-uri 'none'; form-action 'none'"
    )
    page = (WEB / "index.html").read_text(encoding="utf-8")
    return page.replace("<!--importmap-->", f'<script type="importmap">{importmap}</script>').replace("{{csp}}", policy)


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files of a folder, each with its type, which some systems don't know."""

    extensions_map = {
        **http.server.SimpleHTTPRequestHandler.extensions_map,
        ".js": "text/javascript",
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
        ".json": "application/json",
    }

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-cache")  # ask again each time: a new build shows at once
        super().end_headers()

    def log_message(self, *args) -> None:
        """Say nothing of each request."""


class Server(http.server.ThreadingHTTPServer):
    """A server that stays silent when a browser hangs up early."""

    allow_reuse_address = sys.platform != "win32"  # there it would share a port that another program listens on

    def handle_error(self, request, client_address) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def server(folder: Path, port: int) -> Server:
    """A server of a folder that this machine alone can reach. ValueError if the port is taken."""
    try:
        return Server(("127.0.0.1", port), functools.partial(Handler, directory=folder))
    except (OSError, OverflowError) as error:
        raise ValueError(f"port {port} can't be used ({error}): choose another with --port") from error
