"""Pages in a real browser, where one is installed: narrow and wide, light and dark; what their
scripts show.
"""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import perturbkernel as pk
from perturbkernel import verify
from perturbkernel.cli import bench
from perturbkernel.report import plots
from perturbkernel.reproduce import plan, runner
from perturbkernel.verify import page as verify_page

# The suite of this checkout, as in tests/cli/test_bench.py.
pk.__path__.insert(0, str(Path(__file__).parents[2]))
suite = bench.suite()
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")

# The page lies in frames of the widths to be tried: a window cannot be made as narrow as a phone.
FRAMES = """<!doctype html><body style="margin:0"><pre id="found"></pre>
<iframe style="border:0;width:390px;height:900px" srcdoc="{page}"></iframe>
<iframe style="border:0;width:1400px;height:900px" srcdoc="{page}"></iframe><script>
function channels(text) {{ return text.match(/[\\d.]+/g).map(Number); }}
function luminance(rgb) {{
  const [r, g, b] = rgb.slice(0, 3).map(c => {{ c /= 255;
    return c <= 0.03928 ? c / 12.92 : Math.pow((c + 0.055) / 1.055, 2.4); }});
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}}
function ground(element, view) {{
  for (let e = element; e; e = e.parentElement) {{
    const c = channels(view.getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > 0) return c;
  }}
  return [255, 255, 255];
}}
function look(frame) {{
  const page = frame.contentDocument, view = frame.contentWindow;
  for (const e of page.querySelectorAll("details")) e.open = true;
  let contrast = 21, worst = "";
  const texts = "p, li, td, th, h1, h2, figcaption, code, summary, a, small, label, output";
  for (const e of page.querySelectorAll(texts)) {{
    const a = luminance(channels(view.getComputedStyle(e).color));
    const b = luminance(ground(e, view));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < contrast) {{ contrast = ratio; worst = e.outerHTML.slice(0, 120); }}
  }}
  const images = [...page.images], shown = images.filter(i => i.getClientRects().length);
  return {{
    scroll: page.documentElement.scrollWidth, width: view.innerWidth, contrast, worst,
    images: images.length, broken: images.filter(i => !i.naturalWidth).map(i => i.alt),
    small: shown.filter(i => i.clientWidth < 0.39 * i.naturalWidth).map(i => i.alt),
    ground: view.getComputedStyle(page.body).backgroundColor }};
}}
addEventListener("load", () => setTimeout(() => {{
  document.querySelector("#found").textContent =
    JSON.stringify([...document.querySelectorAll("iframe")].map(look));
}}, 300));
</script></body>"""


def in_browser(file: Path, text: str, dark: bool = False) -> Any:
    """What a page writes into the element `found`, once it lies in `file`."""
    file.write_text(text)
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", *scheme]
    command += [f"--user-data-dir={file.parent}/profile", "--window-size=1900,1000"]
    command += ["--virtual-time-budget=5000", "--enable-logging=stderr", "--dump-dom"]
    done = subprocess.run(
        [*command, f"file://{file}"], capture_output=True, text=True, timeout=120, check=True
    )
    found = re.search(r'<pre id="found">(.+?)</pre>', done.stdout)
    assert found, done.stderr[-500:]
    assert "CONSOLE" not in done.stderr, done.stderr
    return json.loads(html.unescape(found[1]))


def experiment() -> Any:
    key = jax.random.key(0)
    data = pk.data.shifted_gaussian(40, 9, 1.0, key=key)
    images = pk.data.from_arrays(np.asarray(data.inputs).reshape(40, 3, 3), data.targets)
    return pk.learn_from_perturbations(
        pk.KernelLearner(pk.TwoLayerNTK()), images, size=0.5, key=key
    )


def curves(results: Any) -> plots.Figure:
    """A figure as wide as those of the studies."""
    fig = plots.figure(9.9, 4.6)
    fig.add_subplot().plot([0, 1], [0, 1], label="a curve")
    return fig


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A page of each kind, in its own folder."""
    folder = tmp_path_factory.mktemp("pages")
    run = experiment().report(folder / "run", control_draws=1)
    checked = verify_page.save(verify.verify("0.1"), folder / "verify") / "verify.html"
    environment = {"processor": "p", "cores": 1, "backend": "cpu", "device": "cpu"}
    environment |= {"python": "3", "perturbkernel": "0", "versions": {"jax": "1"}}
    row = suite.Row("a", "n = 1", "x", "y", (1.0, 2.0), group="products")
    outcome = suite.harness.Outcome([row])
    measured = suite.page.save(suite.GROUPS, outcome, {}, environment, folder / "bench")
    with pytest.MonkeyPatch.context() as patch:
        study = plan.STUDIES["frontier"].module
        patch.setitem(runner.FUNCTIONS, "frontier", lambda config: {"found": np.zeros(1)})
        patch.setattr(study, "cells", lambda scale, seeds: [{"number": 0}])
        patch.setattr(study, "summarise", lambda results: {})
        patch.setattr(study, "draw", curves)
        pk.reproduce.reproduce(["frontier"], folder / "reproduce", workers=0)
    studied = folder / "reproduce" / "index.html"
    return {"run": run, "verify": checked, "bench": measured / "bench.html", "reproduce": studied}


@pytest.mark.parametrize("name", ["run", "verify", "bench", "reproduce"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_page_is_readable(name, dark, pages):
    page = html.escape(pages[name].read_text(), quote=True)
    found = in_browser(pages[name].with_name("frames.html"), FRAMES.format(page=page), dark)
    assert [each["width"] for each in found] == [390, 1400]
    for each in found:
        assert each["scroll"] <= each["width"]
        assert each["images"] > 0 and not each["broken"]
        # An inch of a figure has 150 dots, and 60 on a phone.
        assert not each["small"]
        assert each["contrast"] >= 4.5, each["worst"]  # what WCAG asks of text
        assert (each["ground"] != "rgb(255, 255, 255)") == dark


# Points at the mark of every cell in turn, and moves the slider.
PROBE = """<pre id="found"></pre><script type="module">
const stage = document.querySelector(".growth"), slider = stage.querySelector("input");
const paints = () => [...stage.querySelectorAll("canvas")].map(canvas => {
  const copy = new OffscreenCanvas(canvas.width, canvas.height), view = copy.getContext("2d");
  view.drawImage(canvas, 0, 0);
  return [...view.getImageData(0, 0, copy.width, copy.height).data];
});
const steps = [0, 50, 100].map(step => {
  slider.value = step;
  slider.dispatchEvent(new Event("input"));
  return { said: stage.querySelector("output").textContent, paints: paints() };
});
const figure = document.querySelector("#outputs"), image = figure.querySelector("img");
await image.decode();
const box = image.getBoundingClientRect();
const pointed = [...figure.querySelectorAll("td[data-at]")].map(cell => {
  const [x, y] = cell.dataset.at.split(",").map(Number);
  const at = { clientX: box.left + x * box.width / 1000, clientY: box.top + y * box.height / 1000 };
  image.dispatchEvent(new PointerEvent("pointermove", at));
  return [document.querySelector("#tip").textContent, cell.parentElement.cells[0].textContent];
});
image.dispatchEvent(new PointerEvent("pointermove", { clientX: box.left, clientY: box.top }));
document.querySelector("#found").textContent = JSON.stringify({ steps, pointed,
  away: document.querySelector("#tip").hidden,
  row: document.querySelector("#growing img").hidden,
  options: stage.querySelectorAll("option").length });
</script></body>"""


def test_the_slider_and_the_pointer_show_what_was_computed(pages):
    text = pages["run"].read_text().replace("</body>", PROBE)
    found = in_browser(pages["run"].with_name("probe.html"), text)
    report = pk.report.load(pages["run"].parent)
    a, (plus, minus) = report.arrays, report.configuration["classes"]
    assert found["row"] and found["options"] == len(a["growth_sample"])
    row = a["growth_sample"][0]
    x, delta = (a[f"sample_{name}"][row].reshape(3, 3) for name in ("inputs", "deltas"))
    low, high = a["sample_inputs"].min(), a["sample_inputs"].max()
    for step, shown in zip((0, 50, 100), found["steps"], strict=True):
        size = a["growth_size"][step]
        reads = [(plus, minus)[a[f"growth_decision_{name}"][0, step]] for name in "fg"]
        said = re.fullmatch(r"Size ([\d.]+): f reads (\S+), g reads (\S+)\.", shown["said"])
        assert said and float(said[1]) == pytest.approx(size, rel=5e-3)
        assert [said[2], said[3]] == reads
        perturbed, perturbation = np.reshape(shown["paints"], (2, 3, 3, 4))
        expected = (x + size / 0.5 * delta - low) / (high - low)
        # Eight bits of the picture, and eight of its perturbation, which is no larger.
        grey = 255 * (1 - expected.clip(0, 1))
        np.testing.assert_allclose(perturbed[..., 0], grey, atol=3)
        assert (perturbation[..., :3] == 255).all() == (step == 0)
    red, blue = perturbation[..., 0], perturbation[..., 2]
    clear = np.abs(delta) > 0.05 * np.abs(delta).max()
    np.testing.assert_array_equal((red > blue)[clear], (delta > 0)[clear])
    # Where points lie upon each other another one may be shown: of the rest, each its own.
    own = [tip.split("\n")[0].endswith(f": {name}") for tip, name in found["pointed"]]
    assert len(own) == 40 and np.mean(own) > 0.6
    assert found["away"]
