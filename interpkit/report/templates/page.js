"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const read = (id) => JSON.parse(byId(id).textContent);
  const make = (tag, parent, text, className) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (className) element.className = className;
    parent.append(element);
    return element;
  };

  // Light or dark: follow the system until the reader chooses.
  const root = document.documentElement;
  const remembered = (value) => {
    try {
      return value === undefined ? localStorage.getItem("interpkit-theme") : localStorage.setItem("interpkit-theme", value);
    } catch { return null; }  // a page opened from disk may not have storage
  };
  if (["light", "dark"].includes(remembered())) root.dataset.theme = remembered();
  byId("theme").addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    remembered(root.dataset.theme);
  });

  const matrix = document.querySelector(".matrix");
  if (matrix && [...matrix.querySelectorAll("thead th")].some((th) => th.textContent.length > 4)) matrix.classList.add("tilted");
  for (const img of document.querySelectorAll(".grid img")) {  // show small pictures pixelated, not blurred
    if (img.getAttribute("width") <= 64) root.classList.add("small");
    break;
  }

  // Classes: searched by words of their names or by number, and sorted by a figure; those without it stand last.
  const groups = [...document.querySelectorAll(".class")];
  const tools = byId("tools"), search = byId("search"), sort = byId("sort");
  const label = (group) => Number(group.dataset.class);
  const name = (group) => group.querySelector("h3").firstChild.textContent.trim().toLowerCase();
  const found = (group) => {
    const wanted = (search?.value ?? "").trim().toLowerCase();
    return wanted === group.dataset.class || wanted.split(/\s+/).every((word) => name(group).includes(word));
  };
  let apply = () => {
    for (const group of groups) group.hidden = !found(group);
    byId("count").textContent = `${groups.filter((group) => !group.hidden).length.toLocaleString("en")} classes`;
  };
  if (tools) {
    tools.hidden = false;  // without this script the page is a plain list
    tools.addEventListener("submit", (event) => event.preventDefault());
  }
  if (search) {
    search.addEventListener("input", () => apply(false));
    sort.addEventListener("change", () => {
      const [by, way] = sort.value.split(" ");
      const figure = (group) => parseFloat(group.dataset.figures.split(" ")[by]);
      const orders = {
        number: () => 0,
        name: (a, b) => name(a).localeCompare(name(b)),
        up: (a, b) => figure(a) - figure(b),
        down: (a, b) => figure(b) - figure(a),
      };
      const last = (group) => way !== undefined && Number.isNaN(figure(group));
      groups.sort((a, b) => last(a) - last(b) || orders[way ?? by](a, b) || label(a) - label(b));
      groups[0].parentElement.append(...groups);
    });
  }

  const dialog = byId("sample");
  if (!dialog) {
    if (search) apply();
    return;
  }
  const only = byId("class"), order = byId("order"), wrong = byId("wrong");
  const number = (sample, name) => Number(sample.dataset[name]);
  const orders = {
    drawn: (a, b) => number(a, "row") - number(b, "row"),
    up: (a, b) => number(a, "sure") - number(b, "sure"),
    down: (a, b) => number(b, "sure") - number(a, "sure"),
  };
  let names, data, current;  // parsed when they are first needed, since they may be megabytes
  const byFigure = (name) => {
    const values = (data ??= read("data")).figures[name];
    return (a, b) => values[number(b, "row")] - values[number(a, "row")];
  };
  const shown = (sample) => sample.offsetParent !== null || !(sample.hidden || sample.closest(".class").hidden);

  // The gallery: filter by class and by error, order by confidence.
  apply = (sorted) => {
    let count = 0;
    for (const group of groups) {
      const grid = group.querySelector(".grid");
      const samples = [...grid.children];
      group.hidden = !found(group) || (only.value !== "" && group.dataset.class !== only.value);
      let inside = 0;
      for (const sample of samples) {
        sample.hidden = wrong.checked && !sample.classList.contains("wrong");
        if (!sample.hidden) inside += 1;
      }
      if (sorted) grid.append(...samples.sort(orders[order.value] ?? byFigure(order.value)));
      group.hidden = group.hidden || inside === 0;
      // Show all samples of a single class or a filtered list.
      const open = group.classList.contains("opened-up") || only.value !== "" || wrong.checked;
      grid.classList.toggle("all", open);
      group.querySelector(".more").hidden = open || samples.length <= (matchMedia("(max-width: 40rem)").matches ? 15 : 24);
      if (!group.hidden) count += inside;
    }
    byId("count").textContent = `${count.toLocaleString("en")} ${count === 1 ? "sample" : "samples"}`;
  };
  only.addEventListener("change", () => apply(false));
  wrong.addEventListener("change", () => apply(false));
  order.addEventListener("change", () => apply(true));
  for (const group of groups) {
    group.querySelector(".more").addEventListener("click", () => {
      group.classList.add("opened-up");
      apply(false);
      group.querySelector(".sample").focus();
    });
  }
  apply(false);

  // One sample, large.
  const shares = (title, rows, parent) => {
    make("h3", parent, title);
    const list = make("div", parent, undefined, "shares");
    for (const [label, share] of rows) {
      make("span", list, names[label]).title = names[label];
      const bar = make("div", make("div", list, undefined, "track"));
      bar.style.width = `${100 * share}%`;
      make("span", list, share.toFixed(3));
    }
  };
  const picture = (uri, alt, caption, parent) => {
    const figure = make("figure", parent);
    const img = make("img", figure);
    img.src = uri;
    img.alt = alt;
    make("figcaption", figure, caption);
  };
  const open = (sample) => {
    data ??= read("data");
    names ??= read("names");
    current = sample;
    const row = number(sample, "row"), asked = names[sample.closest(".class").dataset.class], got = names[number(sample, "got")];
    const img = sample.querySelector("img"), sure = (100 * number(sample, "sure")).toFixed(1);
    byId("sample-title").textContent = `Made for ${asked}`;
    byId("sample-said").textContent =
      `Sample ${row + 1}. The target ${data.multi_label ? "" : `classifies it as ${got} and `}assigns ${asked} a probability of ${sure}%.` +
      Object.entries(data.figures).map(([name, values]) => ` ${name.replace(".", ": ").replaceAll("_", " ")} ${values[row].toPrecision(3)}.`).join("");
    const beside = byId("sample-beside"), list = byId("sample-shares");
    for (const part of [byId("sample-picture"), beside, list]) part.replaceChildren();
    picture(img.src, img.alt, "The sample", byId("sample-picture"));
    for (const kind of data.beside) {
      const place = kind.places[row];
      if (place < 0) continue;
      const note = kind.notes[row];
      picture(kind.uris[place], `${kind.title} of sample ${row + 1}`, note ? `${kind.title}: ${note}` : kind.title, beside);
    }
    if (data.shares.length) shares("The target's probabilities", data.shares[row], list);
    if (data.asked.length) shares("The condition asked for", data.asked[row], list);
    if (!dialog.open) dialog.showModal();
  };
  const step = (from, by) => {
    const all = [...document.querySelectorAll(".class:not([hidden]) .sample:not([hidden])")].filter(
      (sample) => dialog.open || sample.offsetParent !== null || shown(sample),
    );
    return all[all.indexOf(from) + by];
  };
  document.addEventListener("click", (event) => {
    const sample = event.target.closest?.("button.sample");
    if (sample) open(sample);
    if (event.target === dialog) dialog.close();  // a click outside closes it
  });
  byId("close").addEventListener("click", () => dialog.close());
  const go = (by) => { const next = step(current, by); if (next) open(next); };
  byId("previous").addEventListener("click", () => go(-1));
  byId("next").addEventListener("click", () => go(1));
  dialog.addEventListener("close", () => current?.focus());
  document.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || event.altKey || event.ctrlKey || event.metaKey) return;
    if (dialog.open) { go(by); event.preventDefault(); return; }
    const sample = document.activeElement.closest?.("button.sample");
    const next = sample && step(sample, by);
    if (next) { next.focus(); event.preventDefault(); }
  });

  for (const choice of document.querySelectorAll("select.choose")) {
    const rows = [...choice.closest("section").querySelectorAll(".chosen")];
    choice.addEventListener("change", () => rows.forEach((row, place) => { row.hidden = String(place) !== choice.value; }));
  }
})();
