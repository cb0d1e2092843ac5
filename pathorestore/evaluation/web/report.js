"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
  const make = (tag, parts, fields) => {
    const element = Object.assign(document.createElement(tag), fields);
    element.append(...parts);
    return element;
  };

  /* Without this script every figure and every measure is shown; with it, one figure at a time and the measures that are wanted. */

  function pickFigures(group) {
    const figures = [...group.querySelectorAll("figure")];
    const select = make("select", figures.map((figure) => make("option", [figure.dataset.title], {})), {});
    const show = () => figures.forEach((figure, index) => { figure.hidden = index !== select.selectedIndex; });
    select.addEventListener("change", show);
    group.prepend(make("label", ["Measure ", select], { className: "pick" }));
    show();
  }

  function pickColumns() {
    const box = document.querySelector(".columns");
    if (data.columns.length <= 8) return;
    data.columns.forEach(([label, whole], index) => {
      const shown = make("input", [], { type: "checkbox", checked: whole });
      const show = () => document.querySelectorAll(`[data-column="${index}"]`).forEach((part) => { part.hidden = !shown.checked; });
      shown.addEventListener("change", show);
      show();
      box.querySelector("div").append(make("label", [shown, " ", make("bdi", [label], {})], {}));
    });
    box.hidden = false;
  }

  document.querySelectorAll(".figures").forEach((group) => group.querySelectorAll("figure").length > 1 && pickFigures(group));
  pickColumns();
  if (data.sets.length) compare();
  document.documentElement.dataset.state = "shown";

  /* The comparer: two pictures under one transform, each clipped at the divider, so that they cannot come apart. */

  function compare() {
    const stage = byId("stage");
    const sides = ["left", "right"].map((side) => ({
      choice: byId(side), image: byId(`${side}-image`), layer: byId(`${side}-image`).parentElement, label: byId(`${side}-label`),
    }));
    const view = { set: null, at: 0.5, zoom: 1, x: 0, y: 0, fitted: true };

    function chooseCase(index) {
      const wanted = sides.map((side, k) => (view.set ? view.set.pictures[side.choice.selectedIndex].label : data.start[k]));
      view.set = data.sets[index];
      [...byId("cases").children].forEach((item, k) => item.firstChild.setAttribute("aria-current", String(k === index)));
      sides.forEach((side, k) => {
        const labels = view.set.pictures.map((picture) => picture.label);
        side.choice.replaceChildren(...labels.map((label) => make("option", [label], {})));
        side.choice.selectedIndex = Math.max(labels.indexOf(wanted[k]), labels.includes(wanted[k]) ? 0 : Math.min(k, labels.length - 1));
      });
      const missing = wanted.filter((label) => !view.set.pictures.some((picture) => picture.label === label));
      const absent = missing.length ? `; no picture of ${missing.join(" and ")}` : "";
      byId("why").textContent = `${view.set.name}${view.set.degraded_by && `, ${view.set.degraded_by}`}${view.set.why && `: ${view.set.why}`}${absent}`;
      byId("scale").hidden = !view.set.pixel_um;
      showPictures();
      fit();
    }

    function showPictures() {
      const heads = byId("case-scores").querySelectorAll("thead th");
      const chosen = sides.map((side) => side.choice.selectedIndex);
      sides.forEach((side, k) => {
        const picture = view.set.pictures[chosen[k]];
        side.image.src = picture.source;
        side.image.alt = picture.label;
        side.image.style.width = `${view.set.width}px`;
        side.image.style.height = `${view.set.height}px`;
        side.label.querySelector("bdi").textContent = picture.label;
        side.label.querySelector("i").style.background = picture.colour;
        heads[k + 1].textContent = picture.label;
      });
      byId("case-scores").querySelector("tbody").replaceChildren(...view.set.scores.map(([label, ...values]) =>
        make("tr", [make("th", [label], { scope: "row" }), ...chosen.map((index) => make("td", [values[index]], {}))], {})));
      byId("case-scores").hidden = !view.set.scores.length;
    }

    function draw() {
      const width = stage.clientWidth;
      for (const { image } of sides) {
        image.style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.zoom})`;
        image.classList.toggle("magnified", view.zoom > 1);
      }
      const at = view.at * width;
      sides[0].layer.style.clipPath = `inset(0 ${width - at}px 0 0)`;
      sides[1].layer.style.clipPath = `inset(0 0 0 ${at}px)`;
      byId("divider").style.left = `${at}px`;
      sides[0].label.hidden = at < 60;
      sides[1].label.hidden = width - at < 60;
      sides[0].label.style.maxWidth = `${at - 20}px`;
      sides[1].label.style.maxWidth = `${width - at - 20}px`;
      byId("zoom").textContent = `${Math.round(100 * view.zoom)} %`;
      if (view.set.pixel_um) drawScale(view.set.pixel_um);
    }

    function drawScale(pixelUm) {
      const longest = (150 / view.zoom) * pixelUm;
      const decade = 10 ** Math.floor(Math.log10(longest));
      const length = decade * [5, 2, 1].find((step) => step * decade <= longest);
      const text = length >= 1000 ? `${length / 1000} mm` : length >= 1 ? `${length} \u00b5m` : `${Math.round(1000 * length)} nm`;
      byId("scale").querySelector("span").textContent = text;
      byId("scale").querySelector("i").style.width = `${(length / pixelUm) * view.zoom}px`;
      byId("scale").setAttribute("aria-label", `scale bar: ${text}`);
    }

    const fitting = () => Math.min(stage.clientWidth / view.set.width, stage.clientHeight / view.set.height);

    function fit() {
      view.zoom = fitting();
      view.x = (stage.clientWidth - view.zoom * view.set.width) / 2;
      view.y = (stage.clientHeight - view.zoom * view.set.height) / 2;
      view.fitted = true;
      draw();
    }

    /* Zoom so that the point under (x, y) of the stage stays there; by default its middle. */
    function zoomTo(zoom, x = stage.clientWidth / 2, y = stage.clientHeight / 2) {
      const next = clamp(zoom, Math.min(1, fitting()) / 2, 32);
      view.x = x - ((x - view.x) * next) / view.zoom;
      view.y = y - ((y - view.y) * next) / view.zoom;
      view.zoom = next;
      moveBy(0, 0);
    }

    /* A part of the image always stays in sight. */
    function moveBy(x, y) {
      const [width, height] = [view.zoom * view.set.width, view.zoom * view.set.height];
      view.x = clamp(view.x + x, Math.min(60, stage.clientWidth / 2) - width, stage.clientWidth - 60);
      view.y = clamp(view.y + y, Math.min(60, stage.clientHeight / 2) - height, stage.clientHeight - 60);
      view.fitted = false;
      draw();
    }

    function divideAt(at) {
      view.at = clamp(at, 0, 1);
      const percent = Math.round(100 * view.at);
      byId("handle").setAttribute("aria-valuenow", String(percent));
      byId("handle").setAttribute("aria-valuetext", `${percent} % left`);
      draw();
    }

    function dragged(element, onMove) {
      element.addEventListener("pointerdown", (event) => {
        if (event.button !== 0) return;
        element.setPointerCapture(event.pointerId);
        element.focus({ preventScroll: true });
        event.preventDefault();
        event.stopPropagation(); // the handle lies on the stage
      });
      element.addEventListener("pointermove", (event) => element.hasPointerCapture(event.pointerId) && onMove(event));
    }

    const actions = {
      "+": () => zoomTo(1.5 * view.zoom), "=": () => zoomTo(1.5 * view.zoom), "-": () => zoomTo(view.zoom / 1.5), "_": () => zoomTo(view.zoom / 1.5),
      "0": fit, "1": () => zoomTo(1),
      "[": () => divideAt(view.at - 0.02), "]": () => divideAt(view.at + 0.02),
      ArrowLeft: () => moveBy(60, 0), ArrowRight: () => moveBy(-60, 0), ArrowUp: () => moveBy(0, 60), ArrowDown: () => moveBy(0, -60),
    };

    function onKey(event) {
      const to = { ArrowLeft: view.at - 0.02, ArrowRight: view.at + 0.02, ArrowDown: view.at - 0.02, ArrowUp: view.at + 0.02,
        PageDown: view.at - 0.1, PageUp: view.at + 0.1, Home: 0, End: 1 }[event.key];
      const slide = event.target.id === "handle" && to !== undefined;
      if (event.ctrlKey || event.altKey || event.metaKey || !(slide || actions[event.key])) return;
      if (slide) divideAt(to);
      else actions[event.key]();
      event.preventDefault();
    }

    let scrolled = -Infinity;
    window.addEventListener("scroll", () => { scrolled = performance.now(); }, { passive: true });
    stage.addEventListener("wheel", (event) => {
      if (event.ctrlKey || performance.now() - scrolled < 250) return; // who scrolls past the stage goes on scrolling
      const box = stage.getBoundingClientRect();
      zoomTo(view.zoom * 1.0015 ** -clamp(event.deltaY * (event.deltaMode === 1 ? 32 : 1), -400, 400), event.clientX - box.left, event.clientY - box.top);
      event.preventDefault();
    }, { passive: false });
    stage.addEventListener("dblclick", (event) => {
      const box = stage.getBoundingClientRect();
      if (event.target.id !== "handle") zoomTo(2 * view.zoom, event.clientX - box.left, event.clientY - box.top);
    });
    stage.addEventListener("keydown", onKey);
    dragged(stage, (event) => moveBy(event.movementX, event.movementY));
    dragged(byId("handle"), (event) => divideAt((event.clientX - stage.getBoundingClientRect().left) / stage.clientWidth));
    new ResizeObserver(() => (view.fitted ? fit() : draw())).observe(stage);

    byId("in").addEventListener("click", actions["+"]);
    byId("out").addEventListener("click", actions["-"]);
    byId("full").addEventListener("click", actions["1"]);
    byId("fit").addEventListener("click", fit);
    byId("swap").addEventListener("click", () => {
      const [left, right] = sides.map((side) => side.choice.selectedIndex);
      [sides[0].choice.selectedIndex, sides[1].choice.selectedIndex] = [right, left];
      showPictures();
      draw();
    });
    sides.forEach((side) => side.choice.addEventListener("change", () => { showPictures(); draw(); }));

    data.sets.forEach((set, index) => {
      const parts = [make("bdi", [set.name], {}), make("small", [[set.degraded_by, set.why].filter(Boolean).join(", ")], {})];
      const button = make("button", parts, { type: "button" });
      button.addEventListener("click", () => chooseCase(index));
      byId("cases").append(make("li", [button], {}));
    });
    byId("comparer").hidden = false;
    chooseCase(0);
    divideAt(0.5);
  }
})();
