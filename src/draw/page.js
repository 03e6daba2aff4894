// Reads values off under the pointer, in all charts at once. Without it the page only lacks that.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const charts = [...document.querySelectorAll("[data-chart]")];
const clock = (t) => `${Math.floor(t / 60)}:${String(t % 60).padStart(2, "0")}`;
const show = (value) => value == null ? "–" : value < 10 ? String(+value.toFixed(2)) : value.toFixed(0);

function point(at) {
  for (const chart of charts) {
    const values = data[chart.dataset.chart] || {};
    const count = data.points;
    const cursor = chart.querySelector(".cursor");
    cursor.style.display = at == null ? "none" : "block";
    if (at != null) {
      cursor.style.left = `${((at + 0.5) / count) * 100}%`;
      cursor.title = clock(at * data.step_s);
    }
    for (const item of chart.querySelectorAll("[data-name]")) {
      const series = values[item.dataset.name];
      item.querySelector("b").textContent = at == null || !series ? "" : show(series[at]);
    }
  }
}

for (const chart of charts) {
  const area = chart.querySelector(".area");
  const move = (event) => {
    const box = area.getBoundingClientRect();
    const count = data.points;
    const at = Math.floor(((event.clientX - box.left) / box.width) * count);
    point(Math.min(Math.max(at, 0), count - 1));
  };
  area.addEventListener("pointermove", move);
  area.addEventListener("pointerdown", move);
  area.addEventListener("pointerleave", () => point(null));
}
