// Pans and zooms the drawing of the graph, and finds boxes in it. The page is complete without it.
"use strict";
(() => {
  const stage = document.getElementById("graph-stage");
  const tools = document.getElementById("graph-tools");
  if (!stage || !tools) return;
  const svg = stage.querySelector("svg");
  const whole = svg.getAttribute("viewBox");
  const [, , width, height] = whole.split(" ").map(Number);
  const view = { x: 0, y: 0, scale: 1 }; // corner in drawing units, pixels a unit
  const pointers = new Map();

  const room = () => ({ w: stage.clientWidth || 1, h: stage.clientHeight || 1 });
  const fitting = () => Math.min(room().w / width, room().h / height, 1);
  const clamp = (value, low, high) => Math.min(Math.max(value, low), Math.max(low, high));

  function show() {
    const { w, h } = room();
    const across = w / view.scale;
    const down = h / view.scale;
    view.x = across >= width ? (width - across) / 2 : clamp(view.x, -40, width - across + 40);
    view.y = down >= height ? (height - down) / 2 : clamp(view.y, -40, height - down + 40);
    svg.setAttribute("viewBox", [view.x, view.y, across, down].map((v) => v.toFixed(1)).join(" "));
  }

  function zoom(factor, x = room().w / 2, y = room().h / 2) {
    const scale = clamp(view.scale * factor, fitting() * 0.9, 4);
    view.x += x / view.scale - x / scale;
    view.y += y / view.scale - y / scale;
    view.scale = scale;
    show();
  }

  function pan(dx, dy) {
    view.x -= dx / view.scale;
    view.y -= dy / view.scale;
    show();
  }

  function top() {
    view.scale = clamp(room().w / width, 0.6, 1);
    view.x = (width - room().w / view.scale) / 2;
    view.y = -8;
    show();
  }

  function all() {
    view.scale = fitting();
    show();
  }

  function centre(box) {
    const frame = box.getBBox();
    view.scale = Math.max(view.scale, 0.8);
    view.x = frame.x + frame.width / 2 - room().w / view.scale / 2;
    view.y = frame.y + frame.height / 2 - room().h / view.scale / 2;
    show();
  }

  stage.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    pointers.set(event.pointerId, [event.clientX, event.clientY]);
    stage.setPointerCapture(event.pointerId);
  });
  stage.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    const now = [event.clientX, event.clientY];
    pointers.set(event.pointerId, now);
    const other = [...pointers].find(([id]) => id !== event.pointerId);
    if (!other) return pan(now[0] - before[0], now[1] - before[1]);
    const [x, y] = other[1];
    const spread = (point) => Math.hypot(point[0] - x, point[1] - y) || 1;
    const frame = stage.getBoundingClientRect();
    zoom(spread(now) / spread(before), (now[0] + x) / 2 - frame.left, (now[1] + y) / 2 - frame.top);
  });
  for (const name of ["pointerup", "pointercancel"]) {
    stage.addEventListener(name, (event) => pointers.delete(event.pointerId));
  }
  stage.addEventListener("wheel", (event) => {
    // the page scrolls as usual until the drawing was clicked
    if (!event.ctrlKey && !event.metaKey && document.activeElement !== stage) return;
    event.preventDefault();
    const frame = stage.getBoundingClientRect();
    zoom(Math.exp(-event.deltaY / 400), event.clientX - frame.left, event.clientY - frame.top);
  }, { passive: false });

  const keys = {
    ArrowLeft: () => pan(80, 0), ArrowRight: () => pan(-80, 0), ArrowUp: () => pan(0, 80),
    ArrowDown: () => pan(0, -80), PageUp: () => pan(0, room().h * 0.9), PageDown: () => pan(0, -room().h * 0.9),
    Home: top, "+": () => zoom(1.25), "=": () => zoom(1.25), "-": () => zoom(0.8), 0: all,
  };
  stage.addEventListener("keydown", (event) => {
    const act = keys[event.key];
    if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    act();
  });

  const buttons = { in: () => zoom(1.25), out: () => zoom(0.8), all, top };
  for (const [name, act] of Object.entries(buttons)) {
    document.getElementById(`graph-${name}`).addEventListener("click", act);
  }

  const boxes = [...svg.querySelectorAll(".box")];
  const texts = boxes.map((box) => box.querySelector("title").textContent.toLowerCase());
  const field = document.getElementById("graph-find");
  const found = document.getElementById("graph-found");
  let hits = [];
  let at = 0;
  function find() {
    const wanted = field.value.trim().toLowerCase();
    hits = wanted ? boxes.filter((_, place) => texts[place].includes(wanted)) : [];
    boxes.forEach((box) => box.classList.remove("hit"));
    hits.forEach((box) => box.classList.add("hit"));
    at = 0;
    tell(wanted);
  }
  function tell(wanted) {
    found.textContent = !wanted ? "" : hits.length ? `${at + 1} of ${hits.length}` : "none";
    if (hits.length) centre(hits[at]);
  }
  field.addEventListener("input", find);
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !hits.length) return;
    at = (at + (event.shiftKey ? hits.length - 1 : 1)) % hits.length;
    tell(field.value);
  });

  addEventListener("beforeprint", () => svg.setAttribute("viewBox", whole));
  addEventListener("afterprint", show);
  addEventListener("resize", show);
  tools.hidden = false;
  stage.classList.add("live");
  top();
})();
