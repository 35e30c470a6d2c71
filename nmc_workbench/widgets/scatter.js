// Points as one picture: colours and marks come as arrays. A change of either, of place or of zoom draws all points
// again, which takes some milliseconds for 60,000. Of many more, MOVING are drawn while the map moves, and all when it
// rests; while a lasso is drawn, the picture below it is kept.
const MOVING = 150000;
function disc(radius) {       // the pixels of a point: dx, dy, cover
  const out = [], r = Math.ceil(radius);
  for (let dy = -r; dy <= r; dy++) for (let dx = -r; dx <= r; dx++) {
    const cover = Math.min(1, Math.max(0, radius + .5 - Math.hypot(dx, dy)));
    if (cover > 0) out.push([dx, dy, cover]);
  }
  return out;
}
const rgb = hex => [1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16));

const BOX = 'position:relative;background:#fff;color:#222;border:1px solid #ddd;font:12px sans-serif;' +
  'user-select:none;overflow:hidden';
const CANVAS = 'display:block;width:100%;cursor:crosshair;touch-action:none';
const TITLE = 'position:absolute;left:8px;top:6px;font-weight:bold;background:rgba(255,255,255,.8)';
const TIP = 'position:absolute;display:none;pointer-events:none;background:#fff;border:1px solid #999;' +
  'border-radius:3px;padding:4px;max-width:240px;box-shadow:0 1px 4px #0004;z-index:2';
const KEY = 'position:absolute;left:8px;bottom:6px;background:rgba(255,255,255,.85);pointer-events:none;' +
  'max-width:calc(100% - 16px);line-height:1.4';
const BUTTON = 'margin-left:3px;border:1px solid #ccc;border-radius:3px;background:#fff;color:#222;cursor:pointer;' +
  'font:12px sans-serif;padding:1px 6px';

export default { render({model, el}) {
  const box = make(el, 'div', BOX, {className: 'nmc-map'});
  const canvas = make(box, 'canvas', CANVAS);
  const title = make(box, 'div', TITLE, {className: 'nmc-map-title'});
  const tools = make(box, 'div', 'position:absolute;right:6px;top:5px');
  const key = make(box, 'div', KEY, {className: 'nmc-key'});
  const tip = make(box, 'div', TIP, {className: 'nmc-tip'});
  const tipImage = make(tip, 'img', 'display:block;image-rendering:pixelated;width:96px');
  const tipText = make(tip, 'div', 'white-space:pre-line;overflow-wrap:anywhere');
  const ctx = canvas.getContext('2d');
  let s = {}, view = null, drag = null, pan = false, moved = false, hovered = -1, asked = 0, frame = 0, lasso = [];
  let resting = 0, kept = null;

  function button(text, hint, act) {
    const b = make(tools, 'button', BUTTON, {textContent: text, title: hint});
    b.onclick = () => {
      act();
      for (const c of tools.children) c.style.fontWeight = (c === move) === pan && c !== whole ? 'bold' : 'normal';
    };
    return b;
  }
  const draw2 = button('lasso', 'draw around points to select them (or click one)', () => pan = false);
  const move = button('move', 'drag to move; the wheel zooms in both modes', () => pan = true);
  const whole = button('all', 'show every point', () => { view = null; paint(); });
  draw2.style.fontWeight = 'bold';

  function fit() {             // equal axes, everything in sight
    const [w, h] = [canvas.width, canvas.height];
    let [x0, x1, y0, y1] = [Infinity, -Infinity, Infinity, -Infinity];
    for (let i = 0; i < s.xy.length; i += 2) {
      x0 = Math.min(x0, s.xy[i]); x1 = Math.max(x1, s.xy[i]);
      y0 = Math.min(y0, s.xy[i + 1]); y1 = Math.max(y1, s.xy[i + 1]);
    }
    const foot = key.offsetHeight * ratio();        // below it no point is drawn
    const k = .92 * Math.min(w / Math.max(x1 - x0, 1e-9), (h - 40 - foot) / Math.max(y1 - y0, 1e-9));
    moved = false;
    return {k, x: w / 2 - k * (x0 + x1) / 2, y: 14 + (h - foot) / 2 + k * (y0 + y1) / 2};
  }
  const X = i => view.k * s.xy[2 * i] + view.x, Y = i => view.y - view.k * s.xy[2 * i + 1];

  function stamp(pixels, w, h, spots, i, [r, g, b]) {
    const x = Math.round(X(i)), y = Math.round(Y(i));
    if (x < -9 || y < -9 || x > w + 9 || y > h + 9) return;
    for (const [dx, dy, cover] of spots) {
      const px = x + dx, py = y + dy;
      if (px < 0 || py < 0 || px >= w || py >= h) continue;
      const o = 4 * (py * w + px), rest = 1 - cover;
      pixels[o] = r * cover + pixels[o] * rest;
      pixels[o + 1] = g * cover + pixels[o + 1] * rest;
      pixels[o + 2] = b * cover + pixels[o + 2] * rest;
    }
  }
  function paint() { frame ||= requestAnimationFrame(() => { frame = 0; draw(); }); }
  function resize(w, h) {
    if (canvas.width === w && canvas.height === h) return;
    kept = null;
    canvas.width = w; canvas.height = h;
    view = null;
  }
  function moving() {           // few points until the map rests
    clearTimeout(resting);
    kept = null;
    resting = setTimeout(() => { resting = 0; paint(); }, 150);
    paint();
  }
  function drawPoints(w, h, ratio) {      // those that are marked over the others, which fade
    if (kept && lasso.length > 1) return ctx.putImageData(kept, 0, 0);
    const image = ctx.createImageData(w, h), pixels = image.data.fill(255), n = s.xy.length / 2;
    const colours = s.palette.map(rgb), faded = colours.map(c => c.map(v => Math.round(.16 * v + .84 * 245)));
    const spots = disc(ratio * Math.min(4.5, Math.max(1.1, 190 / Math.sqrt(n)))), some = s.marked?.length === n;
    const step = resting && n > MOVING ? Math.ceil(n / MOVING) : 1;
    for (let i = 0; i < n; i += step)
      if (!some || !s.marked[i]) stamp(pixels, w, h, spots, i, (some ? faded : colours)[s.codes[i]]);
    if (some) for (let i = 0; i < n; i += step) if (s.marked[i]) stamp(pixels, w, h, spots, i, colours[s.codes[i]]);
    kept = image;
    ctx.putImageData(image, 0, 0);
  }
  function drawTexts(ratio) {
    ctx.font = `bold ${13 * ratio}px sans-serif`;
    ctx.textAlign = 'center'; ctx.textBaseline = 'middle'; ctx.lineJoin = 'round'; ctx.lineWidth = 3 * ratio;
    for (const [x, y, text] of s.texts || []) {
      const at = [view.k * x + view.x, view.y - view.k * y];
      ctx.strokeStyle = '#fff'; ctx.fillStyle = '#111';
      ctx.strokeText(text, ...at); ctx.fillText(text, ...at);
    }
  }
  function drawLasso(ratio) {
    ctx.beginPath(); lasso.forEach(p => ctx.lineTo(...p)); ctx.closePath();
    ctx.fillStyle = '#0072b222'; ctx.fill();
    ctx.strokeStyle = '#0072b2'; ctx.lineWidth = 1.5 * ratio; ctx.stroke();
  }
  function draw() {
    if (!s.xy) return;
    const ratio = devicePixelRatio || 1;
    canvas.style.height = s.height;
    const w = Math.round(box.clientWidth * ratio), h = Math.round(canvas.clientHeight * ratio);
    if (!w || !h) return;
    resize(w, h);
    view ||= fit();
    drawPoints(w, h, ratio);
    drawTexts(ratio);
    if (lasso.length > 1) drawLasso(ratio);
    canvas.dataset.drawn = (+canvas.dataset.drawn || 0) + 1;       // for whoever waits for a picture
  }
  function inside() {           // the points in the lasso: its filled mask, read at every point
    const hidden = Object.assign(document.createElement('canvas'), {width: canvas.width, height: canvas.height});
    const mask = hidden.getContext('2d', {willReadFrequently: true});
    mask.beginPath(); lasso.forEach(p => mask.lineTo(...p)); mask.closePath(); mask.fill('evenodd');
    const {data, width, height} = mask.getImageData(0, 0, canvas.width, canvas.height), found = [];
    for (let i = 0; i < s.xy.length / 2; i++) {
      const x = Math.round(X(i)), y = Math.round(Y(i));
      if (x >= 0 && y >= 0 && x < width && y < height && data[4 * (y * width + x) + 3] > 127) found.push(i);
    }
    return Uint32Array.from(found);
  }
  function nearest([x, y], within) {
    let best = -1, least = within * within;
    for (let i = 0; i < s.xy.length / 2; i++) {
      const d = (X(i) - x) ** 2 + (Y(i) - y) ** 2;
      if (d < least) { least = d; best = i; }
    }
    return best;
  }
  const ratio = () => canvas.width / Math.max(canvas.getBoundingClientRect().width, 1);
  function at(e) {
    const r = canvas.getBoundingClientRect(), k = ratio();
    return [(e.clientX - r.left) * k, (e.clientY - r.top) * k];
  }

  function hover(e) {
    const i = nearest(at(e), 8 * ratio());
    if (i === hovered) return;
    hovered = i;
    tip.style.display = 'none';
    clearTimeout(asked);
    if (i >= 0) asked = setTimeout(() => model.send({hover: i}), 30);
  }
  function tell() {
    if (s.hover?.i !== hovered || hovered < 0) return;
    const k = ratio(), x = X(hovered) / k, y = Y(hovered) / k;
    tipText.textContent = s.hover.text;
    if (tipImage.src) URL.revokeObjectURL(tipImage.src);
    tipImage.style.display = s.picture?.byteLength ? 'block' : 'none';
    if (s.picture?.byteLength) tipImage.src = url(s.picture, 'image/png');
    const left = Math.max(0, Math.min(x + 12, box.clientWidth - 250)), top = Math.max(0, y < 150 ? y + 12 : y - 150);
    Object.assign(tip.style, {display: 'block', left: left + 'px', top: top + 'px'});
  }
  canvas.onpointerdown = e => {
    if (!view || e.button) return;
    try { canvas.setPointerCapture(e.pointerId); } catch { /* a pointer that is not there, as in tests */ }
    drag = {from: at(e), x: view.x, y: view.y, far: false};
    lasso = pan ? [] : [at(e)];
  };
  canvas.onpointermove = e => {
    if (!view) return;
    if (!drag) return hover(e);
    const [x, y] = at(e), [x0, y0] = drag.from;
    drag.far ||= Math.hypot(x - x0, y - y0) > 4;
    if (pan) { view.x = drag.x + x - x0; view.y = drag.y + y - y0; moved = true; } else lasso.push([x, y]);
    if (drag.far) pan ? moving() : paint();
  };
  canvas.onpointerup = e => {
    if (!drag) return;
    if (!drag.far) model.send({click: nearest(at(e), 8 * ratio()), held: e.ctrlKey || e.shiftKey || e.metaKey});
    else if (!pan && lasso.length > 2) {
      const found = inside();
      model.send({lasso: found.length}, undefined, [found.buffer]);
    }
    drag = null; lasso = [];
    paint();
  };
  canvas.onpointerleave = () => { hovered = -1; clearTimeout(asked); tip.style.display = 'none'; };
  canvas.ondblclick = () => { view = null; paint(); };
  canvas.addEventListener('wheel', e => {
    if (!view) return;
    e.preventDefault();
    const [x, y] = at(e), f = Math.exp(-e.deltaY / 400);
    Object.assign(view, {k: view.k * f, x: x - f * (x - view.x), y: y - f * (y - view.y)});
    moved = true; hovered = -1; tip.style.display = 'none';
    moving();
  }, {passive: false});

  function explain() {          // what the colours mean: a scale from end to end, or a list
    const {title = '', entries = [], ends} = s.key ?? {};
    key.replaceChildren();
    if (title) make(key, 'span', 'font-weight:bold;margin-right:6px', {textContent: title});
    if (ends) {
      make(key, 'span', '', {textContent: ends[0]});
      const from = `linear-gradient(to right,${s.palette.join(',')})`;
      make(key, 'span', `display:inline-block;width:90px;height:10px;margin:0 4px;background:${from}`);
      make(key, 'span', '', {textContent: ends[1]});
    }
    for (const [colour, text] of entries) {
      make(key, 'span', `color:${colour}`, {textContent: '⬤ '});
      make(key, 'span', 'margin-right:8px', {textContent: text});
    }
  }
  const quiet = keys(box, e => {
    const large = document.querySelector('.nmc-large');         // closes first
    if (e.key === 'Escape' && s.marked?.length && !large) model.send({click: -1});
  });

  const forget = follow(model, (state, changed) => {
    s = state;
    kept = null;
    if (changed.has('xy')) view = null;
    if (changed.has('title')) title.textContent = s.title;
    if (changed.has('key') || changed.has('palette')) explain();
    if (changed.has('key') && !moved) view = null;      // it takes room at the foot
    // the tab of an app is named after the run
    if (s.tab && document.getElementById('rendered_cells')) document.title = s.tab;
    if (changed.has('hover') && !changed.has('xy')) return tell();
    box.dataset.marked = s.marked?.length ? s.marked.reduce((a, b) => a + b, 0) : '';
    paint();
  });
  // where a point is on the screen, for tests
  box.nmcPoint = i => {
    const r = canvas.getBoundingClientRect(), k = ratio();
    return [r.left + X(i) / k, r.top + Y(i) / k];
  };
  const sized = new ResizeObserver(paint);
  sized.observe(box);
  return () => { forget(); quiet(); sized.disconnect(); clearTimeout(resting); };
} };
