// Draws a perturbation that grows with a slider, in place of the row of pictures.
const BLUE = [33, 102, 172], RED = [178, 24, 43]; // on white: below zero, above zero

function bytes(text) {
  return Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
}

function paint(canvas, [height, width, channels], colour) {
  // `colour`: of an entry its value between 0 and 1, or three of them.
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d"), image = context.createImageData(width, height);
  for (let i = 0; i < height * width; i++) {
    for (let k = 0; k < 3; k++) image.data[4 * i + k] = 255 * colour(channels * i + (k % channels), k);
    image.data[4 * i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
}

for (const stage of document.querySelectorAll(".growth")) {
  const told = JSON.parse(stage.querySelector("script").textContent);
  const [perturbed, perturbation] = stage.querySelectorAll("canvas");
  const choice = stage.querySelector("select"), slider = stage.querySelector("input");
  const said = stage.querySelector("output"), marker = stage.querySelector("line.now");
  const last = told.sizes - 1, grey = told.shape[2] === 1;
  for (const point of told.points) {
    choice.append(new Option(point.name));
    point.inputs = bytes(point.inputs);
    point.delta = bytes(point.delta);
  }

  function choose() {
    // Where f begins to read the target.
    const change = told.points[choice.selectedIndex].f.findIndex(margin => margin > 0);
    slider.value = change < 0 ? last : change;
    draw();
  }

  function draw() {
    const point = told.points[choice.selectedIndex], step = Number(slider.value);
    const at = step / last;
    // Between -1 and 1; at the largest size in full.
    const delta = i => at * (point.delta[i] - 128) / 127;
    paint(perturbed, told.shape, i => {
      const value = point.inputs[i] / 255 + point.limit * delta(i);
      return grey ? 1 - value : value; // what is out of range is clipped
    });
    paint(perturbation, told.shape, (i, k) => {
      const value = delta(i);
      if (!grey) return 0.5 + value / 2;
      const full = (value > 0 ? RED : BLUE)[k] / 255;
      return 1 + Math.abs(value) * (full - 1);
    });
    const reads = ["f", "g"].map(name => `${name} reads ${told.classes[point.decisions[name][step]]}`);
    said.textContent = `Size ${(at * told.largest).toPrecision(3)}: ${reads.join(", ")}.`;
    slider.setAttribute("aria-valuetext", said.textContent);
    for (const name of ["f", "g"]) {
      const line = point[name].map((value, i) => `${(100 * i) / last},${50 - 46 * value}`);
      stage.querySelector(`polyline.${name}`).setAttribute("points", line.join(" "));
    }
    marker.setAttribute("x1", 100 * at);
    marker.setAttribute("x2", 100 * at);
  }

  slider.max = last;
  slider.addEventListener("input", draw);
  choice.addEventListener("change", choose);
  choose();
  stage.hidden = false;
  stage.closest("figure").querySelector("img").hidden = true;
}
