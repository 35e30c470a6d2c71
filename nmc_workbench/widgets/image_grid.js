// One page of images: a single picture holds them all, and every tile shows its part of it.
const BOX = 'background:#fff;color:#222;font:12px sans-serif;padding:2px;min-height:40px';
const TILE = 'display:inline-block;box-sizing:content-box;margin:2px;border-radius:2px;cursor:pointer;' +
  'vertical-align:top;overflow:hidden';
const HEAD = 'margin:5px 2px 1px;font-weight:bold;cursor:pointer;' +
  'overflow:hidden;text-overflow:ellipsis;white-space:nowrap';

export default { render({model, el}) {
  const box = make(el, 'div', BOX, {className: 'nmc-tiles'});
  let address = null, s = {}, turn = 0;

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
        row = make(box, 'div', 'white-space:nowrap;overflow:hidden');        // a cluster's tiles keep to one line
      }
      tile(row, k);
    }
    if (!s.index.length) make(box, 'div', 'padding:12px;color:#666', {textContent: s.nothing});
    if (before) URL.revokeObjectURL(before);
    mark();
    box.dataset.drawn = (+box.dataset.drawn || 0) + 1;
  }
  box.onclick = e => {
    const t = e.target.closest('.nmc-tile'), h = e.target.closest('.nmc-head');
    if (t) model.send({click: +t.dataset.i}); else if (h) model.send({heading: +h.dataset.j});
  };
  const forget = follow(model, (state, keys) => {
    s = state;
    if (keys.has('sprite')) show(); else if (keys.has('marked')) mark();
  });
  return () => { forget(); turn++; if (address) URL.revokeObjectURL(address); };
} };
