'use strict';
const $ = id => document.getElementById(id);
const SPAN_S = 600, SILENT_S = 5, LISTED = 12, CLIP_MS = 1500, ROWS = 100, DECISIONS = 500;
const PLOTS = ['latency', 'rate', 'replicas', 'axis'];
let points = [], head = null, stats = null, decisions = [], decisionsError = null;
let heardAt = null, hoverX = null, failedSince = null;

// ---- words -------------------------------------------------------------------------------------------------
const text = (id, value) => { if ($(id).textContent !== value) $(id).textContent = value; };
const known = value => value !== null && value !== undefined;
const count = value => known(value) ? value.toLocaleString('en') : '–';
const short = value => !known(value) ? '–' : value < 10 ? value.toFixed(1) : Math.round(value).toLocaleString('en');
const [ms, rate] = [short, short];
const ago = s => s < 1.5 ? 'now' : s < 90 ? Math.round(s) + ' s ago' : s < 5400 ? Math.round(s / 60) + ' min ago' : Math.round(s / 3600) + ' h ago';
const plural = (n, word) => n.toLocaleString('en') + ' ' + word + (n === 1 ? '' : 's');
function big(id, value, unit) {
  const small = document.createElement('small');
  small.textContent = unit || '';
  $(id).replaceChildren(value, small);
}
function note(id, value, mood) { text(id, value); $(id).className = 'note ' + (mood || ''); }
function element(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

// ---- what is known -----------------------------------------------------------------------------------------
/** The monitor's time now: its last word and the time since. */
const now = () => head ? head.now_s + (performance.now() - heardAt) / 1000 : 0;
const everHadTraffic = () => points.some(p => p.arrivals > 0);
const changes = d => d.replicas !== d.replicas_before;
const stepOf = d => changes(d) ? (d.replicas > d.replicas_before ? '▲ ' : '▼ ') + d.replicas_before + ' → ' + d.replicas : '= ' + d.replicas;

/** Takes over what the monitor says is new. */
function take(update) {
  if (update.anew) [points, decisions] = [[], []];
  // An event and an answer that crossed tell the same twice.
  const lastPoint = points.length ? points.at(-1).t_s : -1, lastDecision = decisions.length ? decisions.at(-1).at_unix_s : -1;
  points = points.concat(update.points.filter(p => p.t_s > lastPoint)).filter(p => p.t_s >= update.now_s - SPAN_S - 5);
  decisions = decisions.concat(update.decisions.filter(d => d.at_unix_s > lastDecision));
  // Of decisions that change nothing only the newest is news.
  decisions = decisions.filter((d, i) => changes(d) || i === decisions.length - 1).slice(-DECISIONS);
  decisionsError = update.decisions_error;
  [head, stats, heardAt, failedSince] = [update, update.stats, performance.now(), null];
}

function showStatus() {
  let mood = 'good', word = 'live', notice = '';
  const silent = stats && known(stats.age_s) && stats.age_s > SILENT_S;
  if (failedSince !== null) {
    const s = Math.round((performance.now() - failedSince) / 1000);
    [mood, word] = ['bad', 'monitor unreachable'];
    notice = 'The monitor has not answered for ' + s + ' s. ' + (stats ? 'What is shown is the last that was heard.' : 'Nothing has been heard yet.') + ' Trying again each second.';
  } else if (!stats) [mood, word] = ['', 'connecting'];
  else if (!known(stats.age_s)) { [mood, word] = ['', 'no traffic yet']; notice = 'No dispatcher has reported yet. Start one with this monitor’s address, and traffic shows here within a second.'; }
  else if (silent) { [mood, word] = ['warn', 'dispatcher silent']; notice = 'No dispatcher has reported for ' + Math.round(stats.age_s) + ' s: what is shown is not current.'; }
  else if (!known(stats.arrival_rps)) [mood, word] = ['', everHadTraffic() || stats.samples ? 'idle' : 'no traffic yet'];
  text('status', word);
  $('status').className = mood;
  $('status').title = streaming() ? 'the monitor sends news each second' : 'the page asks for news each second';
  text('notice', notice);
  $('notice').hidden = !notice;
  $('notice').className = mood === 'bad' ? '' : 'warn';
  document.body.classList.toggle('stale', failedSince !== null);
  document.title = (stats && known(stats.p99_ms) && mood === 'good' ? ms(stats.p99_ms) + ' ms · ' : '') + 'elastic';
}

function showFigures() {
  const s = stats, p99 = s.p99_ms, recent = s.recent;
  big('p99', ms(p99), known(p99) ? 'ms' : '');
  const range = s.p99_ci_ms ? ', 95\u00a0% confidence ' + ms(s.p99_ci_ms[0]) + '–' + ms(s.p99_ci_ms[1]) + '\u00a0ms' : '';
  const over = plural(s.samples, 'request') + range;
  if (!known(p99)) note('p99-note', 'no traffic yet');
  else if (p99 < head.target_ms) note('p99-note', '✓ within target · ' + over, 'good');
  else if (p99 < head.promise_ms) note('p99-note', '▲ over target · ' + over, 'warn');
  else note('p99-note', '✕ over promise · ' + over, 'bad');
  note('recent-note', !recent || !known(recent.p99_ms) ? '' : 'last ' + Math.round(recent.seconds) + ' s: p99 ' + ms(recent.p99_ms) + ' ms, p50 ' + ms(recent.p50_ms) + ' ms, '
    + (recent.over_promise ? count(recent.over_promise) + ' of ' + count(recent.samples) + ' over the promise' : 'none of ' + count(recent.samples) + ' over the promise'));
  big('rps', rate(s.arrival_rps), known(s.arrival_rps) ? '/s' : '');
  note('rps-note', known(s.throughput_rps) ? rate(s.throughput_rps) + ' /s answered' : known(s.arrival_rps) ? 'none answered' : 'no traffic');
  const silent = !known(s.age_s), inState = state => s.replicas.filter(r => r.state === state).length;
  big('ready', silent ? '–' : count(inState('ready')));
  const others = ['starting', 'draining', 'ejected', 'down'].filter(inState).map(state => inState(state) + ' ' + state);
  note('ready-note', others.join(', '), inState('down') || inState('ejected') ? 'bad' : '');
  big('flight', silent ? '–' : count(s.in_flight));
  note('flight-note', silent ? '' : 'of ' + plural(s.slots, 'slot'));
  big('queue', silent ? '–' : count(s.queue_depth));
  note('queue-note', recent && recent.waited_ms ? ms(recent.waited_ms.mean) + ' ms wait, at most ' + ms(recent.waited_ms.max) : '');
  big('missed', count(s.shed + s.errors));
  note('missed-note', count(s.shed) + ' shed, ' + count(s.errors) + ' failed', s.shed + s.errors ? 'bad' : '');
  text('aim', 'p99 target ' + ms(head.target_ms) + ' ms, promise ' + ms(head.promise_ms) + ' ms');
}

/** Where the time of a replica's requests goes: in the dispatcher, of all requests alike, then in the replica. */
function stagesOf(r) {
  if (!r.stages_ms) return [];
  const waited = stats.recent && stats.recent.waited_ms;
  return [['wait', waited ? waited.mean : 0], ['inner', r.stages_ms.queue], ['decode', r.stages_ms.decode], ['infer', r.stages_ms.infer]];
}
const sum = stages => stages.reduce((total, [, value]) => total + value, 0);

function stagesCell(stages, most) {
  if (!stages.length) return element('td', 'stages', element('span', '', 'no answer yet'));
  const bar = element('div', 'bar');
  for (const [name, value] of stages) {
    const part = element('i', name);
    part.style.width = 100 * value / most + '%';
    bar.append(part);
  }
  return element('td', 'stages', bar, element('span', '', stages.map(([, value]) => ms(value)).join(' + ') + ' = ' + ms(sum(stages)) + ' ms'));
}

function showReplicas() {
  const mood = { ready: 'good', starting: 'warn', draining: 'warn', ejected: 'bad', down: 'bad' };
  const mark = { ready: '● ', starting: '◌ ', draining: '◐ ', ejected: '⊘ ', down: '✕ ' };
  const most = Math.max(1, ...stats.replicas.map(r => sum(stagesOf(r))));
  $('rows').replaceChildren(...stats.replicas.slice(0, ROWS).map(r => {
    const slots = element('div', 'slots');
    for (let i = 0; i < Math.min(r.slots, 16); i++) slots.append(element('i', i < r.in_flight ? 'used' : ''));
    slots.append(element('span', '', r.in_flight + ' of ' + r.slots));
    const state = element('td', 'state ' + (mood[r.state] || ''), (mark[r.state] || '') + r.state);
    return element('tr', '', state, element('td', 'url', r.url.replace(/^\w+:\/\//, '')), element('td', 'in-use', slots),
      element('td', 'answers', count(r.answered)), stagesCell(stagesOf(r), most));
  }));
  $('table').hidden = !stats.replicas.length;
  $('no-rows').hidden = stats.replicas.length > 0;
}

function showDecisions() {
  const listed = decisions.slice(-LISTED).reverse();
  $('decisions').replaceChildren(...listed.map(d => {
    const why = element('span', '', d.reason);
    if (changes(d) && !d.applied) why.append(element('em', '', 'not applied'));
    return element('li', '', element('time', '', ago(now() - d.t_s)), element('b', '', stepOf(d)), why);
  }));
  text('no-decisions', decisionsError ? 'The autoscaler does not tell: ' + decisionsError : 'No decision yet.');
  $('no-decisions').hidden = listed.length > 0 && !decisionsError;
}

// ---- plots -------------------------------------------------------------------------------------------------
const GUTTER = 40, RIGHT = 8, TOP = 8, FOOT = 5, AXIS = 24;
const colour = name => getComputedStyle(document.documentElement).getPropertyValue('--' + name).trim();

/** A round number no smaller than value. */
function ceiling(value) {
  const unit = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].map(m => m * unit).find(n => n >= value * 0.999);
}

/** Minutes between two lines of time. */
const minutesApart = w => w < 560 ? 5 : 2;

/** Clears a canvas, draws the lines of time and the marks of decisions, and returns what draws into it. */
function plot(id, yMax, ticks) {
  const canvas = $(id), scale = window.devicePixelRatio || 1;
  const { width: w, height: h } = canvas.getBoundingClientRect();
  if (canvas.width !== Math.round(w * scale) || canvas.height !== Math.round(h * scale)) {
    [canvas.width, canvas.height] = [Math.round(w * scale), Math.round(h * scale)];
  }
  const c = canvas.getContext('2d');
  c.setTransform(scale, 0, 0, scale, 0, 0);
  c.clearRect(0, 0, w, h);
  c.font = '12px system-ui, sans-serif';
  const end = now(), bottom = h - FOOT;
  const x = t => GUTTER + (w - GUTTER - RIGHT) * (1 - (end - t) / SPAN_S);
  const y = v => bottom - (bottom - TOP) * Math.min(v / yMax, 1);
  c.lineWidth = 1;
  for (const tick of ticks) {
    c.strokeStyle = colour('grid');
    c.beginPath(); c.moveTo(GUTTER, y(tick)); c.lineTo(w - RIGHT, y(tick)); c.stroke();
    c.fillStyle = colour('soft'); c.textAlign = 'right'; c.textBaseline = 'middle';
    c.fillText(tick.toLocaleString('en'), GUTTER - 7, y(tick));
  }
  c.textBaseline = 'alphabetic';
  const upright = (t, name, dash) => {
    c.strokeStyle = colour(name); c.setLineDash(dash);
    c.beginPath(); c.moveTo(x(t), 0); c.lineTo(x(t), id === 'axis' ? AXIS : h); c.stroke(); c.setLineDash([]);
  };
  for (let minutes = 10; minutes >= 0; minutes -= minutesApart(w)) upright(end - minutes * 60, 'grid', []);
  for (const d of marks()) upright(d.t_s, 'soft', [1, 3]);
  const shown = points.filter(p => p.t_s >= end - SPAN_S - 1);
  return { c, x, y, w, h, bottom, yMax, shown, end };
}

/** Decisions that change something and lie on the axis. */
const marks = () => decisions.filter(d => changes(d) && d.t_s > now() - SPAN_S);
const ticksOf = yMax => [0, yMax / 2, yMax].map(v => Math.round(v * 100) / 100);

/** A line through values, broken where nothing is known. */
function line(p, value, name, width) {
  const { c } = p;
  c.strokeStyle = colour(name); c.lineWidth = width; c.lineJoin = 'round';
  c.beginPath();
  let last = null;
  for (const point of p.shown) {
    const v = value(point);
    if (!known(v)) { last = null; continue; }
    const at = [p.x(point.t_s + 0.5), p.y(v)];
    if (last) c.lineTo(...at);
    // A second alone between two silent ones is still to be seen.
    else { c.moveTo(at[0] - 1, at[1]); c.lineTo(...at); }
    last = at;
  }
  c.stroke();
}

/** Blocks from one level to another, a second wide, or `least` pixels where that is more. */
function blocks(p, from, to, fill, least) {
  p.c.fillStyle = fill;
  // Whole device pixels: neighbours then meet without a seam or an overlap.
  const scale = window.devicePixelRatio || 1, snap = v => Math.round(Math.max(v, GUTTER) * scale) / scale;
  for (const point of p.shown) {
    if (!known(to(point)) || to(point) <= from(point)) continue;
    const left = snap(p.x(point.t_s)), right = Math.max(snap(p.x(point.t_s + 1)), left + (least || 0));
    p.c.fillRect(left, p.y(to(point)), right - left, p.y(from(point)) - p.y(to(point)));
  }
}

function threshold(p, value, name, label, offset) {
  const { c } = p, at = p.y(value);
  c.strokeStyle = c.fillStyle = colour(name); c.lineWidth = 1.5; c.setLineDash([6, 4]);
  c.beginPath(); c.moveTo(GUTTER, at); c.lineTo(p.w - RIGHT, at); c.stroke(); c.setLineDash([]);
  c.textAlign = 'left'; c.textBaseline = 'alphabetic';
  c.fillText(label, GUTTER + 5, at + offset);
}

function hatch(c, name) {
  const tile = document.createElement('canvas');
  tile.width = tile.height = 6;
  const t = tile.getContext('2d');
  t.strokeStyle = colour(name); t.lineWidth = 1.6;
  t.beginPath(); t.moveTo(-1, 4); t.lineTo(4, -1); t.moveTo(2, 7); t.lineTo(7, 2); t.stroke();
  return c.createPattern(tile, 'repeat');
}

/** The line under the pointer, through all plots alike. */
function cursor(p) {
  if (hoverX === null) return;
  p.c.strokeStyle = colour('soft'); p.c.lineWidth = 1;
  p.c.beginPath(); p.c.moveTo(hoverX, 0); p.c.lineTo(hoverX, p.h); p.c.stroke();
}

const timeAt = p => p.end - SPAN_S * (1 - (hoverX - GUTTER) / (p.w - GUTTER - RIGHT));

function emptyPlot(p, words) {
  p.c.fillStyle = colour('soft'); p.c.textAlign = 'center'; p.c.textBaseline = 'middle';
  p.c.font = '14px system-ui, sans-serif';
  p.c.fillText(words, (GUTTER + p.w) / 2, (TOP + p.bottom) / 2 + 12);
}

function drawLatency() {
  const seen = points.map(p => p.p99_ms).filter(known);
  const yMax = Math.min(ceiling(Math.max(head.promise_ms * 1.2, ...seen)), Math.max(CLIP_MS, ceiling(head.promise_ms * 2)));
  const p = plot('latency', yMax, ticksOf(yMax));
  threshold(p, head.promise_ms, 'promise', 'promise ' + ms(head.promise_ms) + ' ms', -5);
  threshold(p, head.target_ms, 'target', 'target ' + ms(head.target_ms) + ' ms', 14);
  line(p, d => d.p50_ms, 'p50', 1.6);
  line(p, d => d.p99_ms, 'p99', 2);
  // What is off the scale is marked at its top, not hidden.
  p.c.fillStyle = colour('p99');
  for (const d of p.shown.filter(d => d.p99_ms > yMax)) triangle(p.c, p.x(d.t_s + 0.5), TOP - 4, 4, true);
  if (!seen.length) emptyPlot(p, 'no traffic yet');
  cursor(p);
  return p;
}

function drawRate() {
  const yMax = ceiling(Math.max(2, ...points.map(d => Math.max(d.arrivals, d.ok, d.shed + d.errors))) * 1.05);
  const p = plot('rate', yMax, ticksOf(yMax));
  p.c.globalAlpha = 0.35;
  blocks(p, () => 0, d => d.ok, colour('answered'));
  p.c.globalAlpha = 1;
  blocks(p, () => 0, d => d.shed, colour('promise'), 2);
  blocks(p, d => d.shed, d => d.shed + d.errors, colour('failed'), 2);
  if (everHadTraffic()) line(p, d => d.arrivals, 'arrivals', 1.8);
  else emptyPlot(p, 'no traffic yet');
  cursor(p);
}

function drawReplicas() {
  const ready = d => d.replicas_ready || 0, draining = d => ready(d) + (d.replicas_draining || 0);
  const total = d => draining(d) + (d.replicas_starting || 0);
  const most = Math.max(2, ...points.map(total)) + 0.5, yMax = most > 10 ? ceiling(most) : most;
  const step = Math.max(1, Math.ceil(most / 5)), ticks = [];
  for (let v = 0; v <= yMax; v += step) ticks.push(v);
  const p = plot('replicas', yMax, ticks);
  p.c.globalAlpha = 0.8;
  blocks(p, () => 0, ready, colour('answered'));
  blocks(p, ready, draining, colour('draining'));
  p.c.globalAlpha = 1;
  blocks(p, draining, total, hatch(p.c, 'starting'));
  if (!points.some(d => total(d) > 0)) emptyPlot(p, 'no replica yet');
  cursor(p);
}

/** A triangle around a point, filled, or an outline. */
function triangle(c, x, y, size, up, hollow) {
  const tip = up ? -size : size;
  c.beginPath(); c.moveTo(x - size, y - tip); c.lineTo(x + size, y - tip); c.lineTo(x, y + tip); c.closePath();
  if (hollow) { c.lineWidth = 1.5; c.stroke(); } else c.fill();
}

/** The one axis of time, with the decisions on it. */
function drawAxis() {
  const p = plot('axis', 1, []), { c } = p, level = 11;
  c.strokeStyle = colour('soft'); c.lineWidth = 1;
  c.beginPath(); c.moveTo(GUTTER, AXIS); c.lineTo(p.w - RIGHT, AXIS); c.stroke();
  for (const d of marks()) {
    const up = d.replicas > d.replicas_before;
    c.fillStyle = c.strokeStyle = colour(up ? 'arrivals' : 'ink');
    triangle(c, p.x(d.t_s), level, 6, up, !d.applied);
  }
  const apart = minutesApart(p.w);
  for (let minutes = 10; minutes >= 0; minutes -= apart) {
    c.fillStyle = colour('soft'); c.textAlign = minutes === 10 ? 'left' : minutes ? 'center' : 'right';
    const at = minutes === 10 ? GUTTER - 8 : minutes ? p.x(p.end - minutes * 60) : p.w - RIGHT;
    c.fillText(minutes ? '−' + minutes + ' min' : 'now', at, p.h - 5);
  }
  cursor(p);
  if (hoverX === null) return;
  const label = ago(Math.max(p.end - timeAt(p), 0)), half = c.measureText(label).width / 2 + 5;
  const at = Math.min(Math.max(hoverX, GUTTER + half), p.w - RIGHT - half);
  c.fillStyle = colour('ink'); c.fillRect(at - half, p.h - 19, 2 * half, 19);
  c.fillStyle = colour('card'); c.textAlign = 'center'; c.fillText(label, at, p.h - 5);
}

/** What was decided near the pointer, and why. */
function showTip(p) {
  const near = hoverX === null ? [] : marks().filter(d => Math.abs(p.x(d.t_s) - hoverX) < 9);
  near.sort((a, b) => Math.abs(p.x(a.t_s) - hoverX) - Math.abs(p.x(b.t_s) - hoverX));
  const [d] = near, tip = $('tip');
  tip.hidden = !d;
  if (!d) return;
  tip.replaceChildren(element('b', '', stepOf(d) + (d.applied ? '' : ', not applied') + ' · ' + ago(now() - d.t_s)), d.reason);
  const axis = $('axis'), left = axis.offsetLeft + p.x(d.t_s) - tip.offsetWidth / 2;
  tip.style.left = Math.min(Math.max(left, 8), $('plots').clientWidth - tip.offsetWidth - 8) + 'px';
  tip.style.top = axis.offsetTop - tip.offsetHeight - 4 + 'px';
}

function draw() {
  if (!head) return;
  const p = drawLatency();
  drawRate(); drawReplicas(); drawAxis(); showTip(p);
  const wanted = hoverX === null ? null : Math.floor(timeAt(p));
  const d = (wanted === null ? points.at(-1) : points.find(d => d.t_s === wanted)) || {};
  text('k-p99', ms(d.p99_ms)); text('k-p50', ms(d.p50_ms));
  text('k-arrivals', count(d.arrivals)); text('k-ok', count(d.ok));
  text('k-shed', count(d.shed)); text('k-failed', count(d.errors));
  text('k-ready', count(d.replicas_ready)); text('k-draining', count(d.replicas_draining)); text('k-starting', count(d.replicas_starting));
  const last = points.at(-1) || {};
  const says = (id, words) => $(id).setAttribute('aria-label', words);
  says('latency', 'p50 and p99 latency over ten minutes; last second p99 ' + ms(last.p99_ms) + ' ms, p50 ' + ms(last.p50_ms) + ' ms');
  says('rate', 'requests a second over ten minutes; last second ' + count(last.arrivals) + ' arrived, ' + count(last.ok) + ' answered');
  says('replicas', 'replicas over ten minutes; now ' + count(last.replicas_ready) + ' ready, ' + count(last.replicas_starting) + ' starting');
  says('axis', plural(marks().length, 'scaling decision') + ' in ten minutes; they are listed below');
}

function show() {
  if (stats) { showFigures(); showReplicas(); showDecisions(); }
  showStatus();
  draw();
}

// ---- asking ------------------------------------------------------------------------------------------------
const PATIENCE_MS = 5000, RETRY_MS = 10000;
let source = null, triedAt = -Infinity, eventAt = -Infinity, asking = false;
const after = () => head ? '?after=' + encodeURIComponent(head.cursor) : '';
const streaming = () => source !== null && performance.now() - eventAt < PATIENCE_MS;

/** Follows the events. Where they do not come through the page asks instead, and tries them again later. */
function follow() {
  if (source) source.close();
  const followed = source = new EventSource('events' + after());
  triedAt = performance.now();
  followed.addEventListener('update', event => { eventAt = performance.now(); take(JSON.parse(event.data)); show(); });
  followed.addEventListener('error', () => { followed.close(); if (source === followed) source = null; poll(); });
}

async function poll() {
  if (asking) return;
  asking = true;
  try {
    const answer = await fetch('update' + after(), { signal: AbortSignal.timeout(4000), cache: 'no-store' });
    const body = await answer.json();
    if (!answer.ok) throw new Error(body.error || answer.statusText);
    take(body);
  } catch (error) {
    if (failedSince === null) { failedSince = performance.now(); console.warn(error); }
  }
  asking = false;
  show();
}

setInterval(() => {
  // Browsers open few connections to one place: pages that nobody looks at leave theirs to the others.
  if (document.hidden && source) { source.close(); source = null; }
  if (streaming()) { show(); return; }
  poll();
  if (!document.hidden && performance.now() - triedAt > RETRY_MS) follow();
}, 1000);
document.addEventListener('visibilitychange', () => { if (!document.hidden && !source) follow(); });

for (const id of PLOTS) {
  const point = event => { hoverX = Math.max(event.offsetX, GUTTER); draw(); };
  $(id).addEventListener('pointermove', point);
  $(id).addEventListener('pointerdown', point);
  // A finger that was lifted still reads what it tapped.
  $(id).addEventListener('pointerleave', event => { if (event.pointerType === 'mouse') { hoverX = null; draw(); } });
}
document.addEventListener('pointerdown', event => { if (!PLOTS.includes(event.target.id)) { hoverX = null; draw(); } });
window.addEventListener('resize', draw);
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', draw);
follow();
