"use strict";
(() => {
  const byId = (id) => document.getElementById(id);

  // Figures: drawn one after another while the browser is idle, in the colours of the page.
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const plots = [...document.querySelectorAll("[data-figure]")];
  const colors = () => {
    const style = getComputedStyle(document.documentElement);
    return (name) => style.getPropertyValue(name).trim();
  };
  const template = () => {
    const color = colors();
    const axis = {
      gridcolor: color("--grid"), linecolor: color("--line"), zerolinecolor: color("--grid"),
      tickcolor: color("--line"), automargin: true,
    };
    return { layout: {
      paper_bgcolor: color("--page"), plot_bgcolor: color("--page"), font: { color: color("--text"), size: 13 },
      colorway: ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"],
      xaxis: axis, yaxis: axis,
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
      hoverlabel: { bgcolor: color("--card"), bordercolor: color("--line"), font: { color: color("--text") } },
      margin: { l: 55, r: 15, t: 20, b: 45 },
    } };
  };
  const config = { responsive: true, displaylogo: false, displayModeBar: false };
  const draw = (plot) => {
    const figure = JSON.parse(byId(plot.dataset.figure).textContent);
    const layout = { ...figure.layout, template: template(), autosize: true };
    layout.height = layout.height || parseInt(plot.style.minHeight, 10);
    delete layout.width;
    return Plotly.newPlot(plot, figure.data, layout, config).then(() => { plot.dataset.drawn = "true"; });
  };
  const idle = window.requestIdleCallback || ((work) => setTimeout(work, 1));
  const drawAll = (rest) => {
    if (!rest.length) { document.documentElement.dataset.ready = "true"; return; }
    draw(rest[0]).finally(() => idle(() => drawAll(rest.slice(1))));
  };
  drawAll(plots);
  dark.addEventListener("change", () => {
    for (const plot of plots) if (plot.dataset.drawn) Plotly.relayout(plot, { template: template() });
  });

  // Sorting: missing values stay last in both directions.
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.querySelectorAll("thead th")];
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      const isNumber = head.dataset.type === "number";
      const value = (row) => row.cells[column].dataset.value;
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        const order = isNumber ? x - y : x.localeCompare(y, undefined, { numeric: true });
        return up ? order : -order;
      });
      table.tBodies[0].append(...rows);
      for (const other of heads) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      byId("sorted").textContent = `sorted by ${head.innerText.trim()}, ${up ? "ascending" : "descending"}`;
    }));
  }

  // Copying, also from a file, where the clipboard may be refused.
  const copy = async (text) => {
    try { await navigator.clipboard.writeText(text); return true; } catch { /* the older way below */ }
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  };
  for (const button of document.querySelectorAll(".copy")) {
    const label = button.firstChild;
    button.addEventListener("click", async () => {
      const done = await copy(byId(button.dataset.copy).textContent);
      button.focus();
      label.textContent = done ? "Copied" : "Select it and copy";
      setTimeout(() => { label.textContent = "Copy"; }, 2000);
    });
  }

  // One sound at a time.
  document.addEventListener("play", (event) => {
    for (const audio of document.querySelectorAll("audio")) if (audio !== event.target) audio.pause();
  }, true);

  // Blind comparison; what was chosen stays in this page.
  const start = byId("blind-start");
  if (!start) return;
  const COMPARED = ["best", "second", "nearest", "mean"];
  const shuffled = (list) => {
    const copied = [...list];
    for (let i = copied.length - 1; i > 0; i -= 1) {
      const j = Math.floor(Math.random() * (i + 1));
      [copied[i], copied[j]] = [copied[j], copied[i]];
    }
    return copied;
  };
  const names = {};  // title by key
  for (const sound of document.querySelectorAll(".clip .sound")) {
    names[sound.dataset.key] ??= sound.querySelector("strong").textContent;
  }
  const rounds = [...document.querySelectorAll(".clip")].map((clip) => ({
    name: clip.dataset.clip,
    sounds: Object.fromEntries([...clip.querySelectorAll(".sound")].map((sound) => [sound.dataset.key, sound])),
  })).filter((round) => COMPARED.filter((key) => round.sounds[key]).length > 1);
  const tally = {};
  let waiting = [];
  const soundOf = (sound, title) => {
    const figure = document.createElement("figure");
    figure.className = "sound";
    const caption = document.createElement("figcaption");
    const strong = document.createElement("strong");
    strong.textContent = title;
    caption.append(strong);
    const audio = document.createElement("audio");
    audio.controls = true;
    audio.src = sound.querySelector("audio").src;
    audio.setAttribute("aria-label", title);
    figure.append(caption, audio);
    return figure;
  };
  const showTally = () => {
    const table = byId("blind-tally");
    table.hidden = false;
    table.tBodies[0].replaceChildren(...Object.entries(tally).sort((a, b) => b[1].chosen - a[1].chosen).map(([key, counts]) => {
      const row = document.createElement("tr");
      const head = document.createElement("th");
      head.scope = "row";
      head.textContent = names[key];
      row.append(head);
      for (const count of [counts.chosen, counts.offered]) {
        const cell = row.insertCell();
        cell.className = "num";
        cell.textContent = count;
      }
      return row;
    }));
  };
  const ask = () => {
    if (!waiting.length) waiting = shuffled(rounds);
    const round = waiting.pop();
    const keys = shuffled(COMPARED.filter((key) => round.sounds[key]));
    const known = round.sounds.reference ? "reference" : "heard";
    byId("blind-task").textContent = `${round.name}: which of the voices below sounds most like the ${known === "heard" ? "voice that was heard" : "reference"}?`;
    byId("blind-reference").replaceChildren(...(round.sounds[known] ? [soundOf(round.sounds[known], known === "heard" ? "Heard" : "Reference")] : []));
    byId("blind-result").textContent = "";
    byId("blind-next").hidden = true;
    byId("blind-choices").replaceChildren(...keys.map((key, index) => {
      const letter = "ABCD"[index];
      const figure = soundOf(round.sounds[key], letter);
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = `Choose ${letter}`;
      button.addEventListener("click", () => {
        for (const other of keys) {
          tally[other] ??= { chosen: 0, offered: 0 };
          tally[other].offered += 1;
        }
        tally[key].chosen += 1;
        byId("blind-choices").querySelectorAll("button").forEach((each) => each.remove());
        byId("blind-choices").querySelectorAll("strong").forEach((each, n) => {
          each.textContent = `${"ABCD"[n]}: ${names[keys[n]]}${n === index ? ", your choice" : ""}`;
        });
        byId("blind-result").textContent = `You chose ${letter}, which is: ${names[key]}.`;
        byId("blind-next").hidden = false;
        byId("blind-next").focus();
        showTally();
      });
      figure.append(button);
      return figure;
    }));
  };
  if (!rounds.length) { byId("blind").hidden = true; return; }
  start.addEventListener("click", () => {
    const opens = byId("blind-panel").hidden;
    byId("blind-panel").hidden = !opens;
    start.setAttribute("aria-expanded", String(opens));
    start.textContent = opens ? "End the blind comparison" : "Compare blind";
    if (opens) ask();
  });
  byId("blind-next").addEventListener("click", () => { ask(); byId("blind-task").scrollIntoView({ block: "nearest" }); });
})();
