// Shows the number of a figure's tables that is nearest to the pointer, or to the finger.
const REACH = 30; // pixels
const TALL = 84; // pixels of a point's own picture
const tip = document.createElement("div"), ring = document.createElement("div");
const said = document.createElement("div"), picture = document.createElement("div");
tip.id = "tip";
ring.id = "ring";
tip.append(picture, said);
for (const element of [tip, ring]) {
  element.setAttribute("aria-hidden", "true"); // the tables are there to be read
  element.hidden = true;
  document.body.append(element);
}

function words(cell) {
  // The row's name or place, then the cell itself, each after the head of its column.
  const heads = cell.closest("table").querySelectorAll("th");
  return [...cell.parentElement.cells]
    .filter(other => other === cell || !other.dataset.at)
    .map(other => `${heads[other.cellIndex].textContent}: ${other.textContent}`)
    .join("\n");
}

function show_picture(figure, { picture: place }) {
  picture.hidden = place === undefined;
  if (picture.hidden) return;
  const [width, height] = figure.dataset.tile.split(",").map(Number), scale = TALL / height;
  picture.style = `width:${width * scale}px; height:${TALL}px;
    background:url(${figure.dataset.sheet}) 0 ${-place * TALL}px / ${width * scale}px auto`;
}

function hide() {
  tip.hidden = ring.hidden = true;
}

for (const figure of document.querySelectorAll("figure")) {
  const image = figure.querySelector("img");
  const cells = [...figure.querySelectorAll("td[data-at]")].map(cell => {
    const [x, y] = cell.dataset.at.split(",").map(Number);
    return { cell, x: x / 1000, y: y / 1000 };
  });
  if (!image || !cells.length) continue;
  image.style.cursor = "crosshair";
  const show = event => {
    const box = image.getBoundingClientRect();
    let nearest = null, least = REACH;
    for (const { cell, x, y } of cells) {
      const left = box.left + x * box.width, top = box.top + y * box.height;
      const distance = Math.hypot(left - event.clientX, top - event.clientY);
      if (distance < least) [nearest, least] = [{ cell, left, top }, distance];
    }
    if (!nearest) return hide();
    said.textContent = words(nearest.cell);
    show_picture(figure, nearest.cell.parentElement.dataset);
    tip.hidden = ring.hidden = false;
    ring.style.left = `${nearest.left}px`;
    ring.style.top = `${nearest.top}px`;
    const right = document.documentElement.clientWidth - tip.offsetWidth - 8;
    tip.style.left = `${Math.max(8, Math.min(nearest.left + 14, right))}px`;
    const above = nearest.top - tip.offsetHeight - 14;
    tip.style.top = `${above < 8 ? nearest.top + 14 : above}px`;
  };
  image.addEventListener("pointermove", show);
  image.addEventListener("pointerdown", show);
  image.addEventListener("pointerleave", hide);
}
addEventListener("scroll", hide, true);
