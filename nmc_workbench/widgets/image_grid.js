// One page of images: a single picture holds them all, and every tile shows its part of it.
const BOX = 'background:#fff;color:#222;font:12px sans-serif;padding:2px;min-height:40px';
const TILE = 'display:inline-block;box-sizing:content-box;margin:2px;border-radius:2px;cursor:pointer;' +
  'vertical-align:top;overflow:hidden';
const HEAD = 'margin:5px 2px 1px;font-weight:bold;cursor:pointer;' +
  'overflow:hidden;text-overflow:ellipsis;white-space:nowrap';

const CAPTIONED = 'display:inline-block;vertical-align:top;margin:0 4px 6px 0;text-align:center';
const LARGE = 'background:#fff;color:#222;font:12px sans-serif;line-height:1.3;display:flex;gap:12px;' +
  'padding:8px;box-sizing:border-box;overflow:auto';
const BUTTON = 'border:1px solid #ccc;border-radius:3px;background:#fff;color:#222;cursor:pointer;margin-right:4px;' +
  'font:12px sans-serif;padding:2px 7px;margin-bottom:4px';
const BUTTONS = [['back', '‹', 'the image before (left arrow)'], ['next', '›', 'the next image (right arrow)'],
  ['close', 'close', 'back to the tiles (Esc)'],
  ['find similar', 'find similar', 'select the images most like it, over the whole set'],
  ['take out', 'take out', 'take it out of the selection'], ['pick', 'pick', 'add it to the selection']];
const SMALL = 36;               // screen pixels of the images beside a large one
const PRESSED = {ArrowLeft: 'back', ArrowRight: 'next', Escape: 'close'};

export default { render({model, el}) {
  const whole = make(el, 'div', 'position:relative;background:#fff');
  const box = make(whole, 'div', BOX, {className: 'nmc-tiles'});
  let address = null, s = {}, turn = 0, large = null, shownLarge = null, shownStrip = null;

  function mark() {
    const chosen = new Set(s.marked);
    for (const tile of box.querySelectorAll('.nmc-tile'))
      tile.style.outline = chosen.has(+tile.dataset.i) ? '3px solid #111' : 'none';
  }
  function word(t, text) {      // instead of an image
    Object.assign(t.style, {width: 'auto', height: 'auto', padding: '2px 5px'});
    t.textContent = text.split('\n')[0].slice(0, 60);
  }
  function tile(parent, k) {
    const caption = s.captions[k];
    if (caption) parent = make(parent, 'div', `${CAPTIONED};width:${Math.max(86, s.page.width + 10)}px`);
    picture(parent, k);
    if (caption) make(parent, 'div', 'font-size:11px;line-height:1.15;overflow-wrap:anywhere', {textContent: caption});
  }
  function picture(parent, k) {
    const {side, width, columns} = s.page, zoom = width / side, edge = s.edges[k] || '#ddd';
    const shape = `${TILE};width:${width}px;height:${width}px;border:3px solid ${edge}`;
    const t = make(parent, 'div', shape, {className: 'nmc-tile', title: s.texts[k] || ''});
    t.dataset.i = s.index[k];
    if (!address) return word(t, s.texts[k] || '');
    t.style.backgroundImage = `url(${address})`;
    t.style.backgroundSize = `${columns * side * zoom}px auto`;
    t.style.backgroundPosition = `${-(k % columns) * side * zoom}px ${-Math.floor(k / columns) * side * zoom}px`;
    t.style.imageRendering = zoom > 1 ? 'pixelated' : 'auto';
  }
  function heading([, text, colour], k) {
    const head = make(box, 'div', HEAD, {className: 'nmc-head', title: text});
    head.dataset.j = s.headings.findIndex(h => h[0] === k);
    make(head, 'span', `color:${colour}`, {textContent: '⬤ '});
    make(head, 'span', '', {textContent: text});
  }
  // a cluster's tiles keep to one line: those that do not fit as a whole wrap out of sight
  function line() {
    return `display:flex;flex-wrap:wrap;overflow:hidden;height:${address ? s.page.width + 10 : 29}px`;
  }
  function fit() {              // whole rows in the height there is
    if (!s.height) return;
    whole.style.height = s.height;
    box.style.cssText = BOX + ';overflow-y:auto';
    const [first] = box.querySelectorAll('.nmc-head, .nmc-tile');
    const two = [...box.querySelectorAll(`.${first?.className ?? 'none'}`)].find(e => e.offsetTop > first.offsetTop);
    const pitch = two ? two.offsetTop - first.offsetTop : 0, room = whole.clientHeight - 4;
    box.style.height = (pitch && pitch <= room ? Math.floor(room / pitch) * pitch : room) + 'px';
  }
  function open() {             // one image large, beside what is known of it
    large?.remove();
    for (const a of [shownLarge, shownStrip]) if (a) URL.revokeObjectURL(a);
    large = shownLarge = shownStrip = null;
    if (!s.large) return;
    large = document.createElement('div');
    whole.prepend(large);
    large.className = 'nmc-large';
    large.style.cssText = LARGE + (s.height ? ';position:absolute;inset:0;z-index:1' : '');
    if (s.picture.byteLength) {
      shownLarge = url(s.picture, s.large.type);
      const side = s.height ? '100%' : '320px';
      const image = make(large, 'img', `flex:0 1 auto;min-width:0;object-fit:contain;height:${side};max-width:65%;` +
        'object-position:left top', {src: shownLarge, alt: s.large.lines[0] ?? ''});
      image.onload = () => { if (image.naturalHeight < 128) image.style.imageRendering = 'pixelated'; };
    }
    const beside = make(large, 'div', 'flex:1 1 160px;min-width:150px');
    const tools = make(beside, 'div', 'margin-bottom:4px');
    for (const [name, textContent, title] of BUTTONS) {
      if (name === (s.large.picked ? 'pick' : 'take out')) continue;
      make(tools, 'button', BUTTON, {textContent, title}).onclick = () => model.send({large: name});
    }
    s.large.lines.forEach((textContent, k) => make(beside, 'div', 'overflow-wrap:anywhere;user-select:text;' +
      `margin-bottom:4px;font-weight:${k ? 'normal' : 'bold'}`, {textContent}));
    if (s.large.near?.index.length) neighbours(beside, s.large.near);
  }
  function neighbours(parent, {index, texts, side, columns, type}) {
    make(parent, 'div', 'margin:8px 0 2px;color:#555', {textContent: 'most like it'});
    if (s.strip.byteLength) shownStrip = url(s.strip, type);
    const zoom = SMALL / side;
    index.forEach((i, k) => {
      const look = `display:inline-block;width:${SMALL}px;height:${SMALL}px;margin:0 3px 3px 0;border-radius:2px;` +
        'border:1px solid #ccc;cursor:pointer;overflow:hidden;vertical-align:top';
      const t = make(parent, 'div', look, {className: 'nmc-near', title: texts[k]});
      t.dataset.i = i;
      t.onclick = () => model.send({near: i});
      if (!shownStrip) return word(t, texts[k]);
      t.style.background = `url(${shownStrip}) ${-(k % columns) * SMALL}px ${-Math.floor(k / columns) * SMALL}px / ` +
        `${columns * side * zoom}px auto`;
      t.style.imageRendering = zoom > 1 ? 'pixelated' : 'auto';
    });
  }
  const quiet = keys(whole, e => {
    if (!large || !PRESSED[e.key]) return;
    e.preventDefault();
    e.stopImmediatePropagation();
    model.send({large: PRESSED[e.key]});
  });
  async function show() {
    const mine = ++turn, before = address, next = s.sprite.byteLength ? url(s.sprite, s.page.type) : null;
    if (next) {
      const image = new Image();
      image.src = next;
      try { await image.decode(); } catch { /* shown as far as it goes */ }
    }
    if (mine !== turn) { if (next) URL.revokeObjectURL(next); return; }      // another page came meanwhile
    address = next;
    box.replaceChildren();
    const heads = new Map(s.headings.map(h => [h[0], h]));
    let row = make(box, 'div');
    for (let k = 0; k < s.index.length; k++) {
      if (heads.has(k)) {
        heading(heads.get(k), k);
        row = make(box, 'div', line());
      }
      tile(row, k);
    }
    if (!s.index.length) make(box, 'div', 'padding:12px;color:#666', {textContent: s.nothing});
    if (before) URL.revokeObjectURL(before);
    fit();
    box.scrollTop = 0;
    mark();
    box.dataset.drawn = (+box.dataset.drawn || 0) + 1;
  }
  box.onclick = e => {
    const t = e.target.closest('.nmc-tile'), h = e.target.closest('.nmc-head');
    const held = e.ctrlKey || e.shiftKey || e.metaKey;
    if (t) model.send({click: +t.dataset.i, held}); else if (h) model.send({heading: +h.dataset.j});
  };
  const forget = follow(model, (state, changed) => {
    s = state;
    if (changed.has('large')) open();
    if (changed.has('sprite')) show(); else if (changed.has('marked')) mark();
  });
  const sized = new ResizeObserver(fit);
  sized.observe(whole);
  return () => {
    forget(); quiet(); sized.disconnect(); turn++;
    for (const a of [address, shownLarge, shownStrip]) if (a) URL.revokeObjectURL(a);
  };
} };
