"use strict";
/* Cortical maps on a surface that turns: a small rasteriser with a depth buffer, so that no graphics card is needed.
   Axes of the points: x to the right ear, y to the nose, z to the crown; millimetres. */
(() => {
  const store = document.getElementById("meshes");
  if (!store) return;
  const meshes = JSON.parse(store.textContent);
  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const VIEWS = { back: [0, 0], left: [-90, 0], right: [90, 0], below: [0, -70], top: [0, 90] };
  const GAP = 4, STEP = 12;

  const sides = {};
  for (const [name, mesh] of Object.entries(meshes.sides)) {
    sides[name] = {
      inflated: new Int16Array(bytes(mesh.inflated).buffer), flat: new Int16Array(bytes(mesh.flat).buffer),
      triangles: new Uint16Array(bytes(mesh.triangles).buffer), nFlat: mesh.n_flat,
      fold: bytes(mesh.fold), area: bytes(mesh.area),
    };
  }

  /* One side or both beside each other, centred at the origin: {points, normals, triangles, radius}. */
  const shapes = new Map();
  function shapeOf(side, kind) {
    const key = `${side} ${kind}`;
    if (shapes.has(key)) return shapes.get(key);
    const names = side === "both" ? ["left", "right"] : [side];
    const points = [], triangles = [];
    for (const name of names) {
      const part = sides[name], width = kind === "flat" ? 2 : 3, from = part[kind], first = points.length / 3;
      const count = kind === "flat" ? part.nFlat : part.triangles.length / 3;
      const used = new Set();
      for (let i = 0; i < 3 * count; i++) { triangles.push(first + part.triangles[i]); used.add(part.triangles[i]); }
      let near = name === "left" ? -Infinity : Infinity;
      for (const i of used) near = name === "left" ? Math.max(near, from[width * i]) : Math.min(near, from[width * i]);
      const shift = side === "both" ? near / 10 + (name === "left" ? GAP : -GAP) : 0;
      for (let i = 0; i < from.length / width; i++) {
        const x = from[width * i] / 10 - shift, y = from[width * i + 1] / 10;
        if (kind === "flat") points.push(x, 0, y); else points.push(x, y, from[3 * i + 2] / 10);
      }
    }
    const low = [Infinity, Infinity, Infinity], high = [-Infinity, -Infinity, -Infinity];
    for (const i of triangles) for (let k = 0; k < 3; k++) {
      low[k] = Math.min(low[k], points[3 * i + k]); high[k] = Math.max(high[k], points[3 * i + k]);
    }
    const centred = Float32Array.from(points, (value, i) => value - (low[i % 3] + high[i % 3]) / 2);
    const shape = {
      points: centred, triangles: Int32Array.from(triangles), size: high.map((end, k) => end - low[k]),
      normals: kind === "flat" ? null : normalsOf(centred, triangles),
    };
    shapes.set(key, shape);
    return shape;
  }
  function normalsOf(points, triangles) {
    const normals = new Float32Array(points.length);
    for (let t = 0; t < triangles.length; t += 3) {
      const [a, b, c] = [3 * triangles[t], 3 * triangles[t + 1], 3 * triangles[t + 2]];
      const u = [0, 1, 2].map((k) => points[b + k] - points[a + k]), v = [0, 1, 2].map((k) => points[c + k] - points[a + k]);
      const n = [u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]];
      for (const corner of [a, b, c]) for (let k = 0; k < 3; k++) normals[corner + k] += n[k];
    }
    for (let i = 0; i < normals.length; i += 3) {
      const length = Math.hypot(normals[i], normals[i + 1], normals[i + 2]) || 1;
      for (let k = 0; k < 3; k++) normals[i + k] /= length;
    }
    return normals;
  }
  const joined = (side, get) => {
    const parts = (side === "both" ? ["left", "right"] : [side]).map(get);
    const all = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
    parts.reduce((at, part) => { all.set(part, at); return at + part.length; }, 0);
    return all;
  };

  function render(widget, sharpness) {
    const { canvas, state, data } = widget, map = data.maps[state.map], shape = shapeOf(state.side, state.shape);
    const width = Math.max(160, Math.round(canvas.clientWidth * sharpness)), height = Math.round((width * canvas.clientHeight) / canvas.clientWidth);
    if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
    const flat = state.shape === "flat", [yaw, pitch] = flat ? [0, 0] : [state.yaw, state.pitch].map((angle) => (angle * Math.PI) / 180);
    const [cy, sy, cp, sp] = [Math.cos(yaw), Math.sin(yaw), Math.cos(pitch), Math.sin(pitch)];
    const reach = flat ? Math.max(shape.size[0] / width, shape.size[2] / height) : Math.hypot(...shape.size) * 0.86 / Math.min(width, height * 1.5);
    const scale = (0.94 * state.zoom) / reach;
    const { points, normals, triangles } = shape, n = points.length / 3;
    const X = new Float32Array(n), Y = new Float32Array(n), Z = new Float32Array(n), L = new Float32Array(n);
    for (let i = 0; i < n; i++) {
      const x = points[3 * i], y = points[3 * i + 1], z = points[3 * i + 2], towards = x * sy - y * cy;
      X[i] = width / 2 + scale * (x * cy + y * sy);
      Y[i] = height / 2 - scale * (z * cp - towards * sp);
      Z[i] = towards * cp + z * sp;
      if (normals) {
        const facing = (normals[3 * i] * sy - normals[3 * i + 1] * cy) * cp + normals[3 * i + 2] * sp;
        L[i] = 0.58 + 0.42 * Math.max(0, facing);
      } else L[i] = 1;
    }
    const level = joined(state.side, (name) => widget.levels[state.map][name]);
    const fold = joined(state.side, (name) => sides[name].fold), colours = widget.colours[map.colours];
    const image = new ImageData(width, height), pixels = image.data;
    const depth = new Float32Array(width * height).fill(-Infinity), owner = new Int32Array(width * height).fill(-1);
    for (let t = 0; t < triangles.length; t += 3) {
      const a = triangles[t], b = triangles[t + 1], c = triangles[t + 2];
      const area = (X[b] - X[a]) * (Y[c] - Y[a]) - (Y[b] - Y[a]) * (X[c] - X[a]);
      if (area === 0 || (!flat && area > 0)) continue;
      const x0 = Math.max(0, Math.ceil(Math.min(X[a], X[b], X[c]))), x1 = Math.min(width - 1, Math.floor(Math.max(X[a], X[b], X[c])));
      const y0 = Math.max(0, Math.ceil(Math.min(Y[a], Y[b], Y[c]))), y1 = Math.min(height - 1, Math.floor(Math.max(Y[a], Y[b], Y[c])));
      for (let y = y0; y <= y1; y++) for (let x = x0; x <= x1; x++) {
        const wa = ((X[b] - x) * (Y[c] - y) - (Y[b] - y) * (X[c] - x)) / area;
        const wb = ((X[c] - x) * (Y[a] - y) - (Y[c] - y) * (X[a] - x)) / area, wc = 1 - wa - wb;
        if (wa < -1e-4 || wb < -1e-4 || wc < -1e-4) continue;
        const at = y * width + x, z = wa * Z[a] + wb * Z[b] + wc * Z[c];
        if (z <= depth[at]) continue;
        depth[at] = z;
        owner[at] = wa > wb ? (wa > wc ? a : c) : wb > wc ? b : c;
        const light = wa * L[a] + wb * L[b] + wc * L[c];
        const known = (level[a] ? wa : 0) + (level[b] ? wb : 0) + (level[c] ? wc : 0);
        if (known >= 0.5) {
          const shown = Math.max(0, Math.min(254, Math.round((wa * level[a] + wb * level[b] + wc * level[c]) / known) - 1));
          for (let k = 0; k < 3; k++) pixels[4 * at + k] = colours[3 * shown + k] * (0.35 + 0.65 * light);
        } else {
          const grey = (184 + (52 * (wa * fold[a] + wb * fold[b] + wc * fold[c])) / 255) * light;
          pixels[4 * at] = pixels[4 * at + 1] = pixels[4 * at + 2] = grey;
        }
        pixels[4 * at + 3] = 255;
      }
    }
    canvas.getContext("2d", { willReadFrequently: true }).putImageData(image, 0, 0);
    Object.assign(widget, { owner, level });
    canvas.dataset.drawn = `${map.name} ${state.side} ${state.shape} ${Math.round(state.yaw)} ${Math.round(state.pitch)}`;
  }

  const soon = (widget) => {
    if (!widget.pending) widget.pending = requestAnimationFrame(() => { widget.pending = 0; render(widget, 1); });
    clearTimeout(widget.sharp);
    widget.sharp = setTimeout(() => render(widget, Math.min(2, devicePixelRatio * 1.5)), 160);
  };
  function turn(widget, yaw, pitch) {
    widget.state.yaw = ((widget.state.yaw + yaw + 540) % 360) - 180;
    widget.state.pitch = Math.max(-90, Math.min(90, widget.state.pitch + pitch));
    soon(widget);
  }
  function zoom(widget, factor) { widget.state.zoom = Math.max(0.6, Math.min(6, widget.state.zoom * factor)); soon(widget); }
  function look(widget, view) {
    [widget.state.yaw, widget.state.pitch] = VIEWS[view];
    widget.state.zoom = 1;
    soon(widget);
  }
  function legend(widget) {
    const map = widget.data.maps[widget.state.map], colours = widget.colours[map.colours], bar = widget.find(".bar canvas");
    const context = bar.getContext("2d"), image = context.createImageData(bar.width, bar.height);
    for (let x = 0; x < bar.width; x++) for (let y = 0; y < bar.height; y++) {
      const shown = Math.floor((x * 254.99) / bar.width), at = 4 * (y * bar.width + x);
      for (let k = 0; k < 3; k++) image.data[at + k] = colours[3 * shown + k];
      image.data[at + 3] = 255;
    }
    context.putImageData(image, 0, 0);
    widget.find(".low").innerHTML = map.ends[0];
    widget.find(".high").innerHTML = map.ends[1];
    widget.find(".unit").textContent = map.unit;
    widget.find(".warning").innerHTML = map.warning;
    widget.find(".warning").hidden = !map.warning;
    widget.canvas.setAttribute("aria-label", `${map.label} on the cortex; arrow keys turn it, plus and minus zoom`);
  }
  function read(widget, event) {
    const box = widget.canvas.getBoundingClientRect(), { canvas, state, data } = widget;
    const x = Math.floor(((event.clientX - box.left) * canvas.width) / box.width);
    const y = Math.floor(((event.clientY - box.top) * canvas.height) / box.height);
    const vertex = widget.owner && x >= 0 && y >= 0 && x < canvas.width && y < canvas.height ? widget.owner[y * canvas.width + x] : -1;
    const map = data.maps[state.map];
    let text = "";
    if (vertex >= 0) {
      const area = meshes.areas[joined(state.side, (name) => sides[name].area)[vertex]] || "medial wall", level = widget.level[vertex];
      const value = map.low + ((level - 1) / 254) * (map.high - map.low);
      text = level ? `${area}: about ${Number(value.toPrecision(2))}` : `${area}: no voxel`;
    }
    widget.find(".read").textContent = text || "\u00a0";
  }

  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) soon(entry.target.widget);
  }, { rootMargin: "300px" });
  const widgets = [...document.querySelectorAll(".surface")].map((root) => {
    const find = (selector) => root.querySelector(selector), data = JSON.parse(find("script").textContent);
    const widget = {
      root, find, data, canvas: find("canvas.cortex"), state: { map: 0, side: "both", shape: "inflated", yaw: 0, pitch: 0, zoom: 1 },
      colours: Object.fromEntries(Object.entries(data.colours).map(([name, text]) => [name, bytes(text)])),
      levels: data.maps.map((map) => ({ left: bytes(map.levels.left), right: bytes(map.levels.right) })),
    };
    const { canvas, state } = widget;
    canvas.widget = widget;
    find(".map").addEventListener("change", (event) => { state.map = Number(event.target.value); legend(widget); soon(widget); });
    find(".side").addEventListener("change", (event) => {
      state.side = event.target.value;
      look(widget, state.side === "both" ? "back" : state.side);
    });
    find(".shape").addEventListener("change", (event) => { state.shape = event.target.value; soon(widget); });
    root.querySelectorAll(".views button").forEach((button) => button.addEventListener("click", () => look(widget, button.value)));
    let held = null;
    canvas.addEventListener("pointerdown", (event) => { held = [event.clientX, event.clientY]; canvas.setPointerCapture(event.pointerId); });
    canvas.addEventListener("pointermove", (event) => {
      if (!held) { read(widget, event); return; }
      turn(widget, (held[0] - event.clientX) * 0.5, (event.clientY - held[1]) * 0.5);
      held = [event.clientX, event.clientY];
    });
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, (event) => { held = null; read(widget, event); });
    canvas.addEventListener("dblclick", () => look(widget, "back"));
    canvas.addEventListener("keydown", (event) => {
      const act = {
        ArrowLeft: () => turn(widget, -STEP, 0), ArrowRight: () => turn(widget, STEP, 0),
        ArrowUp: () => turn(widget, 0, STEP), ArrowDown: () => turn(widget, 0, -STEP),
        "+": () => zoom(widget, 1.2), "=": () => zoom(widget, 1.2), "-": () => zoom(widget, 1 / 1.2), Home: () => look(widget, "back"),
      }[event.key];
      if (act && !event.ctrlKey && !event.metaKey) { event.preventDefault(); act(); }
    });
    legend(widget);
    watcher.observe(canvas);
    return widget;
  });
  addEventListener("resize", () => widgets.forEach(soon));
  addEventListener("beforeprint", () => widgets.forEach((widget) => render(widget, 2)));
})();
