"use strict";
(() => {
  const PAGE = 9, GROUP = 3;
  const clock = { frame: 0, playing: !matchMedia("(prefers-reduced-motion: reduce)").matches, timer: 0 };
  const galleries = [], visible = new Set();
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
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
    if (!sheet.complete || !sheet.naturalWidth || !sheet.naturalHeight) return;
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
    all(".play").forEach((button) => { button.textContent = on ? "Pause" : "Play"; });
  }

  function makeClip(data, sheet, index, row, score) {
    const clip = data.clips[row];
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
    const values = score && data.scores[score].values[clip.name], value = values ? write(values[index]) : "";
    if (value) {
      const number = make("b", "", value), isRank = score === "mean rank";
      Object.assign(number.dataset, {
        source: "evaluate/windows.csv", value: values[index],
        [isRank ? "derived" : "key"]: isRank ? `mean rank of window ${index}`
          : `${index}|${score}${clip.name === "reconstruction" || clip.run !== undefined ? "" : `:${clip.name}`}`,
      });
      if (clip.run !== undefined) number.dataset.run = clip.run;
      caption.append(" ", number);
    }
    figure.append(canvas, caption);
    return figure;
  }
  function makeCard(data, index, score, style = "card") {
    const window_ = data.windows[index], card = make("article", style);
    card.dataset.window = index;
    const sheet = new Image();
    sheet.src = data.sheets[index];
    const pair = make("div", "pair"), rest = make("div", "rest"), clips = make("div", "clips");
    data.clips.forEach((clip, row) => {
      const isPair = data.clips.at(-1).run === undefined && ["truth", "reconstruction"].includes(clip.name);
      if (isPair || style === "card") (isPair ? pair : rest).append(makeClip(data, sheet, index, row, score));
    });
    if (pair.childElementCount) clips.append(pair);
    if (rest.childElementCount) clips.append(rest);
    const place = make("p", "place"), link = make("a", "mp4", "MP4");
    Object.assign(link, { href: data.films[index], download: `${window_.place.replace(/\W+/g, "_")}.mp4` });
    link.setAttribute("aria-label", `Save ${window_.place} as MP4`);
    place.append(make("span", "", `${window_.place} `), link);
    card.append(clips, place);
    if (window_.caption && style === "card") card.append(make("p", "caption", window_.caption));
    return card;
  }

  function sortWindows(gallery, order) {
    const { data } = gallery, every = data.windows.map((_, index) => index);
    if (!gallery.score || order === "film") return every;
    const { higher, values } = data.scores[gallery.score], list = values.reconstruction;
    const sign = (higher ? -1 : 1) * (order === "worst" ? -1 : 1);
    return every.filter((i) => list[i] !== null).sort((a, b) => sign * (list[a] - list[b]) || a - b);
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
    const away = sorted.map((index, rank) => [Math.abs(rank - middle), index]);
    return away.sort((a, b) => a[0] - b[0]).map((item) => item[1]);
  }

  function fill(gallery) {
    const { data, cards } = gallery, order = gallery.order.value;
    all("canvas", cards).forEach((canvas) => { watcher.unobserve(canvas); visible.delete(canvas); });
    cards.replaceChildren();
    const group = (title, list) => {
      if (title) cards.append(make("h3", "", title));
      const row = make("div", "row");
      list.forEach((index) => row.append(makeCard(data, index, gallery.score)));
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
    const off = new Set(all(".kinds input", gallery.root).filter((box) => !box.checked).map((box) => box.value));
    all("figure.clip", gallery.cards).forEach((figure) => { figure.hidden = off.has(figure.dataset.kind); });
  }

  all(".gallery").forEach((root) => {
    const find = (selector) => root.querySelector(selector);
    const data = JSON.parse(find("script").textContent);
    const gallery = {
      root, data, pages: 1, cards: find(".cards"), shown: find(".shown"), more: find(".more"), order: find(".order"),
      seek: find(".seek"), score: find(".score") ? find(".score").value : "",
    };
    galleries.push(gallery);
    find("form").addEventListener("submit", (event) => event.preventDefault());
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
    all(".kinds input", root).forEach((box) => box.addEventListener("change", () => pick(gallery)));
    fill(gallery);
    const trio = document.querySelector(`.ends[data-of="${root.dataset.gallery}"] .trio`);
    if (trio) {
      data.ends.forEach((index, i) => {
        const card = makeCard(data, index, gallery.score, "end");
        card.prepend(make("h2", "", ["Best", "Median", "Worst"][i]));
        trio.append(card);
      });
    }
  });
  all(".play").forEach((button) => button.addEventListener("click", () => play(!clock.playing)));
  play(clock.playing);

  /* Saving: a figure as PNG, drawn as it stands on the page; text to the clipboard. */
  const STYLES = ["fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-linecap", "opacity", "font-size", "font-family", "font-weight", "font-style", "text-anchor"];
  function addressOf(figure) {
    const svg = figure.querySelector("svg");
    if (!svg) return figure.querySelector("img").src;
    const clone = svg.cloneNode(true), box = svg.viewBox.baseVal, from = all("*", svg);
    all("*", clone).forEach((element, i) => {
      const style = getComputedStyle(from[i]);
      STYLES.forEach((name) => element.style.setProperty(name, style.getPropertyValue(name)));
    });
    Object.entries({ width: 3 * box.width, height: 3 * box.height }).forEach(([name, value]) => clone.setAttribute(name, value));
    return `data:image/svg+xml;charset=utf-8,${encodeURIComponent(new XMLSerializer().serializeToString(clone))}`;
  }
  function savePicture(figure, name) {
    const picture = new Image();
    picture.onload = () => {
      const canvas = make("canvas"), context = canvas.getContext("2d");
      Object.assign(canvas, { width: picture.naturalWidth, height: picture.naturalHeight });
      context.fillStyle = getComputedStyle(document.body).backgroundColor;
      context.fillRect(0, 0, canvas.width, canvas.height);
      context.drawImage(picture, 0, 0);
      const link = make("a");
      link.download = `${name}.png`;
      try { link.href = canvas.toDataURL("image/png"); } catch { // a picture beside the page may not be read: as it is
        Object.assign(link, { href: picture.src, download: `${name}.webp` });
      }
      link.click();
    };
    picture.src = addressOf(figure);
  }
  all(".panels figure, .maps figure, .way figure").forEach((figure) => {
    const caption = figure.querySelector("figcaption"), name = caption.textContent.trim().replace(/\s+/g, " ");
    const button = make("button", "png", "PNG");
    button.type = "button";
    button.setAttribute("aria-label", `Save “${name}” as PNG`);
    button.addEventListener("click", () => savePicture(figure, name.replace(/\W+/g, "_")));
    caption.append(" ", button);
  });
  all(".copy").forEach((button) => button.addEventListener("click", async () => {
    const text = document.getElementById(button.dataset.of);
    getSelection().selectAllChildren(text);
    try { await navigator.clipboard.writeText(text.textContent); } catch { document.execCommand("copy"); }
    button.textContent = "Copied";
  }));

  /* A link leads into what is folded. */
  function unfoldTarget() {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    for (let item = target; item; item = item.parentElement) if (item.tagName === "DETAILS") item.open = true;
    if (target) target.scrollIntoView();
  }
  addEventListener("hashchange", unfoldTarget);
  unfoldTarget();
  const unfold = document.querySelector(".unfold");
  unfold.addEventListener("click", () => {
    const open = unfold.getAttribute("aria-pressed") !== "true";
    all("details").forEach((item) => { item.open = open; });
    unfold.setAttribute("aria-pressed", String(open));
    unfold.textContent = open ? "Fold all" : "Unfold all";
  });
  addEventListener("beforeprint", () => all("canvas").forEach(draw));
})();
