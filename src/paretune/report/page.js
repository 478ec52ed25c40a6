"use strict";
(() => {
  const data = JSON.parse(document.getElementById("paretune-data").textContent);
  const options = {
    mode: "vega-lite",
    renderer: "svg",
    actions: false,
    config: data.config,
    tooltip: { disableDefaultStyle: true },
  };
  const embed = async (id, spec) => {
    const place = document.getElementById(id);
    const result = await vegaEmbed(place, { ...spec, width: "container" }, options);
    return result.view;
  };

  const wire = (section, view) => {
    const picks = [...section.querySelectorAll(".pick")];
    let isolated = "";
    const isolate = (name) => {
      isolated = name === isolated ? "" : name;
      for (const pick of picks) pick.setAttribute("aria-pressed", String(pick.dataset.strategy === isolated));
      view.signal("isolated", isolated).runAsync();
    };
    for (const pick of picks) pick.addEventListener("click", () => isolate(pick.dataset.strategy));
    view.addEventListener("click", (event, item) => {
      const name = item && item.datum && item.datum.strategy;
      if (name) isolate(name);
      else if (isolated) isolate(isolated);
    });
    section.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && isolated) isolate(isolated);
    });
    const zoom = section.querySelector(".zoom");
    zoom.addEventListener("click", () => {
      const whole = zoom.getAttribute("aria-pressed") !== "true";
      zoom.setAttribute("aria-pressed", String(whole));
      view.signal("whole", whole).runAsync();
    });
  };

  const start = async () => {
    for (const [id, spec] of Object.entries(data.plots)) {
      const view = await embed(id, spec);
      if (id.startsWith("frontier-")) wire(document.getElementById(id).closest("section"), view);
    }
    document.documentElement.dataset.ready = "true";
  };
  start();
})();
