"use strict";
// Remove the token from the address and the history: the cookie has it progress.
const address = new URL(location);
if (address.searchParams.has("token")) {
  address.searchParams.delete("token");
  history.replaceState(null, "", address);
}

const POLL_MS = 2000;

async function poll(url, show) {
  for (;;) {
    await new Promise((done) => setTimeout(done, POLL_MS));
    if (document.hidden) continue;
    try {
      const answer = await fetch(url);
      if (answer.ok) show(await answer.json());
    } catch { /* the server has stopped; it may come back */ }
  }
}

function list(table) {
  const body = table.tBodies[0], filter = document.getElementById("filter");
  const heads = [...table.tHead.rows[0].cells];
  const state = new URLSearchParams(location.hash.slice(1)); // keeps sorting and filter across reloads

  const save = (name, value) => {
    value ? state.set(name, value) : state.delete(name);
    history.replaceState(null, "", state.size ? `#${state}` : location.pathname + location.search);
  };

  const sort = (column, descending) => {
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[column].setAttribute("aria-sort", descending ? "descending" : "ascending");
    const key = (row) => row.cells[column].dataset.sort;
    const order = (a, b) => {
      if (key(a) === "" || key(b) === "") return (key(a) === "") - (key(b) === "");
      const difference = key(a) - key(b);
      const result = Number.isNaN(difference) ? key(a).localeCompare(key(b)) : difference;
      return descending ? -result : result;
    };
    body.append(...[...body.rows].sort(order));
    save("sort", `${column}${descending ? "-" : ""}`);
  };

  const applyFilter = () => {
    const words = filter.value.toLowerCase().split(/\s+/);
    const rows = [...body.rows];
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
    const matches = rows.filter((row) => !row.hidden).length;
    document.getElementById("matches").textContent = filter.value.trim() ? `${matches} of ${rows.length}` : "";
    save("filter", filter.value);
  };

  const checkedRuns = () => {
    const checked = [...body.querySelectorAll("input:checked")];
    document.getElementById("compare").disabled = checked.length !== 2;
    return checked;
  };

  heads.forEach((head, column) => head.querySelector("button")?.addEventListener("click", () => {
    const before = head.getAttribute("aria-sort"), number = body.querySelector(`td.number:nth-child(${column + 1})`);
    sort(column, before ? before === "ascending" : Boolean(number)); // numbers: largest first
  }));
  filter.addEventListener("input", applyFilter);
  body.addEventListener("change", checkedRuns);
  document.querySelector(".tools").addEventListener("submit", (event) => {
    event.preventDefault();
    const [one, other] = checkedRuns();
    if (other) location.assign(`/compare?one=${one.value}&other=${other.value}`);
  });
  filter.value = state.get("filter") ?? "";
  if (/^\d+-?$/.test(state.get("sort") ?? "") && heads[parseInt(state.get("sort"))]?.querySelector("button")) {
    sort(parseInt(state.get("sort")), state.get("sort").endsWith("-"));
  }
  applyFilter();
  checkedRuns();
  poll(`/state${location.search}`, (states) => {
    const rows = [...body.rows];
    const unchanged = rows.every((row) => states[row.id]?.[0] === row.dataset.state);
    if (!unchanged || rows.length !== Object.keys(states).length) return location.reload();
    for (const row of rows) row.querySelector("[data-head=State] span").textContent = states[row.id][1];
  });
}

const runs = document.getElementById("runs");
if (runs) list(runs);

// Update the stages of a running run; reload the page when a stage completes, to show its results.
function follow(section) {
  const cells = (row, stage) => {
    row.querySelector(".dot").className = `dot ${stage.state}`;
    row.querySelector(".bar i").style.width = `${stage.width}%`;
    for (const cell of row.querySelectorAll("[data-field]")) cell.textContent = stage[cell.dataset.field];
  };
  poll(section.dataset.follow, (progress) => {
    if (String(progress.done) !== section.dataset.done || progress.state !== section.dataset.state) return location.reload();
    document.querySelector("#state b").textContent = progress.text;
    const last = document.getElementById("last");
    if (last) last.textContent = progress.last;
    for (const stage of progress.stages) cells(section.querySelector(`[data-stage="${stage.name}"]`), stage);
  });
}

const section = document.querySelector("[data-follow]");
if (section && section.dataset.state === "running") follow(section);
