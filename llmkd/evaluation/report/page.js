"use strict";
(() => {
  const root = document.documentElement;
  const remembered = (key, value) => {
    try {
      if (value === undefined) return sessionStorage.getItem(key);
      sessionStorage.setItem(key, value);
    } catch { /* a browser may forbid it for files: then nothing is remembered */ }
    return null;
  };

  // Colours: the system's until the button says otherwise.
  const toggle = document.getElementById("scheme");
  const isDark = () =>
    (root.dataset.scheme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const show = () => { toggle.textContent = isDark() ? "Light" : "Dark"; };
  const chosen = remembered("scheme");
  if (chosen) root.dataset.scheme = chosen;
  toggle.addEventListener("click", () => {
    root.dataset.scheme = isDark() ? "light" : "dark";
    remembered("scheme", root.dataset.scheme);
    show();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
  toggle.hidden = false;
  show();

  // The table under a chart is its data.
  const numberOf = (text) => { const value = parseFloat(text); return Number.isFinite(value) ? value : null; };
  const rowsOf = (table, named) => [...table.tBodies[0].rows].flatMap((row) => {
    const [head, ...cells] = row.cells;
    const x = named ? head.textContent : numberOf(head.textContent);
    return cells.flatMap((cell, i) => cell.textContent === "" ? [] : [{
      x, s: `s${i}`, y: numberOf(cell.textContent), low: numberOf(cell.dataset.low), high: numberOf(cell.dataset.high),
    }]);
  });
  const config = JSON.parse(document.getElementById("config").textContent);
  const draw = async (figure) => {
    const spec = JSON.parse(figure.querySelector("script").textContent);
    const named = figure.dataset.kind === "intervals";
    const data = { rows: rowsOf(figure.querySelector("table.data"), named) };
    const plot = figure.querySelector(".plot");
    // ast: without it Vega makes functions from text, which the page's security policy forbids.
    await vegaEmbed(plot, { ...spec, config, datasets: data }, { ast: true, renderer: "svg", actions: false });
    plot.dataset.drawn = data.rows.length;
  };
  // A page that is written anew while a run goes on reads itself again, where the reader was.
  const every = Number(root.dataset.every ?? 0);
  const pause = document.getElementById("pause");
  const topOf = (element) => element.getBoundingClientRect().top;
  const place = () => {
    const section = [...document.querySelectorAll("section")].findLast((s) => topOf(s) <= innerHeight / 2);
    return { open: [...document.querySelectorAll("details")].filter((d) => d.open).map((d) => nameOf(d)),
      section: section?.id ?? null, top: section ? topOf(section) : 0 };
  };
  const nameOf = (details) => (details.closest("section")?.id ?? "") + " " + details.querySelector("summary").textContent;
  function restore() {
    const before = JSON.parse(remembered("place") ?? "null");
    remembered("place", "null");
    if (!before) return;
    root.style.overflowAnchor = "none"; // or the browser moves what is opened here out of sight
    document.querySelectorAll("details").forEach((d) => { if (before.open.includes(nameOf(d))) d.open = true; });
    const section = before.section && document.getElementById(before.section);
    if (section) scrollTo(0, scrollY + topOf(section) - before.top);
  }
  if (every || remembered("place")) history.scrollRestoration = "manual";
  if (every) {
    let paused = remembered("paused") === "yes";
    const say = () => { pause.textContent = paused ? "Resume updates" : "Pause updates"; };
    pause.hidden = false;
    pause.addEventListener("click", () => { paused = !paused; remembered("paused", paused ? "yes" : "no"); say(); });
    say();
    setInterval(() => {
      if (paused || document.hidden) return;
      remembered("place", JSON.stringify(place()));
      location.reload();
    }, every * 1000);
  }

  window.drawn = (async () => {
    for (const figure of document.querySelectorAll("figure.chart")) await draw(figure);
    restore();
    return true;
  })();
})();
