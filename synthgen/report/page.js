// Draws the figures, in the colours of the page: again when the reader switches between light and dark.
(() => {
  const style = () => getComputedStyle(document.documentElement);
  const coloured = (value, css) =>
    typeof value === "string" ? value.replace(/^var\((--[a-z]+)\)$/, (_, name) => css.getPropertyValue(name).trim())
    : Array.isArray(value) ? value.map((item) => coloured(item, css))
    : value && typeof value === "object" ? Object.fromEntries(Object.entries(value).map(([k, v]) => [k, coloured(v, css)]))
    : value;
  const draw = () => {
    for (const box of document.querySelectorAll(".chart")) {
      const figure = coloured(JSON.parse(box.previousElementSibling.textContent), style());
      Plotly.react(box, figure.data, figure.layout, { displayModeBar: false, responsive: true });
    }
  };
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
