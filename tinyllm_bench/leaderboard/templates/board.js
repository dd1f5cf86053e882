// Tables that sort, filter and open; runs after plots.js in the same script.

const data = JSON.parse(document.getElementById("data").textContent);
const FEW = 50;
const FEW_NOTES = 20;
const main = document.getElementById("tables");

const collator = new Intl.Collator("en", { numeric: true });

/** Numbers before words, words before dashes; equal ones keep the board's order. A cell is its text and its number. */
function compare(first, second, sign) {
  if (first.text === second.text) return 0;
  if (first.key !== null && second.key !== null) return sign * (first.key - second.key);
  if (first.key !== null || second.key !== null) return first.key !== null ? -1 : 1;
  if (first.text === "-" || second.text === "-") return first.text === "-" ? 1 : -1;
  return sign * collator.compare(first.text, second.text);
}

class Table {
  constructor(section, measured) {
    Object.assign(this, { section, measured, sort: null, most: FEW, open: new Set(), cost: 0 });
    this.texts = section.rows.map((row) => row.cells.join("\n").toLowerCase());
    this.order = section.rows.map((_, i) => i);
    this.shown = this.order;
    this.node = this.build();
  }

  build() {
    const { section } = this;
    const node = make("section", { "aria-labelledby": section.slug });
    node.append(make("h2", { id: section.slug }, section.title), make("p", { class: "dim" }, section.facts));
    if (this.measured) {
      this.plots = make("div", { class: "plots" });
      node.append(this.plots);
    }
    this.head = make("tr");
    section.columns.forEach((name, i) => {
      const button = make("button", { type: "button" }, name);
      button.addEventListener("click", () => this.sortBy(i));
      this.head.append(make("th", { scope: "col", "aria-sort": "none" }, button));
    });
    this.body = make("tbody");
    const caption = make("caption", {}, this.measured ? "Press a row's name to open it." : "Means over tasks.");
    const table = make("table", {}, caption, make("thead", {}, this.head), this.body);
    this.wide = make("div", { class: "wide", role: "region", tabindex: "0", "aria-label": `Table: ${section.title}` }, table);
    this.more = make("p", { class: "more", hidden: "" });
    node.append(this.wide, this.more);
    node.append(...notes(section.notes));
    return node;
  }

  /** Up, down, and back to the board's order. */
  sortBy(column) {
    const before = this.sort && this.sort.column === column ? this.sort.sign : 0;
    this.sort = before === -1 ? null : { column, sign: before ? -1 : 1 };
    [...this.head.children].forEach((cell, i) => {
      const sign = this.sort && i === column ? this.sort.sign : 0;
      cell.setAttribute("aria-sort", sign === 1 ? "ascending" : sign ? "descending" : "none");
    });
    const rows = this.section.rows;
    this.order = rows.map((_, i) => i);
    if (this.sort) {
      const cells = rows.map((row) => ({ text: row.cells[column], key: row.keys[column] }));
      this.order.sort((a, b) => compare(cells[a], cells[b], this.sort.sign) || a - b);
    }
    this.drawRows();
    // The same points in another order: of thousands of rows only the gains are drawn again.
    this.drawForest();
  }

  filter(wanted) {
    this.wanted = wanted;
    this.most = FEW;
    this.draw();
  }

  matches(index) {
    const row = this.section.rows[index];
    const { words, kind, student } = this.wanted;
    if (kind && this.measured && (row.kind === "method") !== (kind === "method")) return false;
    if (student && row.cells[this.section.columns.indexOf("student")] !== student) return false;
    return words.every((word) => this.texts[index].includes(word));
  }

  draw() {
    this.drawRows();
    this.drawPlots();
    if (filtersDone) count();
  }

  drawRows() {
    this.shown = this.order.filter((index) => this.matches(index));
    const some = this.shown.slice(0, this.most);
    this.body.replaceChildren(...some.flatMap((index, place) => this.rowNodes(index, some[place + 1])));
    this.drawMore();
  }

  rowNodes(index, next) {
    const { section } = this;
    const { rows } = section;
    const row = rows[index];
    const ends = !this.sort && row.kind !== "method" && next !== undefined && rows[next].kind === "method";
    const line = make("tr", { class: `${row.kind || "method"}${ends ? " last" : ""}` });
    row.cells.forEach((text, i) => {
      const isShort = text.length <= 22 && !text.includes(", ");
      if (i) line.append(make("td", { class: isShort ? "short" : "long" }, text));
      else line.append(make("th", { scope: "row" }, this.opener(index, text, line)));
    });
    return this.open.has(index) ? [line, this.detail(index)] : [line];
  }

  opener(index, text, line) {
    const row = this.section.rows[index];
    if (!row.runs || !row.runs.length) return text;
    const id = `${this.section.slug}-row-${index}`;
    const isOpen = this.open.has(index);
    const button = make("button", { type: "button", "aria-expanded": String(isOpen), "aria-controls": isOpen ? id : null }, text);
    button.addEventListener("click", () => {
      if (this.open.delete(index)) {
        button.setAttribute("aria-expanded", "false");
        button.removeAttribute("aria-controls");
        line.nextSibling.remove();
      } else {
        this.open.add(index);
        line.after(this.detail(index));
        button.setAttribute("aria-expanded", "true");
        button.setAttribute("aria-controls", id);
      }
    });
    return button;
  }

  detail(index) {
    const row = this.section.rows[index];
    const columns = this.section.run_columns.slice(1);
    const inside = make("div", { class: "inside" }, pairs(row.facts));
    for (const run of row.runs) {
      const told = columns.map((name, i) => [name, run[i]]).filter(([name]) => name !== "command" && name !== "record");
      const record = run[columns.indexOf("record")];
      const link = make("a", { href: record }, record);
      inside.append(
        make("div", { class: "run" }, pairs([...told, ["record", link]]),
          make("code", { class: "command" }, run[columns.indexOf("command")])),
      );
    }
    this.wide.style.setProperty("--view", `${this.wide.clientWidth}px`);
    return make("tr", { class: "detail", id: `${this.section.slug}-row-${index}` },
      make("td", { colspan: String(this.section.columns.length) }, inside));
  }

  drawMore() {
    const left = this.shown.length - this.most;
    const none = this.shown.length === 0;
    this.more.hidden = left <= 0 && !none;
    if (this.more.hidden) return this.more.replaceChildren();
    const text = none ? "No row fits the filters." : `${this.most} of ${this.shown.length} rows shown.`;
    this.more.replaceChildren(make("span", {}, text));
    for (const [label, most] of left > 0 ? [[`Show ${Math.min(FEW, left)} more`, this.most + FEW], ["Show all", Infinity]] : []) {
      const button = make("button", { type: "button" }, label);
      button.addEventListener("click", () => {
        const first = this.most;
        this.most = most;
        this.drawRows();
        const next = [...this.body.querySelectorAll("tr:not(.detail)")][first];
        if (next) (next.querySelector("button") || this.wide).focus();
      });
      this.more.append(button);
    }
  }

  drawPlots() {
    if (!this.plots) return;
    this.width = this.plots.clientWidth;
    if (!this.width) return;
    const focused = document.activeElement && document.activeElement.id === `${this.section.slug}-cost`;
    const rows = this.shown.map((index) => this.section.rows[index]);
    this.forest = forest(this, rows);
    const figures = [scatter(this, rows), this.forest].filter(Boolean);
    this.plots.hidden = !figures.length;
    this.plots.replaceChildren(...figures);
    if (focused) document.getElementById(`${this.section.slug}-cost`)?.focus();
  }

  drawForest() {
    if (!this.forest) return;
    const before = this.forest;
    this.forest = forest(this, this.shown.map((index) => this.section.rows[index]));
    before.replaceWith(this.forest);
  }
}

/** The first notes, and the others behind a word: a table of many rows has hundreds. */
function notes(all) {
  const list = (some) => make("ul", { class: "notes" }, ...some.map((note) => make("li", {}, note)));
  if (all.length <= FEW_NOTES) return all.length ? [list(all)] : [];
  const rest = all.slice(FEW_NOTES);
  return [list(all.slice(0, FEW_NOTES)), make("details", {}, make("summary", {}, `${rest.length} more notes`), list(rest))];
}

function pairs(list) {
  return make("dl", {}, ...list.map(([name, text]) => make("div", {}, make("dt", {}, name), make("dd", {}, text))));
}

let filtersDone = false;
const tables = data.sections.map((section) => new Table(section, true));
if (data.mean.rows.length) {
    const mean = { ...data.mean, slug: "mean-over-tasks", title: "Mean over tasks", facts: data.mean_note, notes: [] };
  tables.push(new Table(mean, false));
}
main.append(...tables.map((table) => table.node));
const form = document.getElementById("filters");
const field = (id) => document.getElementById(id);

function count() {
  const visible = tables.filter((table) => table.measured && !table.node.hidden);
  const sum = (of) => visible.reduce((total, table) => total + of(table), 0);
  const message = `${sum((table) => table.shown.length).toLocaleString("en")} of ${sum((table) => table.section.rows.length).toLocaleString("en")} rows`;
  if (field("count").textContent !== message) field("count").textContent = message;
}

function applyFilters() {
  const words = field("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const wanted = { words, kind: field("kind").value, student: field("student").value };
  filtersDone = false;
  for (const table of tables) {
    table.node.hidden = Boolean(field("table").value) && field("table").value !== table.section.slug;
    if (!table.node.hidden) table.filter(wanted);
  }
  filtersDone = true;
  count();
}

if (form) {
  for (const table of tables) field("table").append(make("option", { value: table.section.slug }, table.section.title));
  const students = new Set(data.sections.flatMap((section) => section.rows.map((row) => row.cells[section.columns.indexOf("student")])));
  for (const student of [...students].filter((one) => one !== "-").sort()) field("student").append(make("option", {}, student));
  let waiting = 0;
  field("search").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(applyFilters, 120);
  });
  form.addEventListener("change", (event) => event.target.id !== "search" && applyFilters());
  form.addEventListener("reset", () => setTimeout(applyFilters));
  form.addEventListener("submit", (event) => event.preventDefault());
  applyFilters();
}

let resizing = 0;
window.addEventListener("resize", () => {
  clearTimeout(resizing);
  resizing = setTimeout(() => tables.forEach((table) => {
    table.wide.style.setProperty("--view", `${table.wide.clientWidth}px`);
    if (table.plots && table.plots.clientWidth !== table.width) table.drawPlots();
  }), 100);
});

const prefers = window.matchMedia("(prefers-color-scheme: dark)");
const theme = field("theme");
// A browser may forbid storage to a local file; the button works without it.
const stored = (value) => {
  try {
    if (value) localStorage.setItem("theme", value);
    return localStorage.getItem("theme");
  } catch {
    return null;
  }
};
function showTheme() {
  const chosen = document.documentElement.dataset.theme;
  theme.setAttribute("aria-pressed", String(chosen ? chosen === "dark" : prefers.matches));
}
if (["dark", "light"].includes(stored())) document.documentElement.dataset.theme = stored();
theme.addEventListener("click", () => {
  const next = theme.getAttribute("aria-pressed") === "true" ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  stored(next);
  showTheme();
});
prefers.addEventListener("change", showTheme);
showTheme();
