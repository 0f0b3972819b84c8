"use strict";
// The first address holds the token, which the cookie has by now: it need not stand in the history.
const address = new URL(location);
if (address.searchParams.has("token")) {
  address.searchParams.delete("token");
  history.replaceState(null, "", address);
}

const POLL_MS = 2000;

async function poll(place, show) {
  for (;;) {
    await new Promise((done) => setTimeout(done, POLL_MS));
    if (document.hidden) continue;
    try {
      const answer = await fetch(place);
      if (answer.ok) show(await answer.json());
    } catch { /* the server has ended, or comes back */ }
  }
}

function list(table) {
  const body = table.tBodies[0], filter = document.getElementById("filter");
  const heads = [...table.tHead.rows[0].cells];
  const kept = new URLSearchParams(location.hash.slice(1)); // sort and filter outlast a reload

  const keep = (name, value) => {
    value ? kept.set(name, value) : kept.delete(name);
    history.replaceState(null, "", kept.size ? `#${kept}` : location.pathname + location.search);
  };

  const sort = (column, descending) => {
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[column].setAttribute("aria-sort", descending ? "descending" : "ascending");
    const by = (row) => row.cells[column].dataset.by;
    const order = (one, other) => {
      if (by(one) === "" || by(other) === "") return (by(one) === "") - (by(other) === "");
      const difference = by(one) - by(other);
      const found = Number.isNaN(difference) ? by(one).localeCompare(by(other)) : difference;
      return descending ? -found : found;
    };
    body.append(...[...body.rows].sort(order));
    keep("sort", `${column}${descending ? "-" : ""}`);
  };

  const choose = () => {
    const words = filter.value.toLowerCase().split(/\s+/);
    const rows = [...body.rows];
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
    const shown = rows.filter((row) => !row.hidden).length;
    document.getElementById("shown").textContent = filter.value.trim() ? `${shown} of ${rows.length}` : "";
    keep("filter", filter.value);
  };

  const tick = () => {
    const ticked = [...body.querySelectorAll("input:checked")];
    document.getElementById("compare").disabled = ticked.length !== 2;
    return ticked;
  };

  heads.forEach((head, column) => head.querySelector("button")?.addEventListener("click", () => {
    const before = head.getAttribute("aria-sort"), number = body.querySelector(`td.number:nth-child(${column + 1})`);
    sort(column, before ? before === "ascending" : Boolean(number)); // of figures the largest first
  }));
  filter.addEventListener("input", choose);
  body.addEventListener("change", tick);
  document.querySelector(".tools").addEventListener("submit", (event) => {
    event.preventDefault();
    const [one, other] = tick();
    if (other) location.assign(`/compare?one=${one.value}&other=${other.value}`);
  });
  filter.value = kept.get("filter") ?? "";
  if (/^\d+-?$/.test(kept.get("sort") ?? "") && heads[parseInt(kept.get("sort"))]?.querySelector("button")) {
    sort(parseInt(kept.get("sort")), kept.get("sort").endsWith("-"));
  }
  choose();
  tick();
  poll(`/state${location.search}`, (states) => {
    const rows = [...body.rows];
    const known = rows.every((row) => states[row.id]?.[0] === row.dataset.state);
    if (!known || rows.length !== Object.keys(states).length) return location.reload();
    for (const row of rows) row.querySelector("[data-head=State] span").textContent = states[row.id][1];
  });
}

const runs = document.getElementById("runs");
if (runs) list(runs);

// A run at work: its state and stages as they are; a new page where more is complete, which has more to show.
function follow(section) {
  const cells = (row, stage) => {
    row.querySelector(".dot").className = `dot ${stage.state}`;
    row.querySelector(".bar i").style.width = `${stage.width}%`;
    for (const cell of row.querySelectorAll("[data-field]")) cell.textContent = stage[cell.dataset.field];
  };
  poll(section.dataset.follow, (now) => {
    if (String(now.done) !== section.dataset.done || now.state !== section.dataset.state) return location.reload();
    document.querySelector("#state b").textContent = now.told;
    const last = document.getElementById("last");
    if (last) last.textContent = now.last;
    for (const stage of now.stages) cells(section.querySelector(`[data-stage="${stage.name}"]`), stage);
  });
}

const section = document.querySelector("[data-follow]");
if (section && section.dataset.state === "running") follow(section);
