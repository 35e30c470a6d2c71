// A table: the page sorts and filters, and tells Python which row was clicked.
const BOX = 'background:#fff;color:#222;color-scheme:light;font:12px sans-serif;border:1px solid #ddd;' +
  'display:flex;flex-direction:column';
const HEAD = 'position:sticky;top:0;background:#f3f3f3;text-align:left;padding:3px 8px;cursor:pointer;' +
  'white-space:nowrap;border-bottom:1px solid #ccc;user-select:none';
const CELL = 'padding:2px 8px;border-bottom:1px solid #eee;white-space:nowrap;max-width:22em;overflow:hidden;' +
  'text-overflow:ellipsis';
const order = new Intl.Collator(undefined, {numeric: true});

export default { render({model, el}) {
  const box = make(el, 'div', BOX, {className: 'nmc-table'});
  const bar = make(box, 'div', 'padding:3px 4px;display:flex;gap:8px;align-items:center');
  const filter = make(bar, 'input', 'flex:0 1 16em;font:12px sans-serif;padding:2px 4px;border:1px solid #bbb;' +
    'border-radius:3px;background:#fff;color:#222', {placeholder: 'filter rows', type: 'search'});
  make(box, 'style', '', {textContent: '.nmc-table input::placeholder { color: #777 }'});
  const count = make(bar, 'span', 'color:#555');
  const pane = make(box, 'div', 'overflow:auto;flex:1 1 auto');
  let s = {}, by = null, down = false;

  const text = v => v === null ? '' : typeof v !== 'number' ? v :
    Number.isInteger(v) ? v.toLocaleString('en') : String(+v.toPrecision(4));
  function compare(a, b) {      // what is missing comes last in both directions
    if (a === null || b === null) return (a === null) - (b === null);
    const numbers = typeof a === 'number' && typeof b === 'number';
    const less = numbers ? a - b : order.compare(String(a), String(b));
    return down ? -less : less;
  }
  function rows() {
    const words = filter.value.toLowerCase().split(/\s+/).filter(w => w);
    const n = s.columns[0]?.length ?? 0, found = [];
    for (let i = 0; i < n; i++) {
      const line = words.length ? s.columns.map(c => text(c[i]) + ' ' + (c[i] ?? '')).join('\n').toLowerCase() : '';
      if (words.every(w => line.includes(w))) found.push(i);
    }
    const column = s.columns[s.names.indexOf(by)];
    return column ? found.sort((i, j) => compare(column[i], column[j]) || i - j) : found;
  }
  function head(table) {
    const line = make(make(table, 'thead'), 'tr');
    if (s.colours.length) make(line, 'th', HEAD);
    for (const name of s.names) {
      const mark = name === by ? (down ? ' ▾' : ' ▴') : '';
      const cell = make(line, 'th', HEAD, {textContent: name + mark, title: s.hints[name] ?? 'sort by ' + name});
      cell.onclick = () => { down = by === name ? !down : false; by = name; draw(); };
    }
  }
  function row(body, i) {
    const line = make(body, 'tr', 'cursor:pointer', {className: 'nmc-row'});
    line.dataset.i = i;
    if (s.colours.length) make(line, 'td', CELL + `;color:${s.colours[i]}`, {textContent: '⬤'});
    for (const column of s.columns) {
      const v = column[i], shown = text(v), right = typeof v === 'number' ? ';text-align:right' : '';
      make(line, 'td', CELL + right, {textContent: shown, title: shown.length > 24 ? shown : ''});
    }
  }
  function mark() {
    const chosen = new Set(s.marked);
    for (const line of pane.querySelectorAll('.nmc-row'))
      line.style.background = chosen.has(+line.dataset.i) ? '#cfe3f5' : '';
  }
  function draw() {
    const top = pane.scrollTop, found = rows(), n = s.columns[0]?.length ?? 0;
    box.style.height = s.height;
    pane.replaceChildren();
    filter.style.visibility = n ? '' : 'hidden';
    count.textContent = !n ? '' : found.length < n ? `${found.length.toLocaleString('en')} of ` +
      `${n.toLocaleString('en')} rows` : `${n.toLocaleString('en')} row${n === 1 ? '' : 's'}`;
    if (found.length > s.most) count.textContent += `; the first ${s.most} are shown`;
    if (!n) make(pane, 'div', 'padding:12px;color:#666', {textContent: s.nothing});
    else {
      const table = make(pane, 'table', 'border-collapse:collapse;min-width:100%');
      head(table);
      const body = make(table, 'tbody');
      for (const i of found.slice(0, s.most)) row(body, i);
    }
    pane.scrollTop = top;
    mark();
    box.dataset.drawn = (+box.dataset.drawn || 0) + 1;
  }
  filter.oninput = draw;
  for (const name of ['keydown', 'keyup', 'keypress']) filter.addEventListener(name, e => e.stopPropagation());
  pane.onclick = e => {
    const line = e.target.closest('.nmc-row');
    if (line) model.send({row: +line.dataset.i, held: e.ctrlKey || e.shiftKey || e.metaKey});
  };
  return follow(model, (state, changed) => {
    s = state;
    if (changed.has('columns') || changed.has('height')) draw(); else if (changed.has('marked')) mark();
  });
} };
