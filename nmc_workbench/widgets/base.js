// A page asks for the state of a widget when it opens, and is told of every change. Prefixed to the widgets' own files.
const KINDS = {uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, float32: Float32Array};
function follow(model, changed) {
  const state = {};
  const hear = (content, buffers) => {
    if (!content.state) return;
    Object.assign(state, content.state);
    content.arrays.forEach(([name, kind], i) => {
      const b = buffers[i];
      const bytes = b.buffer.slice(b.byteOffset, b.byteOffset + b.byteLength);      // a view may start anywhere
      state[name] = kind === 'bytes' ? bytes : new KINDS[kind](bytes);
    });
    changed(state, new Set([...Object.keys(content.state), ...content.arrays.map(a => a[0])]));
  };
  model.on('msg:custom', hear);
  model.send({ask: 'state'});
  return () => model.off('msg:custom', hear);
}
function make(parent, tag, style = '', properties = {}) {
  const e = Object.assign(document.createElement(tag), properties);
  e.style.cssText = style;
  return parent.appendChild(e);
}
function keys(box, heard) {       // keys pressed while a widget is in sight, unless another output was clicked last
  let near = true;
  const point = e => {
    const output = e.target.closest?.('.jp-OutputArea-output');
    near = !output || output.contains(box);
  };
  const key = e => {
    const typing = /INPUT|TEXTAREA/.test(e.target.tagName) || e.target.isContentEditable;
    if (near && box.offsetParent && !typing) heard(e);
  };
  window.addEventListener('pointerdown', point, true);
  window.addEventListener('keydown', key, true);
  return () => {
    window.removeEventListener('pointerdown', point, true);
    window.removeEventListener('keydown', key, true);
  };
}
function url(bytes, type) { return URL.createObjectURL(new Blob([bytes], {type})); }
