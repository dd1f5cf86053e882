"use strict";
// The two pictures of a table. Its state (cost chosen, width) is the table's; nothing here keeps any.

const SVG = "http://www.w3.org/2000/svg";

// Every text of the data reaches the page through here, as text.
function make(name, attributes = {}, ...inside) {
  const made = name.startsWith("svg:")
    ? document.createElementNS(SVG, name.slice(4))
    : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...inside);
  return made;
}

/** Round values that cover a span. */
function ticks(low, high, about) {
  const rough = (high - low) / about || 1;
  const power = 10 ** Math.baseline(Math.log10(rough));
  const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough);
  const found = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high + step / 1e6; tick += step) found.push(Number(tick.toPrecision(12)));
  return found;
}

/** Short labels of ticks, with as many digits as tell them apart. */
function labels(values) {
  const units = [[1e18, "E"], [1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"], [1, ""]];
  const most = Math.max(...values.map(Math.abs));
  const [size, sign] = units.find(([one]) => most >= one) || [1, ""];
  for (let digits = 2; ; digits += 1) {
    const made = values.map((value) => `${Number((value / size).toPrecision(digits))}${sign}`);
    if (digits > 12 || new Set(made).size === made.length) return made;
  }
}

function picture(id, width, height, title, about) {
  const svg = make("svg:svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-labelledby": `${id}-title ${id}-desc` });
  svg.append(make("svg:title", { id: `${id}-title` }, title), make("svg:desc", { id: `${id}-desc` }, about));
  return svg;
}

const text = (x, y, inside, attributes = {}) => make("svg:text", { x, y, ...attributes }, inside);
const line = (x1, y1, x2, y2, kind) => make("svg:line", { x1, y1, x2, y2, class: kind });
const cut = (name, most) => (name.length > most ? `${name.slice(0, most - 1)}\u2026` : name);
const figureWidth = (table) => {
  const columns = table.width >= 2 * 480 + 16 ? 2 : 1;
  return Math.max(260, (table.width - 16 * (columns - 1)) / columns - 26);
};

function costSelect(table) {
  const { costs, slug } = table.section;
  const select = make("select", { id: `${slug}-cost` }, ...costs.map((name, i) => make("option", { value: String(i) }, name)));
  select.value = String(table.cost);
  select.addEventListener("change", () => {
    table.cost = Number(select.value);
    table.drawPlots();
  });
  return make("span", {}, make("label", { for: `${slug}-cost` }, "Cost "), select);
}

function scale(values, from, to, isLog) {
  const of = isLog ? Math.log10 : (value) => value;
  let [low, high] = [of(Math.min(...values)), of(Math.max(...values))];
  const room = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
  [low, high] = [low - room, high + room];
  return { low, high, at: (value) => from + ((of(value) - low) / (high - low)) * (to - from) };
}

/** Accuracy, with its interval, against one cost. */
function scatter(table, rows) {
  const { section } = table;
  if (!section.costs.length) return null;
  const name = section.costs[table.cost];
  const points = rows.filter((row) => row.accuracy && row.costs[table.cost]);
  const title = `Accuracy against ${name}`;
  const figure = make("figure", {}, make("figcaption", {}, make("h3", {}, title), costSelect(table)));
  if (!points.length) {
    figure.append(make("p", { class: "dim" }, "No row that is shown tells this cost."));
    return figure;
  }
  const [width, height, left, top, bottom] = [figureWidth(table), 320, 44, 24, 42];
  const about = `${points.length} rows of ${section.title}, as points with their 95 % interval; the table below holds the same numbers. The dashed line is chance, ${section.chance.toFixed(1)} %.`;
  const svg = picture(`${section.slug}-cost-plot`, width, height, title, about);
  const xs = points.map((row) => row.costs[table.cost]);
  const isLog = Math.max(...xs) > 20 * Math.min(...xs);
  const x = scale(xs, left + 6, width - 12, isLog);
  const y = scale(points.flatMap((row) => row.accuracy.filter((one) => one !== null)).concat(section.chance), height - bottom, top, false);
  drawAxes(svg, { x, y, isLog, name, width, height, left, top, bottom, chance: section.chance });
  for (const row of points) svg.append(point(row, x.at(row.costs[table.cost]), y, points.length));
  if (points.length <= 12) nameThem(svg, points, (row) => [x.at(row.costs[table.cost]), ...row.accuracy.map((one) => (one === null ? null : y.at(one)))], width, { top, bottom: height - bottom });
  figure.append(svg);
  return figure;
}

function drawAxes(svg, { x, y, isLog, name, width, height, left, top, bottom, chance }) {
  for (const tick of ticks(y.low, y.high, 5)) {
    svg.append(line(left, y.at(tick), width - 6, y.at(tick), "grid"), text(left - 6, y.at(tick) + 4, String(tick), { "text-anchor": "end", class: "soft" }));
  }
  const marks = isLog
    ? ticks(Math.ceil(x.low), Math.baseline(x.high), 5).filter(Number.isInteger).map((power) => 10 ** power)
    : ticks(x.low, x.high, width < 420 ? 3 : 5);
  const told = isLog ? marks.map((mark) => labels([mark])[0]) : labels(marks);
  marks.forEach((mark, i) => {
    svg.append(line(x.at(mark), height - bottom, x.at(mark), height - bottom + 5, "axis"), text(x.at(mark), height - bottom + 18, told[i], { "text-anchor": "middle", class: "soft" }));
  });
  svg.append(line(left, height - bottom, width - 6, height - bottom, "axis"), line(left, y.at(chance), width - 6, y.at(chance), "zero"));
  svg.append(text((left + width) / 2, height - 6, `${name}${isLog ? " (logarithmic)" : ""}`, { "text-anchor": "middle", class: "soft" }));
  svg.append(text(2, top - 10, "accuracy %", { class: "soft" }), text(width - 8, y.at(chance) - 4, "chance", { "text-anchor": "end", class: "soft" }));
}

function point(row, x, y, many) {
  const [value, low, high] = row.accuracy;
  const group = make("svg:g", { class: row.kind === "method" ? "point" : "point other" });
  group.append(make("svg:title", {}, `${row.label}, ${row.student}: ${value.toFixed(1)} %${low === null ? "" : ` (${low.toFixed(1)} to ${high.toFixed(1)})`}`));
  if (low !== null) group.append(line(x, y.at(low), x, y.at(high), many > 60 ? "thin" : "bar"));
  group.append(make("svg:circle", { cx: x, cy: y.at(value), r: many > 60 ? 3 : 4.5, class: "dot" }));
  return group;
}

/** Names beside the points where they hide no other name; the rest are told on hover and in the table. */
function nameThem(svg, rows, place, width, { top, bottom }) {
  const taken = rows.map((row) => {
    const [x, y, low, high] = place(row);
    return [x - 5, Math.min(y - 6, high ?? y), x + 5, Math.max(y + 6, low ?? y)];
  });
  rows.forEach((row, i) => {
    const [x, y] = place(row);
    const name = cut(row.label, 24);
    const size = name.length * 6.8;
    const spots = [[x + 9, y + 4], [x - 9 - size, y + 4], [x + 7, y - 8], [x + 7, y + 16], [x - 7 - size, y - 8], [x - 7 - size, y + 16]];
    for (const [left, base] of spots) {
      const box = [left, base - 11, left + size, base + 3];
      const hides = taken.some((other, j) => j !== i && box[0] < other[2] && other[0] < box[2] && box[1] < other[3] && other[1] < box[3]);
      if (hides || box[0] < 46 || box[2] > width || box[1] < top || box[3] > bottom) continue;
      taken.push(box);
      svg.append(text(left, base, name));
      return;
    }
  });
}

/** Each gain with its interval; one line a row. */
function forest(table, rows) {
  const { section } = table;
  const all = rows.filter((row) => row.gain);
  if (!all.length) return null;
  const width = figureWidth(table);
  const isNarrow = width < 520;
  const some = all.slice(0, isNarrow ? 12 : 20);
  const title = "Gain over the baseline at equal budget";
  const figure = make("figure", {}, make("figcaption", {}, make("h3", {}, title)));
  const students = new Set(some.map((row) => row.student)).size > 1;
  const name = (row) => (students ? `${row.label}, ${row.student}` : row.label);
  const [each, top, bottom] = [isNarrow ? 40 : 24, 8, 36];
  const [left, right] = isNarrow ? [8, width - 8] : [students ? 235 : 190, width - 160];
  const height = top + bottom + each * some.length;
  const about = `${some.length} of ${all.length} rows with a gain, in the table's order: points over the baseline with the interval that the table prints. The dashed line is no gain.`;
  const svg = picture(`${section.slug}-gain-plot`, width, height, title, about);
  const x = scale([0, ...some.flatMap((row) => row.gain.filter((one) => one !== null))], left, right, false);
  for (const tick of ticks(x.low, x.high, 5)) {
    svg.append(line(x.at(tick), top, x.at(tick), height - bottom, "grid"), text(x.at(tick), height - bottom + 16, String(tick), { "text-anchor": "middle", class: "soft" }));
  }
  svg.append(line(x.at(0), top, x.at(0), height - bottom, "zero"), text((left + right) / 2, height - 4, "points", { "text-anchor": "middle", class: "soft" }));
  const column = section.columns.findIndex((head) => head.startsWith("gain over"));
  const room = isNarrow ? Math.baseline(width / 7) - 23 : students ? 32 : 26;
  some.forEach((row, i) => svg.append(gainLine(row, cut(name(row), room), row.cells[column], { x, y: top + each * i, each, width, isNarrow })));
  figure.append(svg);
  if (all.length > some.length) figure.append(make("p", { class: "dim" }, `The first ${some.length} of ${all.length} rows with a gain; sort or filter to see others.`));
  return figure;
}

function gainLine(row, name, printed, { x, y, each, width, isNarrow }) {
  const [value, low, high] = row.gain;
  const middle = isNarrow ? y + each - 10 : y + each / 2;
  const base = isNarrow ? y + 16 : middle + 4;
  const group = make("svg:g", { class: "gain" });
  group.append(make("svg:title", {}, `${row.label}, ${row.student}: ${printed}`));
  group.append(text(0, base, name), text(width, base, printed, { "text-anchor": "end", class: "soft" }));
  if (low !== null) group.append(line(x.at(low), middle, x.at(high), middle, "bar"));
  group.append(make("svg:circle", { cx: x.at(value), cy: middle, r: 4.5, class: "dot" }));
  return group;
}
