/* Drawings: a small line for each figure, and memory over time. Sizes are CSS pixels, so that text is never stretched. */
const SVG = "http://www.w3.org/2000/svg";
const draw = (name, attributes, ...children) => {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
};
const path = points => points.map(([x, y], n) => `${n ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
const area = (points, floor) => points.length ? `${path(points)}L${points.at(-1)[0].toFixed(1)} ${floor}L${points[0][0].toFixed(1)} ${floor}Z` : "";

/* `values` of the latest polls, oldest first; null: nothing was measured. The first few do not fill the width yet. */
function spark(svg, values) {
  const places = Math.max(values.length, 12);
  const { width, height } = svg.getBoundingClientRect();
  const most = Math.max(...values.map(value => value ?? 0), 0);
  const points = values.map((value, n) => [
    width - (values.length - 1 - n) * width / (places - 1),
    height - 1 - (most ? (value ?? 0) / most : 0) * (height - 3),
  ]);
  svg.replaceChildren(
    draw("path", { class: "area", d: area(points, height) }),
    draw("path", { class: "line", d: path(points) }),
  );
}

const STEPS = [10, 30, 60, 120, 300, 600, 900, 1800, 3600];
const round = (most, ticks) => {
  const rough = most / ticks, power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 5, 10].map(factor => factor * power).find(step => step >= rough);
};

/* Memory of the process and of the models in it. Pointer and arrow keys read single points. */
class MemoryChart {
  constructor(box, readout) {
    [this.box, this.svg, this.readout] = [box, box.querySelector("svg"), readout];
    this.samples = [];
    this.events = [];
    this.budget = null;
    this.chosen = null;
    new ResizeObserver(() => this.render()).observe(box);
    box.addEventListener("pointermove", event => this.choose(this.nearest(event.clientX - box.getBoundingClientRect().left)));
    box.addEventListener("pointerleave", () => this.choose(null));
    box.addEventListener("blur", () => this.choose(null));
    box.addEventListener("keydown", event => this.key(event));
  }

  /* `samples`: [epoch seconds, bytes of the process, bytes of the models], oldest first. */
  show(samples, events, budget) {
    const time = this.samples[this.chosen]?.[0];
    Object.assign(this, { samples, events, budget });
    if (time !== undefined) this.chosen = Math.max(0, samples.findIndex(sample => sample[0] >= time));
    this.render();
  }

  key(event) {
    const last = this.samples.length - 1, now = this.chosen ?? last;
    const to = { ArrowLeft: now - 1, ArrowDown: now - 1, ArrowRight: now + 1, ArrowUp: now + 1,
      PageDown: now - 15, PageUp: now + 15, Home: 0, End: last, Escape: null }[event.key];
    if (to === undefined || last < 0) return;
    event.preventDefault();
    this.choose(to === null ? null : Math.min(last, Math.max(0, to)));
  }

  nearest(x) {
    if (!this.samples.length) return null;
    const time = this.from + (x - this.left) / (this.right - this.left) * (this.to - this.from);
    return this.samples.reduce((best, sample, n) => Math.abs(sample[0] - time) < Math.abs(this.samples[best][0] - time) ? n : best, 0);
  }

  choose(index) {
    this.chosen = index;
    this.render();
  }

  render() {
    const { width, height } = this.box.getBoundingClientRect();
    if (!width || !this.samples.length) return;
    const floor = height - 24, top = 10;
    [this.left, this.right] = [width < 420 ? 54 : 62, width - 6];
    this.to = this.samples.at(-1)[0];
    this.from = Math.min(this.samples[0][0], this.to - 60);
    const MiB = 2 ** 20;
    const highest = Math.max(...this.samples.map(sample => sample[1]), MiB);
    /* A budget far above is told in words only: it would press the lines into the floor. */
    const limit = this.budget && this.budget < highest * 2.5 ? this.budget : 0;
    const step = round(Math.max(highest * 1.08, limit * 1.04) / MiB, 4) * MiB;
    const most = Math.ceil(Math.max(highest * 1.04, limit * 1.02) / step) * step;
    const x = time => this.left + (time - this.from) / (this.to - this.from) * (this.right - this.left);
    const y = bytes => floor - bytes / most * (floor - top);
    const parts = [];
    for (let bytes = 0; bytes <= most; bytes += step) {
      parts.push(draw("line", { class: "grid", x1: this.left, x2: this.right, y1: y(bytes), y2: y(bytes) }));
      parts.push(draw("text", { x: this.left - 8, y: y(bytes) + 4, "text-anchor": "end" }, format.bytes(bytes)));
    }
    const gap = STEPS.find(seconds => (this.right - this.left) / (this.to - this.from) * seconds > 84) ?? STEPS.at(-1);
    const offset = new Date(this.to * 1000).getTimezoneOffset() * 60;
    for (let time = Math.ceil((this.from - offset) / gap) * gap + offset; time <= this.to; time += gap) {
      if (x(time) < this.left + 18 || x(time) > this.right - 22) continue;
      parts.push(draw("text", { x: x(time), y: height - 4, "text-anchor": "middle" }, format.time(time, gap < 60)));
    }
    const process = this.samples.map(sample => [x(sample[0]), y(sample[1])]);
    const models = this.samples.map(sample => [x(sample[0]), y(Math.min(sample[1], sample[2]))]);
    parts.push(draw("path", { class: "process-area", d: area(process, floor) }));
    parts.push(draw("path", { class: "models-area", d: area(models, floor) }));
    parts.push(draw("path", { class: "process-line", d: path(process) }));
    if (limit) parts.push(draw("line", { class: "budget-line", x1: this.left, x2: this.right, y1: y(limit), y2: y(limit) }));
    for (const event of this.events) {
      if (event.time < this.from) continue;
      parts.push(draw("circle", { class: `event ${event.kind}`, cx: x(event.time), cy: floor, r: 4 }, draw("title", {}, event.text())));
    }
    const index = this.chosen ?? this.samples.length - 1;
    const [time, bytes, held] = this.samples[index];
    if (this.chosen !== null) parts.push(draw("line", { class: "cursor", x1: x(time), x2: x(time), y1: top, y2: floor }));
    parts.push(draw("circle", { class: "dot", cx: x(time), cy: y(bytes), r: 4.5 }));
    this.svg.replaceChildren(...parts);
    this.tell(index, x(time), words.memoryAt(format.time(time, true), format.bytes(bytes), format.bytes(held)), time);
  }

  tell(index, at, sentence, time) {
    this.box.setAttribute("aria-valuemax", this.samples.length - 1);
    this.box.setAttribute("aria-valuenow", index);
    this.box.setAttribute("aria-valuetext", sentence);
    this.readout.hidden = this.chosen === null;
    if (this.readout.hidden) return;
    const near = this.events.filter(event => Math.abs(event.time - time) < 3).map(event => event.text());
    this.readout.textContent = [sentence, ...near].join(" · ");
    const width = this.readout.getBoundingClientRect().width;
    this.readout.style.left = `${Math.min(this.right - width, Math.max(this.left, at - width / 2))}px`;
  }
}
