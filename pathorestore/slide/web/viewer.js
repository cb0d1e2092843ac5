"use strict";
(() => {
  const view = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
  const main = view.pictures[view.compare ? 1 : 0];
  const overlays = view.pictures.slice(view.compare ? 2 : 1);
  const state = { mode: "split", at: 0.5, items: [], layers: [] };

  const viewer = OpenSeadragon({
    element: byId("slide"),
    drawer: "canvas", // WebGL refuses pictures that a page opened from the disk has beside it
    tileSources: view.pictures.map((picture) => ({ tileSource: tileSource(picture), x: 0, y: 0, width: 1 })),
    showNavigationControl: false,
    showNavigator: true,
    navigatorPosition: "BOTTOM_RIGHT",
    navigatorSizeRatio: 0.16,
    gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
    gestureSettingsTouch: { pinchRotate: false },
    maxZoomPixelRatio: 16,
    minZoomImageRatio: 0.8,
    visibilityRatio: 0.3,
    animationTime: 0.5,
    imageLoaderLimit: 6,
    maxImageCacheCount: 600,
    placeholderFillStyle: null,
  });

  function tileSource(picture) {
    return {
      width: picture.width,
      height: picture.height,
      tileSize: view.tile_px,
      tileOverlap: 0,
      minLevel: Math.min(8, picture.max_level), // one tile holds all of it
      maxLevel: picture.max_level,
      hasTransparency: () => picture.suffix === "png",
      getTileUrl: (level, x, y) => `${picture.key}_files/${level}/${x}_${y}.${picture.suffix}`,
    };
  }

  /* Before and after lie in one canvas, each clipped at the divider, so that they cannot come apart. */
  function draw() {
    if (!state.items.length) return;
    if (view.compare) divide();
    drawScale();
  }

  function divide() {
    const width = byId("slide").clientWidth;
    const at = { before: 1, split: state.at, after: 0 }[state.mode];
    const share = clamp(viewer.viewport.pointFromPixel(new OpenSeadragon.Point(at * width, 0), true).x, 0, 1);
    const [before, after] = state.items;
    const [b, a] = view.pictures;
    before.setClip(new OpenSeadragon.Rect(0, 0, share * b.width, b.height));
    after.setClip(new OpenSeadragon.Rect(share * a.width, 0, (1 - share) * a.width, a.height));
    const [left, right] = [byId("before-label"), byId("after-label")];
    byId("divider").style.left = `${at * width}px`;
    right.style.left = `${at * width}px`;
    const room = state.mode === "split" ? 48 : 0;
    left.style.maxWidth = `${Math.min(at * width - 24, 0.44 * width)}px`;
    right.style.maxWidth = `${Math.min((1 - at) * width - 24, 0.44 * width)}px`;
    left.hidden = at * width < 48 + room;
    right.hidden = (1 - at) * width < 48 + room;
  }

  function drawScale() {
    const ratio = screenToImage();
    byId("zoom").textContent = `${ratio >= 0.1 ? Math.round(100 * ratio) : (100 * ratio).toPrecision(2)} %`;
    if (!view.mpp) return;
    const longest = (150 / ratio) * view.mpp;
    const decade = 10 ** Math.floor(Math.log10(longest));
    const length = decade * [5, 2, 1].find((step) => step * decade <= longest);
    const text = length >= 1000 ? `${length / 1000} mm` : length >= 1 ? `${length} \u00b5m` : `${Math.round(1000 * length)} nm`;
    byId("scale").querySelector("span").textContent = text;
    byId("scale").querySelector("i").style.width = `${(length / view.mpp) * ratio}px`;
    byId("scale").setAttribute("aria-label", `scale bar: ${text}`);
  }

  function screenToImage() {
    return (viewer.viewport.getZoom(true) * viewer.viewport.getContainerSize().x) / main.width;
  }

  function setMode(mode) {
    if (!view.compare) return;
    state.mode = mode;
    document.querySelectorAll("[data-mode]").forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.mode === mode)));
    byId("divider").hidden = mode !== "split";
    draw();
  }

  function setDivider(at) {
    state.at = clamp(at, 0, 1);
    const percent = Math.round(100 * state.at);
    byId("handle").setAttribute("aria-valuenow", String(percent));
    byId("handle").setAttribute("aria-valuetext", `${percent} % before`);
    setMode("split");
  }

  function zoomBy(factor) {
    viewer.viewport.zoomBy(factor);
    viewer.viewport.applyConstraints();
  }

  function panBy(x, y) {
    const bounds = viewer.viewport.getBounds();
    viewer.viewport.panBy(new OpenSeadragon.Point(x * bounds.width, y * bounds.height));
    viewer.viewport.applyConstraints();
  }

  const fit = () => viewer.viewport.goHome();
  const full = () => zoomBy(main.width / viewer.viewport.getContainerSize().x / viewer.viewport.getZoom());

  function togglePanel(name, wanted) {
    const button = document.querySelector(`[data-panel="${name}"]`);
    if (button.hidden) return;
    const open = wanted === undefined ? byId(name).hidden : wanted;
    byId(name).hidden = !open;
    button.setAttribute("aria-expanded", String(open));
  }

  function fillList(list, rows) {
    for (const [name, value] of rows) {
      const [dt, dd] = [document.createElement("dt"), document.createElement("dd")];
      dt.textContent = name;
      dd.textContent = value;
      list.append(dt, dd);
    }
  }

  function fillRecord() {
    const note = byId("record-note");
    if (view.trouble) {
      note.textContent = `The record in this file cannot be read: ${view.trouble}`;
      note.className = "broken";
    } else if (!view.record.length) {
      note.textContent = "This file carries no record of pathorestore.";
    }
    fillList(byId("record").querySelector("dl"), view.record);
    byId("notice").textContent = view.notice;
    byId("notice").hidden = !view.notice;
  }

  function addLayer(picture, index) {
    const make = (tag, parts, fields) => {
      const element = Object.assign(document.createElement(tag), fields);
      element.append(...parts);
      return element;
    };
    const shown = make("input", [], { type: "checkbox" });
    const opacity = make("input", [], { type: "range", min: "0", max: "100", value: "50" });
    const percent = make("span", ["50 %"], { className: "percent" });
    opacity.setAttribute("aria-label", `opacity of ${picture.label}`);
    const apply = () => {
      percent.textContent = `${opacity.value} %`;
      state.layers[index] = shown.checked ? Number(opacity.value) / 100 : 0;
      if (state.items.length) state.items[(view.compare ? 2 : 1) + index].setOpacity(state.layers[index]);
      tellState();
    };
    shown.addEventListener("change", apply);
    opacity.addEventListener("input", () => {
      shown.checked = true;
      apply();
    });
    const parts = [
      make("label", [shown, make("bdi", [picture.label])]),
      make("label", ["opacity", opacity, percent], { className: "opacity" }),
    ];
    if (picture.legend) {
      parts.push(make("p", [String(picture.legend[0]), make("i", []), String(picture.legend[1])], { className: "legend" }));
    }
    byId("layers").querySelector("ul").append(make("li", parts));
    apply();
  }

  function slideHandle() {
    const handle = byId("handle");
    const move = (event) => {
      const box = byId("slide").getBoundingClientRect();
      setDivider((event.clientX - box.left) / box.width);
    };
    handle.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      handle.setPointerCapture(event.pointerId);
      handle.focus();
      event.preventDefault();
    });
    handle.addEventListener("pointermove", (event) => handle.hasPointerCapture(event.pointerId) && move(event));
    handle.addEventListener("keydown", (event) => {
      const to = { ArrowLeft: state.at - 0.02, ArrowRight: state.at + 0.02, PageDown: state.at - 0.1, PageUp: state.at + 0.1, Home: 0, End: 1 }[event.key];
      if (to === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
      setDivider(to);
      event.preventDefault();
      event.stopPropagation();
    });
  }

  const keys = {
    "+": () => zoomBy(1.5), "=": () => zoomBy(1.5), "-": () => zoomBy(1 / 1.5), "_": () => zoomBy(1 / 1.5),
    "0": fit, "1": full,
    "b": () => setMode("before"), "s": () => setMode("split"), "a": () => setMode("after"),
    "[": () => view.compare && setDivider(state.at - 0.02), "]": () => view.compare && setDivider(state.at + 0.02),
    "l": () => togglePanel("layers"), "p": () => togglePanel("record"), "?": () => togglePanel("keys"),
    "arrowleft": () => panBy(-0.15, 0), "arrowright": () => panBy(0.15, 0), "arrowup": () => panBy(0, -0.15), "arrowdown": () => panBy(0, 0.15),
  };

  function onKey(event) {
    const ranged = event.target.type === "range" && (event.key.startsWith("Arrow") || "+-".includes(event.key));
    const action = keys[event.key.toLowerCase()];
    if (!action || ranged || event.ctrlKey || event.altKey || event.metaKey) return;
    action();
    event.preventDefault();
  }

  function onOpen() {
    state.items = view.pictures.map((_, index) => viewer.world.getItemAt(index));
    for (const item of state.items) {
      // what is loaded must not follow the divider, or moving it would show coarse tiles until the fine ones are there
      item.getClippedBounds = item.getBounds;
      item.addHandler("fully-loaded-change", tellState);
    }
    overlays.forEach((_, index) => state.items[(view.compare ? 2 : 1) + index].setOpacity(state.layers[index]));
    byId("scale").hidden = !view.mpp;
    draw();
    tellState();
  }

  function tellState() {
    if (!state.items.length) return;
    const all = state.items.filter((item) => item.getOpacity() > 0).every((item) => item.getFullyLoaded());
    document.documentElement.dataset.state = all ? "shown" : "loading";
  }

  viewer.addHandler("open", onOpen);
  viewer.addHandler("viewport-change", draw);
  viewer.addHandler("resize", draw);
  viewer.addHandler("canvas-key", (event) => { event.preventDefaultAction = true; }); // ours are below
  viewer.addHandler("tile-load-failed", () => {
    byId("trouble").textContent = "Some tiles could not be loaded; the view is not complete.";
    byId("trouble").hidden = false;
  });

  byId("title").textContent = main.label;
  byId("in").addEventListener("click", () => zoomBy(1.5));
  byId("out").addEventListener("click", () => zoomBy(1 / 1.5));
  byId("full").addEventListener("click", full);
  byId("fit").addEventListener("click", fit);
  document.querySelectorAll("[data-mode]").forEach((button) => button.addEventListener("click", () => setMode(button.dataset.mode)));
  document.querySelectorAll("[data-panel]").forEach((button) => button.addEventListener("click", () => togglePanel(button.dataset.panel)));
  document.addEventListener("keydown", onKey);
  fillRecord();
  overlays.forEach(addLayer);
  document.querySelector('[data-panel="layers"]').hidden = !overlays.length;
  byId("modes").hidden = !view.compare;
  document.querySelectorAll(".pair").forEach((row) => { row.hidden = !view.compare; });
  if (view.compare) {
    byId("before-label").querySelector("bdi").textContent = view.pictures[0].label;
    byId("after-label").querySelector("bdi").textContent = main.label;
    slideHandle();
    setDivider(0.5);
  }
  const roomy = window.innerWidth >= 1100;
  togglePanel("layers", overlays.length > 0 && roomy);
  togglePanel("record", roomy && (view.record.length > 0 || view.trouble !== ""));
})();
