"use strict";
// Remove the token from the address and the history: the cookie has it.
const address = new URL(location);
if (address.searchParams.has("token")) {
  address.searchParams.delete("token");
  history.replaceState(null, "", address);
}

// While a run is running, show its progress anew, unless somebody is at work on the page.
const RELOAD_MS = 5000;
if (document.querySelector("[data-running]")) {
  setInterval(() => {
    if (!document.hidden && !document.querySelector("#filter:focus, input:checked")) location.reload();
  }, RELOAD_MS);
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
}

const runs = document.getElementById("runs");
if (runs) list(runs);
