// Draws the figures in the colours of the page, shows an image's scores under pointer and focus, and readies the page for paper.
(() => {
  const root = document.documentElement;
  const coloured = (value, css) =>
    typeof value === "string" ? value.replace(/^var\((--[a-z]+)\)$/, (_, name) => css.getPropertyValue(name).trim())
    : Array.isArray(value) ? value.map((item) => coloured(item, css))
    : value && typeof value === "object" ? Object.fromEntries(Object.entries(value).map(([k, v]) => [k, coloured(v, css)]))
    : value;
  const draw = (width) => {
    for (const box of document.querySelectorAll(".chart")) {
      const figure = coloured(JSON.parse(box.previousElementSibling.textContent), getComputedStyle(root));
      if (width) figure.layout.width = box.closest(".pair-of-charts") ? Math.floor(width / 2) - 16 : width;
      Plotly.react(box, figure.data, figure.layout, { displayModeBar: false, responsive: !width });
    }
  };

  // Figures: again when the reader switches between light and dark, and in dark ink on the width of a sheet for paper.
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw());
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    for (const part of closed) part.open = true;
    root.classList.add("on-paper");
    draw(680);
  });
  addEventListener("afterprint", () => {
    for (const part of closed) part.open = false;
    root.classList.remove("on-paper");
    draw();
  });

  // An image's scores, with the training image nearest to it; they stay while the pointer is on them, and go with Escape.
  const tip = document.body.appendChild(document.createElement("div"));
  tip.className = "tip";
  tip.hidden = true;
  let shown = null, leaving = 0;
  const picture = (classes, sheet, said) => {
    const box = document.createElement("span");
    box.className = sheet;
    const image = box.appendChild(document.createElement("span"));
    image.className = "tile " + classes;
    box.append(said);
    return box;
  };
  const hide = () => { tip.hidden = true; shown = null; };
  const show = (tile) => {
    clearTimeout(leaving);
    if (shown === tile) return;
    shown = tile;
    tip.replaceChildren();
    if (tile.dataset.near) {
      const sheet = [...tile.closest("[class*=sheet-]").classList].find((name) => name.startsWith("sheet-"));
      const own = [...tile.classList].filter((name) => name !== "tile").join(" ");
      const pair = tip.appendChild(document.createElement("div"));
      pair.className = "pair";
      pair.append(picture(own, sheet, "sample"), picture(tile.dataset.near, sheet, "nearest real"));
    }
    tip.appendChild(document.createElement("p")).textContent = tile.getAttribute("aria-label");
    tip.hidden = false;
    const at = tile.getBoundingClientRect(), size = tip.getBoundingClientRect(), wide = root.clientWidth;
    const below = at.bottom + size.height + 10 < root.clientHeight || at.top < size.height + 10;
    tip.style.left = Math.max(8, Math.min(at.left, wide - size.width - 12)) + scrollX + "px";
    tip.style.top = (below ? at.bottom + 6 : at.top - size.height - 6) + scrollY + "px";
  };
  const tileOf = (event) => (event.target.closest ? event.target.closest(".tile[aria-label]") : null);
  const later = () => { clearTimeout(leaving); leaving = setTimeout(hide, 120); };
  for (const tile of document.querySelectorAll(".tile[title]")) {
    tile.setAttribute("aria-label", tile.title);
    tile.removeAttribute("title");
  }
  addEventListener("pointerover", (event) => {
    const tile = tileOf(event);
    if (tile) show(tile);
    else if (tip.contains(event.target)) clearTimeout(leaving);
    else if (shown && shown !== document.activeElement) later();
  });
  addEventListener("focusin", (event) => { const tile = tileOf(event); if (tile) show(tile); else hide(); });
  addEventListener("focusout", later);
  addEventListener("click", (event) => { const tile = tileOf(event); if (tile) { tile.focus(); show(tile); } });

  // One stop of the Tab key for each row of images; within it the arrow keys, Home and End.
  const groups = new Map();
  const groupOf = (tile) => tile.closest(".pairs, .worst") || tile.closest(".tiles");
  for (const tile of document.querySelectorAll(".tile[tabindex]")) {
    const group = groupOf(tile);
    if (!groups.has(group)) groups.set(group, []);
    groups.get(group).push(tile);
  }
  for (const tiles of groups.values()) tiles.forEach((tile, n) => { tile.tabIndex = n ? -1 : 0; });
  addEventListener("keydown", (event) => {
    if (event.key === "Escape") return hide();
    const tile = tileOf(event);
    const tiles = tile && groups.get(groupOf(tile));
    if (!tiles) return;
    const at = tiles.indexOf(tile), last = tiles.length - 1;
    const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const next = tiles[Math.max(0, Math.min(last, to))];
    tile.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
})();
