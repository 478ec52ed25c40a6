"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const percent = (value) => (value === null ? "" : `${(100 * value).toFixed(1)} %`);
  const number = (value) => (value === null ? "" : Number(value.toPrecision(4)).toString());

  const duration = (seconds) => {
    if (seconds === null) return "";
    if (seconds < 90) return `${Math.max(1, Math.round(seconds))}\u00a0s`;
    if (seconds < 5400) return `${Math.round(seconds / 60)}\u00a0min`;
    return `${(seconds / 3600).toFixed(1)}\u00a0h`;
  };

  const element = (tag, text = "", className = "") => {
    const made = document.createElement(tag);
    made.textContent = text;
    if (className) made.className = className;
    return made;
  };

  const bar = (run) => {
    const made = element("progress");
    made.max = run.total;
    made.value = run.step;
    made.setAttribute("aria-label", `${run.step} of ${run.total} steps`);
    return made;
  };

  const row = (run) => {
    const made = element("tr");
    made.dataset.run = run.name;
    const who = element("td", run.strategy || run.name);
    const seed = run.seed === null ? "" : `seed ${run.seed} · `;
    who.append(element("small", run.problem ? run.problem : `${seed}${run.name}`));
    const state = element("td", run.state, run.state);
    if (run.state === "running" && run.quiet_seconds > 60) {
      state.append(element("small", `quiet for ${duration(run.quiet_seconds)}`));
    }
    const steps = element("td", "", "steps");
    if (run.state !== "waiting" && run.state !== "damaged") {
      steps.textContent = run.total ? `${run.step} / ${run.total}` : `${run.step}`;
      if (run.total && run.state === "running") steps.append(bar(run));
    }
    const numbers = [
      run.epsilon === null ? "" : `${number(255 * run.epsilon)}/255`,
      number(run.loss),
      percent(run.clean),
      percent(run.robust),
      duration(run.seconds_left),
    ];
    made.append(who, state, steps, ...numbers.map((text) => element("td", text, "number")));
    return made;
  };

  const all = (status) => Object.values(status.counts).reduce((sum, count) => sum + count, 0);

  const headline = (status) => {
    const { counts } = status;
    if (status.runs.length === 0) return "Waiting for the first run";
    const parts = [`${counts.done} of ${all(status)} runs done`];
    for (const state of ["running", "waiting", "damaged"]) {
      if (counts[state]) parts.push(`${counts[state]} ${state}`);
    }
    if (status.seconds_left !== null) parts.push(`about ${duration(status.seconds_left)}\u00a0left`);
    return parts.join(", ");
  };

  const showRuns = (status) => {
    const text = headline(status);
    byId("headline").textContent = text;
    document.title = `${text} – paretune watch`;
    byId("directory").textContent = status.directory;
    byId("progress").hidden = status.runs.length === 0;
    byId("runs").replaceChildren(...status.runs.map(row));
    const more = all(status) - status.runs.length;
    byId("more").hidden = more === 0;
    byId("more").textContent = `… and ${more} more: waiting and done ones, after those that are damaged or running.`;
    const whole = byId("whole");
    whole.hidden = status.steps_total === null;
    whole.max = status.steps_total || 1;
    whole.value = status.steps;
  };

  // A new report is loaded out of sight and takes the place of the old one when it is drawn, so that nothing jumps.
  let shown = 0;
  let next = null;
  const swap = () => {
    for (const old of document.querySelectorAll("iframe")) if (old !== next) old.remove();
    next.classList.remove("loading");
    shown = Number(next.dataset.version);
    next = null;
  };
  addEventListener("message", (event) => {
    const frame = [...document.querySelectorAll("iframe")].find((each) => each.contentWindow === event.source);
    if (!frame || !event.data || !Number.isFinite(event.data.height)) return;
    frame.style.height = `${event.data.height}px`;
    frame.dataset.spoke = "true";
    if (frame === next && event.data.ready) swap();
  });
  const showReport = (version) => {
    if (version === shown || next) return;
    const frame = element("iframe", "", "loading");
    frame.title = "Report so far";
    frame.dataset.version = version;
    frame.setAttribute("sandbox", "allow-scripts allow-downloads");
    frame.src = `/report.html?version=${version}`;
    next = frame;
    byId("report").append(frame);
    setTimeout(() => {
      if (frame !== next) return;
      if (frame.dataset.spoke) return swap(); // it is there, but something in it failed
      frame.remove(); // the server has gone; the next answer tries again
      next = null;
      return undefined;
    }, 20000);
  };

  const showState = (report, measured) => {
    const state = byId("report-state");
    const early = measured ? "The first report is being made." : "The report begins with the first evaluation point.";
    const text = report.problem || (report.version ? "" : early);
    if (state.textContent !== text) state.textContent = text;
    state.classList.toggle("failed", Boolean(report.problem));
  };

  const tick = async () => {
    let wait = 5;
    try {
      const answer = await fetch("/status.json");
      if (!answer.ok) throw new Error(`answer ${answer.status}`);
      const status = await answer.json();
      wait = status.every;
      byId("trouble").hidden = true;
      showRuns(status);
      showState(status.report, status.measured);
      if (status.report.version) showReport(status.report.version);
    } catch (error) {
      byId("trouble").hidden = false;
      byId("trouble").textContent = `No answer from paretune watch (${error.message}). What is shown is from before.`;
    }
    setTimeout(tick, 1000 * Math.max(0.5, wait));
  };
  tick();
})();
