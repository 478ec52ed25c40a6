"use strict";
(() => {
  const packed = JSON.parse(document.getElementById("paretune-data").textContent);
  // Undoes packing.py. Plots get rows of their own: the library marks the objects that it is given.
  const unpack = (node) => {
    if (Array.isArray(node)) return node.map(unpack);
    if (node === null || typeof node !== "object") return node;
    if ("$" in node) return unpack(packed.shared[node.$]);
    if ("$levels" in node) {
      const levels = unpack(node.$levels);
      return unpack(node.$at).map((at) => levels[at]);
    }
    if ("$table" in node) {
      const columns = Object.entries(unpack(node.$table));
      return columns[0][1].map((_, i) => Object.fromEntries(columns.map(([name, values]) => [name, values[i]])));
    }
    return Object.fromEntries(Object.entries(node).map(([key, item]) => [key, unpack(item)]));
  };
  const data = unpack(packed.value);
  const options = {
    mode: "vega-lite",
    renderer: "svg",
    actions: false,
    config: data.config,
    tooltip: { disableDefaultStyle: true },
  };

  // One strategy alone, in every plot.
  const views = new Map();
  let isolated = "";
  const tell = (id, name, value) => {
    const known = (data.plots[id].params || []).some((parameter) => parameter.name === name);
    if (known) views.get(id).signal(name, value).runAsync();
  };
  const isolate = (name) => {
    isolated = name === isolated ? "" : name;
    for (const pick of document.querySelectorAll(".pick")) {
      pick.setAttribute("aria-pressed", String(pick.dataset.strategy === isolated));
    }
    for (const id of views.keys()) tell(id, "isolated", isolated);
  };

  // The rows of a plot as a table and as a file.
  const SHOWN = 500;
  const number = (options) => {
    const made = new Intl.NumberFormat("en-GB", options);
    return (value) => made.format(value).replace("-", "−");
  };
  const digits = (count) => ({ minimumFractionDigits: count, maximumFractionDigits: count });
  const FORMATS = {
    "": String,
    ",": number({}),
    ",.4~r": number({ maximumSignificantDigits: 4 }),
    ".4f": number(digits(4)),
    "+.4f": number({ signDisplay: "exceptZero", ...digits(4) }),
    ".0%": number({ style: "percent", ...digits(0) }),
    ".1%": number({ style: "percent", ...digits(1) }),
  };
  const element = (name, text, attributes = {}) => {
    const made = document.createElement(name);
    made.textContent = text;
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  };
  const fill = (behind, rows, columns) => {
    const formats = columns.map(([, , format]) => FORMATS[format] || String);
    const table = element("table", "");
    table.append(element("caption", "The numbers of this picture"));
    const head = table.createTHead().insertRow();
    for (const [, title] of columns) head.append(element("th", title, { scope: "col" }));
    const body = table.createTBody();
    for (const row of rows.slice(0, SHOWN)) {
      const line = body.insertRow();
      columns.forEach(([field], i) => {
        const value = row[field];
        const text = value === null || value === undefined ? "" : formats[i](value);
        line.append(i ? element("td", text) : element("th", text, { scope: "row" }));
      });
    }
    const scroll = element("div", "", { class: "scroll", role: "region", tabindex: "0", "aria-label": "Table" });
    scroll.append(table);
    behind.append(scroll);
    if (rows.length > SHOWN) {
      behind.append(element("p", `The first ${SHOWN} of ${rows.length} rows; the file has all.`, { class: "small" }));
    }
  };
  const csv = (rows, columns) => {
    // A text that a spreadsheet would run as a formula gets an apostrophe.
    const harmless = (value) => {
      const formula = /^'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]/.test(value) && !/^[+-]?[\d.]+(e[+-]?\d+)?( [+-]?[\d.]+(e[+-]?\d+)?)*$/.test(value);
      return formula ? `'${value}` : value;
    };
    const quoted = (value) => {
      const known = value === null || value === undefined ? "" : value;
      const text = typeof known === "string" ? harmless(known) : String(known);
      return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    };
    const lines = [columns.map(([field]) => field), ...rows.map((row) => columns.map(([field]) => row[field]))];
    return lines.map((line) => line.map(quoted).join(",") + "\n").join("");
  };
  const save = (name, text) => {
    const url = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    element("a", "", { href: url, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  };
  const putBehind = (place, id, spec) => {
    const told = spec.usermeta && spec.usermeta.table;
    if (!told) return;
    const rows = spec.datasets[told.data];
    const behind = element("details", "", { class: "behind" });
    behind.append(element("summary", "The numbers of this picture"));
    const button = element("button", "Save as CSV", { type: "button", class: "save" });
    button.addEventListener("click", () => save(`${id}.csv`, csv(rows, told.columns)));
    behind.append(button);
    behind.addEventListener("toggle", () => {
      if (behind.open && !behind.querySelector("table")) fill(behind, rows, told.columns);
    });
    place.parentElement.append(behind);
  };

  // Plots are drawn when their place is open, one after the other.
  const embed = async (place) => {
    const id = place.id;
    views.set(id, null);
    putBehind(place, id, data.plots[id]);
    const { view } = await vegaEmbed(place, { ...data.plots[id], width: "container" }, options);
    views.set(id, view);
    view.addEventListener("click", (event, item) => {
      const name = item && item.datum && item.datum.strategy;
      if (name) isolate(name);
      else if (isolated) isolate(isolated);
    });
    if (isolated) tell(id, "isolated", isolated);
  };
  const draw = async (root) => {
    for (const place of root.querySelectorAll(".chart")) {
      if (place.id in data.plots && !views.has(place.id) && !place.closest("details:not([open])")) await embed(place);
    }
  };
  const reveal = () => {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const fold = target && (target.matches("details") ? target : target.querySelector("details.fold"));
    if (fold) fold.open = true;
  };

  for (const pick of document.querySelectorAll(".pick")) {
    pick.addEventListener("click", () => isolate(pick.dataset.strategy));
  }
  for (const zoom of document.querySelectorAll(".zoom")) {
    zoom.addEventListener("click", () => {
      const whole = zoom.getAttribute("aria-pressed") !== "true";
      zoom.setAttribute("aria-pressed", String(whole));
      tell(zoom.closest("figure").querySelector(".chart").id, "whole", whole);
    });
  }
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && isolated) isolate(isolated);
  });
  document.addEventListener("toggle", (event) => event.target.open && draw(event.target), true);
  window.addEventListener("hashchange", reveal);

  // Paper shows everything.
  let folded = [];
  window.addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details.fold:not([open])")];
    for (const fold of folded) fold.open = true;
    draw(document);
  });
  window.addEventListener("afterprint", () => {
    for (const fold of folded) fold.open = false;
  });

  reveal();
  draw(document).then(() => {
    document.documentElement.dataset.ready = "true";
  });
})();
