"""Pages in a real browser, where one is installed: narrow and wide, light and dark."""

import html
import json
import re
import shutil
import subprocess

import jax
import numpy as np
import pytest

import perturbkernel as pk
from perturbkernel import verify
from perturbkernel.verify import page as verify_page

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")

# The page lies in a frame of the width to be tried: a window cannot be made as narrow as a phone.
FRAME = """<!doctype html><body style="margin:0"><iframe style="border:0;width:{width}px;height:900px"
srcdoc="{page}"></iframe><pre id="found"></pre><script>
const errors = [];
const frame = document.querySelector("iframe");
function channels(text) {{ return text.match(/[\\d.]+/g).map(Number); }}
function luminance(rgb) {{
  const [r, g, b] = rgb.slice(0, 3).map(c => {{ c /= 255;
    return c <= 0.03928 ? c / 12.92 : Math.pow((c + 0.055) / 1.055, 2.4); }});
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}}
function ground(element) {{
  for (let e = element; e; e = e.parentElement) {{
    const c = channels(frame.contentWindow.getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > 0) return c;
  }}
  return [255, 255, 255];
}}
frame.addEventListener("load", () => setTimeout(() => {{
  const page = frame.contentDocument, view = frame.contentWindow;
  let contrast = 21, worst = "";
  for (const e of page.querySelectorAll("p, li, td, th, h1, h2, figcaption, code, summary, a")) {{
    const a = luminance(channels(view.getComputedStyle(e).color)), b = luminance(ground(e));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < contrast) {{ contrast = ratio; worst = e.outerHTML.slice(0, 120); }}
  }}
  const images = [...page.images];
  document.querySelector("#found").textContent = JSON.stringify({{
    scroll: page.documentElement.scrollWidth, width: view.innerWidth, contrast, worst,
    images: images.length, broken: images.filter(i => !i.naturalWidth).map(i => i.alt),
    ground: view.getComputedStyle(page.body).backgroundColor }});
}}, 200));
</script></body>"""


def in_browser(folder, page: str, width: int, dark: bool) -> dict:
    """What the browser makes of the page: widths, images that do not decode, the least contrast."""
    file = folder / "frame.html"
    file.write_text(FRAME.format(width=width, page=html.escape(page, quote=True)))
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", *scheme]
    command += [f"--user-data-dir={folder}/profile", "--window-size=1500,1000"]
    command += ["--virtual-time-budget=5000", "--enable-logging=stderr", "--dump-dom"]
    done = subprocess.run(
        [*command, f"file://{file}"], capture_output=True, text=True, timeout=120, check=True
    )
    found = re.search(r'<pre id="found">(.+?)</pre>', done.stdout)
    assert found, done.stderr[-500:]
    assert "CONSOLE" not in done.stderr, done.stderr
    return json.loads(html.unescape(found[1]))


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A page of a run and one of verify."""
    folder = tmp_path_factory.mktemp("pages")
    key = jax.random.key(0)
    data = pk.data.shifted_gaussian(40, 9, 1.0, key=key)
    images = pk.data.from_arrays(np.asarray(data.inputs).reshape(40, 3, 3), data.targets)
    r = pk.learn_from_perturbations(pk.KernelLearner(pk.TwoLayerNTK()), images, size=0.5, key=key)
    run = r.report(folder / "run", control_draws=1).read_text()
    checked = verify_page.save(verify.verify("0.1"), folder / "verify")
    return {"run": run, "verify": (checked / "verify.html").read_text()}


@pytest.mark.parametrize("name", ["run", "verify"])
@pytest.mark.parametrize("width", [390, 1400])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_page_is_readable(name, width, dark, pages, tmp_path):
    found = in_browser(tmp_path, pages[name], width, dark)
    assert found["scroll"] <= found["width"] == width
    assert found["images"] > 0 and not found["broken"]
    assert found["contrast"] >= 4.5, found["worst"]  # what WCAG asks of text
    assert (found["ground"] != "rgb(255, 255, 255)") == dark
