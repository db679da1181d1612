// Enlarge a gallery row.
const box = document.getElementById("lightbox");
const enlarge = (row) => {
  box.lastElementChild.replaceChildren(...[...row.children].map((child) => child.cloneNode(true)));
  box.showModal();
};
document.querySelectorAll(".case").forEach((row) => {
  row.addEventListener("click", () => enlarge(row));
  row.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); enlarge(row); }
  });
});
box.addEventListener("click", (event) => {
  if (event.target === box || event.target.className === "close") box.close();
});

// Read the nearest logged values under the pointer.
document.querySelectorAll("svg.plot").forEach((plot) => {
  const numbers = (key) => plot.dataset[key].split(" ").map(Number);
  const [x0, x1] = numbers("x"), [y0, y1] = numbers("y"), [left, top, right, bottom] = numbers("area");
  const log = plot.dataset.log === "1";
  const readout = plot.closest("figure").querySelector(".readout");
  const cursor = plot.querySelector(".cursor");
  const value = (y) => { const v = y1 - (y - top) / (bottom - top) * (y1 - y0); return log ? 10 ** v : v; };
  plot.addEventListener("pointermove", (event) => {
    const frame = plot.getBoundingClientRect();
    const at = (event.clientX - frame.left) / frame.width * plot.viewBox.baseVal.width;
    const nearest = new Map();
    plot.querySelectorAll("polyline").forEach((line) => {
      for (const point of line.points) {
        const best = nearest.get(line.dataset.name);
        if (!best || Math.abs(point.x - at) < Math.abs(best.x - at)) nearest.set(line.dataset.name, point);
      }
    });
    const first = nearest.values().next().value;
    if (!first) return;
    cursor.setAttribute("x1", first.x); cursor.setAttribute("x2", first.x); cursor.classList.add("on");
    const step = x0 + (first.x - left) / (right - left) * (x1 - x0);
    readout.textContent = [...nearest.values()].map((p) => value(p.y).toPrecision(3)).join(" · ") + " at " + Math.round(step);
  });
  plot.addEventListener("pointerleave", () => { readout.textContent = ""; cursor.classList.remove("on"); });
});
