"use strict";
(() => {
  const PAGE = 9, GROUP = 3;
  const clock = { frame: 0, playing: !matchMedia("(prefers-reduced-motion: reduce)").matches, timer: 0 };
  const galleries = [];
  const visible = new Set();
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting) { visible.add(entry.target); draw(entry.target); } else { visible.delete(entry.target); }
    }
  }, { rootMargin: "200px" });

  const make = (tag, style, text) => {
    const element = document.createElement(tag);
    if (style) element.className = style;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  /* As write_number of wording.py. */
  const write = (value) => {
    if (value === null || value === undefined) return "";
    const size = Math.abs(value), digits = size >= 100 ? 0 : size >= 10 ? 1 : 3;
    let text = size.toFixed(digits);
    if ((size * 2 ** (digits + 1)) % 2 === 1 && text.at(-1) % 2) text = (size * (1 - 1e-9)).toFixed(digits); // halves go to even
    return (value < 0 && Number(text) ? "−" : "") + text.replace(/^0\./, ".");
  };

  /* One clock for the page: every canvas shows the same frame number at the same time. */
  function draw(canvas) {
    const { sheet, row, width, height, frames } = canvas.clip;
    if (!sheet.complete || !sheet.naturalWidth) return;
    const frame = clock.frame % frames;
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(sheet, frame * width, row * height, width, height, 0, 0, canvas.width, canvas.height);
    canvas.dataset.frame = frame;
  }
  function show(frame) {
    clock.frame = frame;
    visible.forEach(draw);
    galleries.forEach((gallery) => { gallery.seek.value = 1 + (frame % gallery.data.frames); });
  }
  function play(on) {
    clock.playing = on;
    clearInterval(clock.timer);
    if (on && galleries.length) clock.timer = setInterval(() => show(clock.frame + 1), 1000 / galleries[0].data.fps);
    galleries.forEach((gallery) => {
      gallery.button.textContent = on ? "Pause" : "Play";
      gallery.button.setAttribute("aria-pressed", String(on));
    });
  }

  function makeClip(gallery, sheet, index, row) {
    const { data } = gallery, clip = data.clips[row];
    const figure = make("figure", `clip ${clip.name === "truth" ? "truth" : clip.name === "reconstruction" ? "main" : "control"}`);
    figure.dataset.kind = clip.name;
    const canvas = make("canvas");
    const scale = Math.max(1, Math.round(256 / data.width));
    canvas.width = data.width * scale;
    canvas.height = data.height * scale;
    canvas.style.aspectRatio = `${data.width} / ${data.height}`;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${clip.label}, ${data.windows[index].place}`);
    canvas.clip = { sheet, row, width: data.width, height: data.height, frames: data.frames };
    watcher.observe(canvas);
    sheet.addEventListener("load", () => draw(canvas));
    const caption = make("figcaption", "", clip.label);
    const score = gallery.score && data.scores[gallery.score].values[clip.name];
    const value = score ? write(score[index]) : "";
    if (value) {
      const number = make("b", "", value);
      Object.assign(number.dataset, {
        source: "evaluate/windows.csv", value: score[index],
        key: `${index}|${gallery.score}${clip.name === "reconstruction" || clip.run !== undefined ? "" : `:${clip.name}`}`,
      });
      if (clip.run !== undefined) number.dataset.run = clip.run;
      caption.append(" ", number);
    }
    figure.append(canvas, caption);
    return figure;
  }
  function makeCard(gallery, index) {
    const { data } = gallery, window_ = data.windows[index];
    const card = make("article", "card");
    card.dataset.window = index;
    const sheet = new Image();
    sheet.src = data.sheets[index];
    const pair = make("div", "pair"), rest = make("div", "rest");
    data.clips.forEach((clip, row) => {
      (clip.name === "truth" || clip.name === "reconstruction" ? pair : rest).append(makeClip(gallery, sheet, index, row));
    });
    const clips = make("div", "clips");
    clips.append(pair);
    if (rest.childElementCount) clips.append(rest);
    card.append(clips, make("p", "place", window_.place));
    if (window_.caption) card.append(make("p", "caption", window_.caption));
    return card;
  }

  function sortWindows(gallery, order) {
    const { data } = gallery, all = data.windows.map((_, index) => index);
    if (!gallery.score || order === "film") return all;
    const { higher, values } = data.scores[gallery.score], list = values.reconstruction;
    const sign = (higher ? -1 : 1) * (order === "worst" ? -1 : 1);
    return all.filter((i) => list[i] !== null).sort((a, b) => sign * (list[a] - list[b]) || a - b);
  }
  /* Consecutive windows of one scene look alike: a group shows at most one of each scene. */
  function differentScenes(data, order, count) {
    const seen = new Set(), chosen = [];
    for (const index of order) {
      if (chosen.length === count) break;
      if (!seen.has(data.windows[index].scene)) { seen.add(data.windows[index].scene); chosen.push(index); }
    }
    return chosen;
  }
  function nearestToMedian(sorted) {
    const middle = (sorted.length - 1) / 2;
    return sorted.map((index, rank) => [Math.abs(rank - middle), rank, index]).sort((a, b) => a[0] - b[0] || a[1] - b[1]).map((item) => item[2]);
  }

  function fill(gallery) {
    const { data, cards } = gallery, order = gallery.order.value;
    cards.querySelectorAll("canvas").forEach((canvas) => { watcher.unobserve(canvas); visible.delete(canvas); });
    cards.replaceChildren();
    const group = (title, list) => {
      if (title) cards.append(make("h3", "", title));
      const row = make("div", "row");
      list.forEach((index) => row.append(makeCard(gallery, index)));
      cards.append(row);
    };
    let note;
    if (order === "ends" && gallery.score) {
      const sorted = sortWindows(gallery, "best"), count = GROUP * gallery.pages;
      const lists = [sorted, nearestToMedian(sorted), [...sorted].reverse()].map((list) => differentScenes(data, list, count));
      ["Best", "Median", "Worst"].forEach((title, i) => group(title, lists[i]));
      const sizes = lists.map((list) => list.length), same = sizes.every((size) => size === sizes[0]);
      note = `${same ? `${sizes[0]} each` : sizes.join(", ")} of the best, median and worst of ${sorted.length} test windows by ${data.scores[gallery.score].label}, at most one of a scene in each group.`;
      gallery.more.hidden = count * 3 >= sorted.length || Math.max(...sizes) < count;
    } else {
      const sorted = sortWindows(gallery, order === "ends" ? "film" : order), count = PAGE * gallery.pages;
      group("", sorted.slice(0, count));
      note = `${Math.min(count, sorted.length)} of ${sorted.length} test windows.`;
      gallery.more.hidden = count >= sorted.length;
    }
    gallery.shown.textContent = note;
    pick(gallery);
  }
  function pick(gallery) {
    const off = new Set([...gallery.root.querySelectorAll(".kinds input")].filter((box) => !box.checked).map((box) => box.value));
    gallery.cards.querySelectorAll("figure.clip").forEach((figure) => { figure.hidden = off.has(figure.dataset.kind); });
  }

  document.querySelectorAll(".gallery").forEach((root) => {
    const find = (selector) => root.querySelector(selector);
    const data = JSON.parse(find("script").textContent);
    const gallery = {
      root, data, pages: 1, cards: find(".cards"), shown: find(".shown"), more: find(".more"), order: find(".order"),
      button: find(".play"), seek: find(".seek"), score: find(".score") ? find(".score").value : "",
    };
    galleries.push(gallery);
    gallery.button.addEventListener("click", () => play(!clock.playing));
    gallery.seek.addEventListener("input", () => { play(false); show(Number(gallery.seek.value) - 1); });
    const again = () => { gallery.pages = 1; fill(gallery); };
    gallery.order.addEventListener("change", again);
    if (find(".score")) {
      find(".score").addEventListener("change", (event) => { gallery.score = event.target.value; again(); });
    } else {
      [...gallery.order.options].forEach((option) => { option.disabled = option.value !== "film"; });
      gallery.order.value = "film";
    }
    gallery.more.addEventListener("click", () => { gallery.pages += 1; fill(gallery); });
    root.querySelectorAll(".kinds input").forEach((box) => box.addEventListener("change", () => pick(gallery)));
    fill(gallery);
  });
  play(clock.playing);
  addEventListener("beforeprint", () => {
    document.querySelectorAll("details").forEach((item) => { item.open = true; });
    document.querySelectorAll("canvas").forEach(draw);
  });
})();
